"""Damaged ONNX files: each must give a graph that runs, or a UserError of one line."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from budwood.engine import graph as g
from budwood.engine.from_onnx import graph_from_onnx
from budwood.engine.from_onnx.constants import FOLDABLE
from budwood.engine.from_onnx.ops import HANDLERS
from budwood.engine.interpret import interpret
from budwood.engine.passes import optimize
from budwood.engine.program import Program

from .mutations import EXTREMES, mutations

KINDS = sorted(HANDLERS.keys() | FOLDABLE)
RUNNABLE = 1 << 20  # numbers in all values of a graph that is run for a test


def targets() -> dict[str, Callable[[random.Random], None]]:
    return {
        "onnx-bytes": lambda rng: read(mutations(rng.choice(seeds()), rng)),
        "onnx-structure": lambda rng: read(damaged(rng).SerializeToString()),
    }


def read(data: bytes) -> None:
    """Reads a file, makes a plan of it, and runs it if it is small."""
    graph = graph_from_onnx(data)
    program = Program(optimize(graph), threads=1)
    program.plan(1)
    work = sum(math.prod(shape) * (1 + _reach(graph.node(name))) for name, shape in graph.shapes.items())
    if work < RUNNABLE:
        run(graph, program)


def run(graph: g.Graph, program: Program) -> None:
    torch.set_num_threads(1)
    found = interpret(graph, {name: torch.ones(2, *shape) for name, shape in graph.inputs.items()})
    made = program(*(np.ones((2, *shape), np.float32) for shape in program.input_shapes))
    for name, value, ours in zip(graph.outputs, found, [made], strict=True):
        assert tuple(value.shape) == ours.shape == (2, *graph.shapes[name]), (name, value.shape, ours.shape)


def _reach(node: g.Node | None) -> int:
    """About how many numbers of the input one number of the output takes, padding included."""
    if isinstance(node, g.Conv):
        return int(np.prod(node.weight.shape[1:])) + sum(node.padding)
    if isinstance(node, g.Pool):
        return math.prod(node.kernel) + sum(node.padding)
    return 1


# -- whole models -----------------------------------------------------------------------------------------------


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Small models that use every operator known and every way in which exporters put shapes."""
    return tuple(model.SerializeToString() for model in (_residual(), _tokens(), _shuffle(), _shapes()))


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0.1, 1, shape).astype(np.float32)


def _model(lines: str, constants: dict[str, Any], opset: int = 17) -> Any:
    """Each line is `output[,output] = Operator input ... attribute=value ...`; `_` is an input that is left out."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        outputs, right = line.split(" = ")
        kind, *words = right.split()
        inputs = ["" if word == "_" else word for word in words if "=" not in word]
        attributes = {key: _value(text) for key, text in (word.split("=") for word in words if "=" in word)}
        nodes.append(helper.make_node(kind, inputs, outputs.split(","), name=f"n_{outputs}", **attributes))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _value(text: str) -> Any:
    if "," in text:
        return [int(part) for part in text.split(",") if part]
    try:
        return int(text) if "." not in text else float(text)
    except ValueError:
        return text


def _residual() -> Any:
    lines = """
        a = Conv x w1 b1 pads=1,1,1,1 strides=2,2
        b = BatchNormalization a s o m v
        c = Relu b
        d = Conv c w2 auto_pad=SAME_UPPER group=2
        e = Add c d
        p = MaxPool e kernel_shape=3,3 strides=1,1 pads=1,1,1,1 ceil_mode=1
        q = AveragePool p kernel_shape=2,2 strides=1,1 count_include_pad=1
        r = GlobalAveragePool q
        t = Conv r w3
        u = HardSigmoid t alpha=0.16666667
        f = Mul u q
        h = Clip f low high
        i = ReduceMean h axes=2,3 keepdims=0
        j = Gemm i w4 b4 transB=1 alpha=0.5
        y = Softmax j
    """
    constants = {
        "w1": _weights(4, 3, 3, 3), "b1": _weights(4), "w2": _weights(4, 2, 3, 3), "w3": _weights(4, 4, 1, 1),
        "s": _weights(4), "o": _weights(4), "m": _weights(4), "v": _weights(4), "w4": _weights(5, 4),
        "b4": _weights(5), "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    return _model(lines, constants)


def _tokens() -> Any:
    lines = """
        a = Reshape x three
        b = Transpose a perm=0,2,1
        c = ReduceMean b axis
        d = Sub b c
        e = Pow d two
        f = ReduceMean e axis
        h = Add f eps
        i = Sqrt h
        j = Div d i
        k = LayerNormalization j scale shift epsilon=0.001
        l = MatMul k w
        m = Div l root
        n = Erf m
        o = Add n one
        p = Mul l o
        q = Mul p half
        r = Transpose q perm=0,2,1
        s = Reshape r four
        t = Pad s pads value
        u = Gelu t approximate=tanh
        v = Flatten u
        y = MatMul v head
    """
    constants = {
        "three": np.array([0, 3, -1]), "axis": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-5),
        "scale": _weights(3), "shift": _weights(3), "w": _weights(3, 2), "root": np.float32(math.sqrt(2)),
        "one": np.float32(1), "half": np.float32(0.5), "four": np.array([0, 2, 8, 8]),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 1]), "value": np.float32(0), "head": _weights(162, 3),
    }  # fmt: skip
    return _model(lines, constants, opset=20)


def _shuffle() -> Any:
    lines = """
        a = Concat x x axis=1
        b,c = Split a sizes axis=1
        d = Slice b start end axes step
        e = Gather c picked axis=1
        f = Concat d e axis=1
        h = LeakyRelu f alpha=0.2
        i = Reshape h five
        j = Transpose i perm=0,2,1,3,4
        k = Reshape j four
        l = HardSwish k
        m = Sub l k
        n = Tanh m
        o = Sum n l k
        p = GlobalMaxPool o
        q = Squeeze p pixels
        r = Sigmoid q
        s = Unsqueeze r pixels
        t = Dropout s
        u = Cast t to=1
        v = Neg u
        y = Identity v
    """
    constants = {
        "sizes": np.array([2, 4]), "start": np.array([-1]), "end": np.array([-(2**31)]), "axes": np.array([1]),
        "step": np.array([-1]), "picked": np.array([3, 0]), "five": np.array([0, 2, 2, 8, 8]),
        "four": np.array([-1, 4, 8, 8]), "pixels": np.array([2, 3]),
    }  # fmt: skip
    return _model(lines, constants, opset=14)


def _shapes() -> Any:
    lines = """
        a = Shape x
        b = Gather a zero
        c = Unsqueeze b axis
        d = Slice a from to
        e = ReduceProd d keepdims=1
        f = Concat c e axis=0
        h = Reshape x f
        i = Constant value_ints=3,8,8
        j = ConstantOfShape i
        k = Cast j to=7
        l = Flatten x axis=1
        m = Range zero n one
        o = Expand m i2
        p = Where flag o o
        q = Cast p to=1
        r = Add h l
        s = Mul r q2
        t = MatMul s w
        u = Equal zero one
        v = Size x
        y = Add t b2
    """
    constants = {
        "zero": np.int64(0), "one": np.int64(1), "axis": np.array([0]), "from": np.array([1]), "to": np.array([4]),
        "n": np.int64(8), "i2": np.array([4, 8]), "flag": np.array([True]), "q2": np.float32(2),
        "w": _weights(192, 3), "b2": _weights(3),
    }  # fmt: skip
    return _model(lines, constants, opset=13)


# -- damage to the parsed model, so that the outer layer stays intact ----------------------------------------------


def damaged(rng: random.Random) -> Any:
    from onnx import ModelProto

    model = ModelProto.FromString(rng.choice(seeds()))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(STRUCTURAL)(model, rng)
    return model


def _number(rng: random.Random) -> int:
    return rng.choice(EXTREMES) if rng.random() < 0.5 else rng.randint(-3, 10)


def _attribute(model: Any, rng: random.Random) -> None:
    node = rng.choice([n for n in model.graph.node if n.attribute] or [model.graph.node.add()])
    if not node.attribute:
        return
    attribute = rng.choice(node.attribute)
    match rng.randrange(7):
        case 0:
            attribute.i = _number(rng)
        case 1 | 2 if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = _number(rng)
        case 3 if attribute.ints:
            attribute.ints.extend(attribute.ints[: rng.randint(0, 4)] * rng.choice((0, 1, 1, 100)))
        case 4:
            attribute.type = rng.randrange(0, 15)
        case 5:
            attribute.f = rng.choice((0.0, -1.0, math.inf, -math.inf, math.nan, 1e38, 1e-45))
        case _:
            del node.attribute[:]


def _new_attribute(model: Any, rng: random.Random) -> None:
    from onnx import helper

    names = ("axis", "axes", "auto_pad", "perm", "group", "pads", "strides", "dilations", "kernel_shape", "keepdims",
             "ceil_mode", "to", "start", "end", "num_outputs", "allowzero", "epsilon", "training_mode", "mode",
             "noop_with_empty_axes", "value")  # fmt: skip
    value = rng.choice((_number(rng), [_number(rng) for _ in range(rng.randint(1, 5))], "SAME_LOWER", 0.5))
    rng.choice(model.graph.node).attribute.append(helper.make_attribute(rng.choice(names), value))


def _dims(model: Any, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    if tensor.dims and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = _number(rng)
    else:
        tensor.dims.extend([_number(rng)] * rng.choice((1, 1, 2, 60)))


def _contents(model: Any, rng: random.Random) -> None:
    """Other numbers in a constant, of the right size more often than not: shapes, axes, bounds, weights."""
    from onnx import numpy_helper

    tensor = rng.choice([t for t in model.graph.initializer if not t.data_location] or [model.graph.initializer.add()])
    try:
        array = numpy_helper.to_array(tensor).copy()
    except (TypeError, ValueError):  # it is damaged already
        array = np.zeros(1, np.int64)
    match rng.randrange(5):
        case 0:
            tensor.raw_data = mutations(tensor.raw_data, rng)
        case 1:
            tensor.ClearField("raw_data")
        case 2:
            tensor.data_type = rng.randrange(0, 25)
        case 3 if array.size:
            array.flat[rng.randrange(array.size)] = _fitting(array, rng)
            tensor.raw_data = array.tobytes()
        case _:
            small = array.reshape(-1)[: rng.randint(0, 6)]
            tensor.CopyFrom(numpy_helper.from_array(small, tensor.name))


def _fitting(array: np.ndarray, rng: random.Random) -> Any:
    if array.dtype.kind == "f":
        return rng.choice((math.nan, math.inf, -math.inf, 0.0, 1e38))
    return _number(rng) if array.dtype.kind == "i" and array.dtype.itemsize == 8 else 1


def _external(model: Any, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = rng.choice((("location", "/dev/zero"), ("offset", "-1"), ("length", str(2**62))))


def _input_of_a_node(model: Any, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    names = [name for n in model.graph.node for name in (*n.input, *n.output)] + ["", "x", "y", "\x1b[0m\n" * 99]
    match rng.randrange(4):
        case 0 if node.input:
            del node.input[-1]
        case 1:
            node.input.append(rng.choice(names))
        case _ if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _kind(model: Any, rng: random.Random) -> None:
    rng.choice(model.graph.node).op_type = rng.choice((*KINDS, *KINDS, "LSTM", "", "Ünknown\n"))


def _order(model: Any, rng: random.Random) -> None:
    a, b = rng.choice(model.graph.node), rng.choice(model.graph.node)
    match rng.randrange(4):
        case 0:
            copy = type(a)()
            copy.CopyFrom(a)
            a.CopyFrom(b)
            b.CopyFrom(copy)
        case 1:
            model.graph.node.add().CopyFrom(a)
        case 2:
            model.graph.node.remove(a)
        case _:
            a.output[:] = [*b.output, "z"][: rng.randint(0, 3)]
    if not model.graph.node:
        model.graph.node.add()


def _ends(model: Any, rng: random.Random) -> None:
    """The model's input, output and opset."""
    match rng.randrange(6):
        case 0:
            model.graph.output[0].name = rng.choice([o for n in model.graph.node for o in n.output] or ["x"])
        case 1:
            model.opset_import[0].version = rng.choice((13, 14, 17, 18, 20, 21, _number(rng)))
        case 2:
            model.graph.input[0].type.tensor_type.elem_type = rng.randrange(0, 17)
        case 3:
            model.graph.input.add().CopyFrom(model.graph.input[0])
            model.graph.input[-1].name = rng.choice(("x2", "w1", "y"))
        case _:
            dim = rng.choice(model.graph.input[0].type.tensor_type.shape.dim)
            dim.dim_value = _number(rng)


def _chain(model: Any, rng: random.Random) -> None:
    """Values that double and double: little in the file, a lot in memory."""
    from onnx import helper

    name = rng.choice([name for n in model.graph.node for name in n.input if name] or ["x"])
    axis = rng.randint(-2, 3)
    nodes = [
        helper.make_node("Concat", [f"{name}{'+' * i}"] * 2, [f"{name}{'+' * (i + 1)}"], axis=axis)
        for i in range(rng.choice((3, 20, 60)))
    ]
    model.graph.node.extend(nodes)
    model.graph.output[0].name = nodes[-1].output[0]


STRUCTURAL: tuple[Callable[[Any, random.Random], None], ...] = (
    _attribute,
    _attribute,
    _new_attribute,
    _dims,
    _contents,
    _contents,
    _external,
    _input_of_a_node,
    _input_of_a_node,
    _kind,
    _kind,
    _order,
    _ends,
    _chain,
)
