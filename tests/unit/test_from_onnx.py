"""ONNX in: operators as ONNX Runtime understands them, exported networks as PyTorch does, files that are wrong."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import budwood
from budwood.core.errors import UserError
from budwood.engine import graph as g
from budwood.engine.from_onnx import graph_from_onnx
from budwood.engine.interpret import interpret
from budwood.testing.networks import OF_TIMM, QUICK, classifier, randomize

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

IMAGE = (2, 6, 9, 8)
OPSETS = (13, 17, 21)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape).astype(np.float32)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    """Names are given in one string; `_` is an input that is left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), name=f"{outputs.split()[0]}_{kind}", **attributes)


def model(
    nodes: Iterable[Any],
    constants: dict[str, Any] | None = None,
    shape: tuple[int | str, ...] = ("batch", *IMAGE[1:]),
    opset: int = 17,
    output: str = "y",
) -> Any:
    """One input `x`, one output `y`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def agrees(proto: Any, x: np.ndarray | None = None, tolerance: float = 1e-5) -> g.Graph:
    """The graph, after its output is found to be ONNX Runtime's."""
    runtime = pytest.importorskip("onnxruntime")
    x = random(*IMAGE) if x is None else x
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    graph = graph_from_onnx(proto.SerializeToString())
    (found,) = interpret(graph, torch.from_numpy(x))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted, rtol=tolerance, atol=tolerance)
    return graph


def kinds(graph: g.Graph) -> list[str]:
    return [n.op for n in graph]


# -- convolutions and matrices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
def test_conv(opset: int) -> None:
    constants = {"w": random(8, 3, 3, 2), "b": random(8)}
    conv = node("Conv", "x w b", pads=[0, 1, 2, 0], strides=[2, 1], dilations=[1, 2], group=2, kernel_shape=[3, 2])
    graph = agrees(model([conv], constants, opset=opset))
    assert kinds(graph) == ["Conv"] and graph.nodes[0].source == "y_Conv" and graph.outputs == ("y",)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_auto_pad(auto_pad: str, stride: int) -> None:
    conv = node("Conv", "x w", auto_pad=auto_pad, strides=[stride, stride])
    agrees(model([conv], {"w": random(4, 6, 4, 3)}))
    agrees(model([node("MaxPool", "x", auto_pad=auto_pad, strides=[stride] * 2, kernel_shape=[3, 3])]))


@pytest.mark.parametrize("opset", OPSETS)
def test_gemm(opset: int) -> None:
    x = random(3, 5)
    constants = {"w": random(4, 5), "b": random(4), "m": random(5, 4)}
    agrees(model([node("Gemm", "x w b", transB=1, alpha=0.5, beta=2.0)], constants, ("n", 5), opset), x)
    agrees(model([node("Gemm", "x m")], constants, ("n", 5), opset), x)
    graph = agrees(model([node("MatMul", "x m", "a"), node("Add", "b a")], constants, (3, 5), opset), x)
    assert kinds(graph)[0] == "Linear"
    for bias in (random(1, 4), random(1), random(1, 1)):
        agrees(model([node("Gemm", "x m b")], constants | {"b": bias}, ("n", 5), opset), x)


def test_a_bias_of_its_own_for_each_image_is_refused() -> None:
    proto = model([node("Gemm", "x w b")], {"w": random(5, 3), "b": random(3, 1)}, (3, 5))
    refused(proto, "a bias that differs from image to image")


def test_matmul_on_channels_last_is_a_1x1_conv() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
        node("MatMul", "t m", "a"),
        node("Add", "a b", "c"),
        node("LayerNormalization", "c scale shift", "d", epsilon=1e-4),
        node("Transpose", "d", perm=[0, 3, 1, 2]),
    ]
    constants = {"m": random(6, 4), "b": random(4), "scale": random(4), "shift": random(4)}
    graph = agrees(model(nodes, constants))
    assert kinds(graph) == ["Conv", "Affine", "LayerNorm"]


def test_matmul_on_tokens() -> None:
    nodes = [
        node("Reshape", "x r", "t"),
        node("Transpose", "t", "u", perm=[0, 2, 1]),
        node("MatMul", "u m", "v"),
        node("Transpose", "v", "w", perm=[0, 2, 1]),
        node("Reshape", "w s"),
    ]
    assert kinds(agrees(model(nodes, {"r": [0, 6, -1], "m": random(6, 4), "s": [0, 4, 9, 8]}))) == ["Conv"]


@pytest.mark.parametrize("opset", OPSETS)
def test_batch_norm(opset: int) -> None:
    constants = {"s": random(6), "b": random(6) + 1, "m": random(6) - 1, "v": abs(random(6)) + 0.5}
    assert kinds(agrees(model([node("BatchNormalization", "x s b m v", epsilon=1e-3)], constants, opset=opset))) == [
        "Affine"
    ]


def test_squeeze_excite_on_a_vector_and_on_a_map_of_one_pixel() -> None:
    constants = {"w": random(6, 6, 1, 1), "m": random(6, 6), "axes": [2, 3]}
    ending = [node("HardSigmoid", "s", "h", alpha=1 / 6), node("Mul", "h x")]
    agrees(model([node("GlobalAveragePool", "x", "p"), node("Conv", "p w", "s"), *ending], constants))
    vector = [node("ReduceMean", "x", "p", axes=[2, 3], keepdims=0), node("MatMul", "p m", "q")]
    agrees(model([*vector, node("Unsqueeze", "q axes", "s"), *ending], constants))
    agrees(model([*vector, node("Unsqueeze", "q axes", "u"), node("Conv", "u w", "s"), *ending], constants))


# -- elementwise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("Relu", {}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("HardSwish", {}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("Neg", {}),
        ("Identity", {}),
        ("Dropout", {}),
        ("Cast", {"to": TensorProto.FLOAT}),
    ],
)
def test_functions_of_one_number(opset: int, kind: str, attributes: dict[str, Any]) -> None:
    if kind == "HardSwish" and opset < 14:
        pytest.skip("not in this opset")
    agrees(model([node("Mul", "x four", "a"), node(kind, "a", **attributes)], {"four": np.float32(4)}, opset=opset))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    assert kinds(agrees(model([node("Gelu", "x", approximate=approximate)], opset=20))) == ["Activate"]


@pytest.mark.parametrize("form", range(3))
def test_gelu_spelled_out(form: int) -> None:
    start = [node("Div", "x root", "a"), node("Erf", "a", "e"), node("Add", "e one", "f")]
    forms = [
        [node("Mul", "x f", "h"), node("Mul", "h half")],
        [node("Mul", "half x", "h"), node("Mul", "f h")],
        [node("Mul", "half f", "h"), node("Mul", "h x")],
    ]
    constants = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32([0.5])}
    graph = agrees(model([*start, *forms[form]], constants))
    assert kinds(graph) == ["Activate"] and graph.nodes[0].activation.kind == "gelu"  # type: ignore[attr-defined]


def test_layer_norm_spelled_out() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
        node("ReduceMean", "t", "m", axes=[-1]),
        node("Sub", "t m", "d"),
        node("Pow", "d two", "q"),
        node("ReduceMean", "q", "v", axes=[-1]),
        node("Add", "v eps", "w"),
        node("Sqrt", "w", "s"),
        node("Div", "d s", "z"),
        node("Mul", "z gamma", "zz"),
        node("Add", "zz beta", "zzz"),
        node("Transpose", "zzz", perm=[0, 3, 1, 2]),
    ]
    constants = {"two": np.float32(2), "eps": np.float32(1e-5), "gamma": random(6), "beta": random(6)}
    assert kinds(agrees(model(nodes, constants))) == ["LayerNorm", "Affine", "Affine"]


@pytest.mark.parametrize("bounds", ["low high", "_ high", "low _", "zero six", ""])
def test_clip(bounds: str) -> None:
    constants = {name: np.float32(v) for name, v in {"low": -0.5, "high": 0.75, "zero": 0, "six": 6}.items()}
    agrees(model([node("Clip", f"x {bounds}")], constants))


@pytest.mark.parametrize("inputs", ["x c", "c x", "x s", "s x"])
@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_with_constants(kind: str, inputs: str) -> None:
    proto = model([node(kind, inputs)], {"c": random(6, 1, 1), "s": np.float32(1.5)})
    if kind == "Div" and inputs.endswith("x"):
        with pytest.raises(UserError, match="division by a constant"):
            graph_from_onnx(proto.SerializeToString())
    else:
        assert kinds(agrees(proto)) in (["Affine"], ["Affine", "Affine"])


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
def test_arithmetic_of_two_values(kind: str) -> None:
    agrees(model([node("Relu", "x", "a"), node(kind, "a x")]))
    agrees(model([node("GlobalMaxPool", "x", "a"), node(kind, "a x")]))
    agrees(model([node("GlobalMaxPool", "x", "a"), node(kind, "x a")]))
    agrees(model([node("Conv", "x w", "a"), node(kind, "x a")], {"w": random(1, 6, 1, 1)}))


def test_a_sum_of_many() -> None:
    agrees(model([node("Relu", "x", "a"), node("Tanh", "x", "b"), node("Sum", "x a b")]))


# -- pools and borders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
def test_pools(opset: int, pads: list[int]) -> None:
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": pads}
    agrees(model([node("MaxPool", "x", **window, dilations=[2, 1])], opset=opset))
    for counted in (0, 1):
        agrees(model([node("AveragePool", "x", **window, count_include_pad=counted)], opset=opset))


@pytest.mark.parametrize("size", range(6, 12))
def test_pools_that_round_up(size: int) -> None:
    x, shape = random(1, 2, size, size), ("n", 2, size, size)
    for kernel, stride, pad in ((3, 2, 1), (2, 2, 0), (3, 3, 1), (3, 2, 0)):
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": 1}
        agrees(model([node("MaxPool", "x", **window)], shape=shape), x)
        agrees(model([node("AveragePool", "x", **window)], shape=shape), x)
        agrees(model([node("AveragePool", "x", **window, count_include_pad=1)], shape=shape, opset=19), x)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_global_averages(opset: int, keepdims: int) -> None:
    agrees(model([node("GlobalAveragePool", "x", "p"), node("Flatten", "p")], opset=opset))
    agrees(model([node("GlobalMaxPool", "x")], opset=opset))
    if opset < 18:
        mean = node("ReduceMean", "x", axes=[-1, 2], keepdims=keepdims)
    else:
        mean = node("ReduceMean", "x axes", keepdims=keepdims)
    agrees(model([mean], {"axes": [2, -1]} if opset >= 18 else {}, opset=opset))


def test_a_mean_of_no_axes_is_nothing_where_the_file_says_so() -> None:
    agrees(model([node("ReduceMean", "x", "m", noop_with_empty_axes=1), node("Relu", "m")], opset=18))
    constants = {"axes": np.zeros(0, np.int64), "c": random(1, 6, 1, 1)}
    kept = [node("ReduceMean", "x axes", "m", noop_with_empty_axes=1), node("Relu", "m")]
    agrees(model(kept, constants, opset=18))
    for noop in (0, 1):  # of a constant all of it is reduced, if not
        folded = [node("ReduceMean", "c axes", "m", noop_with_empty_axes=noop), node("Add", "x m")]
        agrees(model(folded, constants, opset=18))


def test_pad() -> None:
    constants = {"p": [0, 0, 1, 2, 0, 0, 0, 3], "v": np.float32(-1.5), "q": [1, 0, 2, 3], "axes": [-1, 2]}
    agrees(model([node("Pad", "x p v")], constants))
    agrees(model([node("Pad", "x q _ axes")], constants, opset=18))
    last = [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("Pad", "t r", "u"), node("Relu", "u", "v")]
    nodes = [*last, node("Transpose", "v", perm=[0, 3, 1, 2])]
    assert kinds(agrees(model(nodes, {"r": [0, 1, 2, 0, 0, 3, 0, 0]}))) == ["Pad", "Activate"]


# -- what moves numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
def test_split_slice_gather_concat(opset: int) -> None:
    sizes = {"sizes": [1, 3, 2]}
    agrees(model([node("Split", "x sizes", "a b c", axis=1), node("Concat", "c a b", axis=1)], sizes, opset=opset))
    attributes = {"num_outputs": 2} if opset >= 18 else {}
    halves = node("Split", "x", "a b", axis=1, **attributes)
    agrees(model([halves, node("Concat", "b a", axis=-3)], opset=opset))
    bounds = {"s": [5], "e": [-(2**31)], "axes": [1], "steps": [-2]}
    agrees(model([node("Slice", "x s e axes steps")], bounds, opset=opset))
    bounds = {"s": [1, 0], "e": [2**63 - 1, 9], "axes": [-3, 2]}
    agrees(model([node("Slice", "x s e axes")], bounds, opset=opset))
    agrees(model([node("Gather", "x i", axis=1)], {"i": [3, -1, 0]}, opset=opset))
    nodes = [node("Gather", "x i", "a", axis=1), node("Unsqueeze", "a axes")]
    agrees(model(nodes, {"i": np.int64(2), "axes": [1]}, opset=opset))


@pytest.mark.parametrize("form", ["constant", "shape"])
def test_channel_shuffle(form: str) -> None:
    shapes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Unsqueeze", "n axis", "m"),
        node("Concat", "m five", "r", axis=0),
        node("Concat", "m four", "t", axis=0),
    ]
    shuffle = [node("Reshape", "x r", "a"), node("Transpose", "a", "b", perm=[0, 2, 1, 3, 4]), node("Reshape", "b t")]
    if form == "constant":
        graph = agrees(model(shuffle, {"r": [0, 2, 3, 9, 8], "t": [-1, 6, 9, 8]}))
    else:
        constants = {"zero": np.int64(0), "axis": [0], "five": [2, 3, 9, 8], "four": [6, 9, 8]}
        graph = agrees(model(shapes + shuffle, constants))
    assert kinds(graph) == ["Select"] and graph.nodes[0].channels == (0, 3, 1, 4, 2, 5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch", ["n", 1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_flatten_in_either_order(batch: int | str, last: bool) -> None:
    x, shape = random(1 if batch == 1 else 2, 6, 4, 5), (batch, 6, 4, 5)
    start = [node("Transpose", "x", "t", perm=[0, 2, 3, 1])] if last else [node("Identity", "x", "t")]
    ends = [
        [node("Flatten", "t", "f")],
        [node("Reshape", "t r", "f")],
        [node("Shape", "t", "s"), node("Slice", "s a b", "c"), node("Concat", "c d", "e", axis=0),
         node("Reshape", "t e", "f")],
    ]  # fmt: skip
    constants = {"m": random(120, 7), "r": [0, -1], "a": [0], "b": [1], "d": [-1]}
    for end in ends:
        graph = agrees(model([*start, *end, node("MatMul", "f m")], constants, shape), x, 1e-4)
        assert kinds(graph) == (["Flatten", "Select", "Linear"] if last else ["Flatten", "Linear"])


def test_squeeze_and_softmax() -> None:
    nodes = [node("GlobalAveragePool", "x", "p"), node("Squeeze", "p axes", "s"), node("Softmax", "s")]
    agrees(model(nodes, {"axes": [2, 3]}))
    agrees(model([node("Softmax", "x", axis=1)], shape=("n", 5)), random(3, 5))


def test_expand_to_its_own_shape() -> None:
    agrees(model([node("Shape", "x", "s"), node("Expand", "x s")]))


def test_constants_are_worked_out() -> None:
    nodes = [
        node("Constant", "", "c", value_floats=[2.0, 3.0]),
        node("Constant", "", "i", value_ints=[0, 1, 1, 0, 0, 1]),
        node("Gather", "c i", "d"),
        node("Sqrt", "d", "e"),
        node("Reshape", "e r", "f"),
        node("Mul", "x f"),
    ]
    assert kinds(agrees(model(nodes, {"r": [6, 1, 1]}))) == ["Affine"]


def test_what_the_output_does_not_need_is_left_out() -> None:
    graph = agrees(model([node("Relu", "x"), node("Tanh", "x", "z")]))
    assert kinds(graph) == ["Activate"]


# -- exported networks --------------------------------------------------------------------------------------------


def exported(module: nn.Module, size: int, dynamo: bool, folder: Path) -> Path:
    file = folder / "model.onnx"
    form: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},), "external_data": False}
    old: dict[str, Any] = {"dynamic_axes": {"images": {0: "batch"}}, "opset_version": 17}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(2, 3, size, size),), file, input_names=["images"], dynamo=dynamo,
            **(form if dynamo else old),
        )  # fmt: skip
    return file


def agrees_with_eager(module: nn.Module, size: int, dynamo: bool, folder: Path) -> Path:
    """The file; the module is in float64 afterwards.

    Exporters fold batch norm, and round what comes of it to float32. In a deep network that may come to more than one
    part in a million, but not to more than what eager loses where it computes in float32, nor to ten.
    """
    pytest.importorskip("onnxscript")
    x = torch.rand(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    path = exported(module.eval(), size, dynamo, folder)
    graph = graph_from_onnx(path)
    with torch.no_grad():
        rounded = module(x.float()).double()
        wanted = module.double()(x)
    (found,) = interpret(graph, x)
    lost = min((rounded - wanted).norm(), 1e-5 * wanted.norm())
    assert (found - wanted).norm() < max(1e-6 * wanted.norm(), lost)
    return path


class Small(nn.Module):
    """Some of everything that the exporters treat differently."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x.view(-1, 2, 4, 12, 12).transpose(1, 2).reshape(-1, 8, 12, 12)
        left, right = x.chunk(2, dim=1)
        x = torch.cat([right, nn.functional.silu(left)], 1)
        x = x * self.gate(x)
        y = self.narrow(nn.functional.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1)))))
        x = self.pool(x + self.scale * y.permute(0, 3, 1, 2))
        return self.head(nn.functional.dropout(x.mean((2, 3)), 0.5, self.training)).softmax(-1)


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_small_network_of_everything(dynamo: bool, tmp_path: Path) -> None:
    small = randomize(Small(), 0, torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0)))
    agrees_with_eager(small, 24, dynamo, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", sorted(QUICK | OF_TIMM))
def test_a_family(name: str, dynamo: bool, tmp_path: Path) -> None:
    """A small network of each, every number at random: the graph in float64, and the program that is made of it."""
    # Below 224 px the two would be pooled to more pixels than there are, which the exporters cannot say.
    size = {"alexnet": 224, "inception_v3": 96, "vgg11_bn": 224}.get(name, 64)
    module = classifier(name)
    randomize(module, 0, torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    path = agrees_with_eager(module, size, dynamo, tmp_path)
    x = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = module(x.double())
    found = budwood.compile(path, threads=1)(x)
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-4


def test_what_budwood_exports_is_read(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from budwood.core.checkpoint import Lineage
    from budwood.models.export import to_onnx

    class Sizes:
        size = 24

        def model_dump_json(self) -> str:
            return "{}"

    class Origin:
        preprocessing, classes, architecture, method, task = Sizes(), ["a"], "small", "none", None

    assert Lineage is not None
    module = Small().eval()
    graph = graph_from_onnx(to_onnx(module, Origin()))  # type: ignore[arg-type]
    x = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(interpret(graph, x)[0], module(x).detach(), rtol=1e-5, atol=1e-5)


# -- files that are wrong -------------------------------------------------------------------------------------------


def refused(source: Any, saying: str) -> None:
    data = source.SerializeToString() if hasattr(source, "SerializeToString") else source
    with pytest.raises(UserError, match=saying) as caught:
        graph_from_onnx(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 3000


def test_unknown_operators_are_named_together() -> None:
    nodes = [node("LSTM", "x", "a"), node("Resize", "a", "b"), node("Resize", "b", "c"), node("Foo", "c", domain="my")]
    refused(model([node("HardSwish", "x")], opset=13), "HardSwish .none in opset 13. .node y_HardSwish.$")
    refused(model(nodes), r"not supported: LSTM .node a_LSTM., Resize .node b_Resize., my.Foo .node y_Foo.$")


@pytest.mark.parametrize("kind", ["Mul", "Div", "Add"])
def test_a_number_of_images_is_no_constant(kind: str) -> None:
    """It is not known before the program is called; the size of an image is."""
    nodes = [node("Shape", "x", "s"), node("Gather", "s at", "n"), node("Cast", "n", "f", to=1), node(kind, "x f")]
    refused(model(nodes, {"at": np.int64(0)}), f"{kind} .node y_{kind}.: a number that depends on how many images")
    agrees(model(nodes, {"at": np.int64(2)}))


def test_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(model([node("Resize", "x")]).SerializeToString())
    refused(file, "^net.onnx: operators")
    refused(tmp_path / "none.onnx", "cannot read .*none.onnx: No such file")
    refused(tmp_path, "cannot read|not a file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is not a file")


@pytest.mark.parametrize("data", [b"", b"\x00", b"hello", b"\xff" * 100, b"\x08\x08" * 10])
def test_bytes_that_are_no_model(data: bytes) -> None:
    refused(data, "the ONNX model")


def test_opsets() -> None:
    refused(model([node("Relu", "x")], opset=12), "opset from 13 to 21, its own is 12")
    refused(model([node("Relu", "x")], opset=99), "its own is 99")


@pytest.mark.parametrize(
    ("nodes", "saying"),
    [
        ([node("Relu", "z")], "input z is made by no node"),
        ([node("Relu", "a", "b"), node("Relu", "b", "a"), node("Relu", "a")], "made by no node before it"),
        ([node("Relu", "x", "x")], "second value is called x"),
        ([node("Relu", "x", "q")], "output y: is made by no node"),
        ([node("Relu", "")], "has 0 inputs"),
        ([node("Conv", "x")], "has 1 inputs"),
        ([node("Conv", "x x")], "weight must be constant"),
        ([node("Conv", "x w", strides=[0, 1])], "strides"),
        ([node("Conv", "x w", strides=[1])], "strides"),
        ([node("Conv", "x w", pads=[-1, 0, 0, 0])], "padding must not be negative"),
        ([node("Conv", "x w", pads=[2**62] * 4)], "larger than is supported"),
        ([node("Conv", "x w", group=5)], "groups"),
        ([node("Conv", "x w", dilations=[2**40, 1])], "kernel is larger"),
        ([node("Conv", "x w", group="1")], "must not have the attribute group"),
        ([node("MaxPool", "x")], "needs the attribute kernel_shape"),
        ([node("MaxPool", "x", "z y", kernel_shape=[2, 2])], "output y: is made by no node"),
        ([node("Reshape", "x huge")], "cannot become"),
        ([node("Reshape", "x negative")], "cannot become"),
        ([node("Expand", "c far", "e"), node("Add", "x e")], "grow far beyond"),
        ([node("ConstantOfShape", "huge", "e"), node("Add", "x e")], "grow far beyond"),
        ([node("Range", "zero far one", "e"), node("Add", "x e")], "grow far beyond"),
        ([node("Transpose", "x", perm=[0, 1, 1, 2])], "no order of the axes"),
        ([node("Transpose", "x", perm=[0, 2, 3, 1])], "feature map"),
        ([node("Gather", "x i", axis=1)], "channels outside"),
        ([node("Slice", "x zero one")], "axis 0 .* does not hold the channels"),
        ([node("Softmax", "x", axis=1)], "needs a vector"),
        ([node("MatMul", "x x")], "must be constant"),
        ([node("HardSigmoid", "x")], "alpha 1/6"),
        ([node("Erf", "x")], "within a GELU"),
        ([node("Identity", "w")], "depends on the model's input"),
        ([node("Cast", "x", to=7)], "casts to floating-point"),
        ([node("Clip", "x w")], "bounds"),
        ([node("Mul", "x position")], "not one number per channel"),
    ],
)
def test_models_that_cannot_be(nodes: list[Any], saying: str) -> None:
    constants = {
        "w": random(4, 6, 3, 3),
        "c": np.float32([1]),
        "huge": [2**40, 2**40],
        "negative": [-2, 6],
        "zero": np.int64([0]),
        "one": np.int64([1]),
        "far": np.int64([2**60]),
        "i": [6],
        "position": random(1, 1, 9, 8),
    }
    refused(model(nodes, constants), saying)


@pytest.mark.parametrize(
    "shape", [("n", "c", 9, 8), ("n", 6, 0, 8), ("n", 6, -3, 8), (0, 6, 9, 8), (), ("n",), ("n", 6, 9)]
)
def test_inputs_of_no_use(shape: tuple[Any, ...]) -> None:
    refused(model([node("Relu", "x")], shape=shape), "batch|image size|is no")


def test_values_beyond_all_bounds() -> None:
    refused(model([node("Relu", "x")], shape=("n", 2**40, 1, 1)), "is no")
    doubling = [node("Concat", f"a{i} a{i}", f"a{i + 1}", axis=1) for i in range(60)]
    refused(model([node("Relu", "x", "a0"), *doubling, node("Relu", "a60")]), "larger than is supported")
    doubling = [node("Concat", f"a{i} a{i}", f"a{i + 1}", axis=0) for i in range(60)]
    refused(model([*doubling, node("Add", "x a60")], {"a0": random(3)}), "grow far beyond")


def test_a_small_file_that_wants_a_lot_of_memory() -> None:
    """A border of 20,000 pixels around an image of 8, seen through a window that skips most of it."""
    conv = node("Conv", "x w", pads=[20000] * 4, dilations=[40000, 40000])
    refused(model([conv], {"w": random(6, 6, 2, 2)}), "an image would take")


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_a_small_file_that_wants_a_lot_of_time(kind: str) -> None:
    """Eleven million pixels in a window, each of which a plan would list."""
    pool = node(kind, "x", kernel_shape=[3_900, 2_900])
    refused(model([pool], shape=("n", 1, 4_000, 3_000)), "pools windows of 3900 x 2900 pixels")


def test_tensors_that_lie() -> None:
    proto = model([node("Conv", "x w")], {"w": random(4, 6, 3, 3)})
    weight = proto.graph.initializer[0]
    for dims in ([4, 6, 3, 4], [2**31] * 4, [-1, 6, 3, 3], [4, -6, -3, 3], [4] * 70, [0]):
        weight.dims[:] = dims
        refused(proto, "the tensor w")
    weight.dims[:] = [4, 6, 3, 3]
    weight.ClearField("raw_data")
    refused(proto, "tensor w|not a sound")
    weight.data_type = 8
    refused(proto, "type")


def external(location: str, **entries: Any) -> Any:
    proto = model([node("Conv", "x w")], {"w": random(4, 6, 3, 3)})
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, str(value)
    return proto


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    weight = random(4, 6, 3, 3)
    for place in (folder / "w.bin", tmp_path / "outside.bin"):
        place.write_bytes(bytes(8) + weight.tobytes())
    file = folder / "net.onnx"
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")

    file.write_bytes(external("w.bin", offset=8, length=weight.nbytes).SerializeToString())
    graph = graph_from_onnx(file)
    np.testing.assert_array_equal(graph.nodes[0].weight, weight)  # type: ignore[attr-defined]
    refused(file.read_bytes(), "lies in another file")

    for location in ("../outside.bin", str(tmp_path / "outside.bin"), "link.bin", "", ".", "none.bin", "/dev/zero"):
        file.write_bytes(external(location, offset=8).SerializeToString())
        refused(file, "not in a file beside")
    for entries in ({"offset": 9}, {"offset": -8}, {"length": 8}, {"offset": 2**60}, {"offset": 8, "length": -1}):
        file.write_bytes(external("w.bin", **entries).SerializeToString())
        refused(file, "does not hold")
    file.write_bytes(external("w.bin", offset="eight").SerializeToString())
    refused(file, "not a sound")
