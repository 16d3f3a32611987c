"""ONNX in: the graph of a classifier of images that was exported to an ONNX file.

Read are opsets 13 to 21. The file is not trusted: whatever it holds, the answer is a graph or a UserError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from ...core.errors import UserError
from .. import graph as g
from ..limits import check_size
from ..views import OPEN_BATCH, View, whole
from .build import Builder, Inputs, Value, viewed
from .constants import FOLDABLE, Budget, fold
from .file import Constant, Model, Op, printable, read_model
from .ops import HANDLERS

LARGEST_SIZE = 1 << 20


def graph_from_onnx(source: str | os.PathLike[str] | bytes) -> g.Graph:
    """The graph of an ONNX file, or of the bytes of one; its output is the model's first.

    Raises UserError, in one line, where the file cannot be read, is damaged or uses what is not supported.
    """
    model = read_model(source)
    _refuse_unknown(model)
    budget = Budget((1 << 24) + 8 * sum(c.size for c in model.constants.values()))
    try:
        builder, values = _start(model, budget)
    except ValueError as error:
        raise UserError(f"{model.title}: {printable(str(error), 300)}") from None
    for op in model.ops:
        try:
            _run(builder, op, values)
        except _NOT_SOUND as error:
            raise UserError(f"{model.title}: {_named(op)}: {_reason(error)}") from None
    try:
        graph = _finish(builder, model, values)
    except _NOT_SOUND as error:
        raise UserError(f"{model.title}: the output {printable(model.output)}: {_reason(error)}") from None
    try:
        check_size(graph, sum(c.nbytes for c in model.constants.values()))
    except ValueError as error:
        raise UserError(f"{model.title}: {error}") from None
    return graph


# What a model that contradicts itself can end in: GraphError and our own ValueErrors, and NumPy's and Python's.
_NOT_SOUND = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError)


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, ValueError) else "its inputs or attributes are not as they should be"
    text = text.replace(f"({OPEN_BATCH},", "(N,")
    return printable(text, 300)


def _named(op: Op) -> str:
    return f"{printable(op.kind)} (node {printable(op.name or next(iter(op.outputs), ''))})"


def _refuse_unknown(model: Model) -> None:
    first: dict[str, str] = {}
    for op in model.ops:
        if op.kind not in HANDLERS and op.kind not in FOLDABLE:
            first.setdefault(op.kind, _named(op))
    if first:
        named = ", ".join(list(first.values())[:20])
        raise UserError(f"{model.title}: operators that are not supported: {named}")


def _start(model: Model, budget: Budget) -> tuple[Builder, dict[str, Value]]:
    """The builder with the model's inputs; the values known so far, by their ONNX names."""
    batches = {dimensions[0] if dimensions else 0 for dimensions in model.inputs.values()}
    batch = batches.pop()
    batch = OPEN_BATCH if batch is None else batch
    if batches or not 0 < batch <= LARGEST_SIZE:
        raise ValueError("the batch must be the first dimension of every input, and be the same")
    builder = Builder(batch, budget)
    values: dict[str, Value] = dict(model.constants)
    for name, (_, *sizes) in model.inputs.items():
        shape = tuple(0 if s is None else s for s in sizes)
        if None in sizes:
            raise ValueError(f"the input {name}: only its batch may be left open; export it with a fixed image size")
        if len(shape) not in (1, 3) or min(shape) < 1 or max(shape) > LARGEST_SIZE:
            raise ValueError(f"the input {name}: {shape} is no (channels, height, width) and no (channels)")
        values[name] = whole(builder.add_input(name, shape), shape, batch)
    return builder, values


def _run(builder: Builder, op: Op, values: dict[str, Value]) -> None:
    builder.op = op
    if op.fault:
        raise ValueError(op.fault)
    missing = [name for name in op.inputs if name and name not in values]
    if missing:
        raise ValueError(f"its input {printable(missing[0])} is made by no node before it")
    inputs: Inputs = [values[name] if name else None for name in op.inputs]
    constants: list[Constant | None] = [x for x in inputs if x is None or isinstance(x, np.ndarray)]
    made: Value | list[View] | list[Constant]
    if len(constants) == len(inputs) and op.kind in FOLDABLE:
        made = fold(op, constants, builder.budget)
    elif op.kind in HANDLERS:
        made = HANDLERS[op.kind](builder, op, inputs)
    else:
        raise ValueError("it is only supported where it depends on no input of the model")
    for name, value in zip(op.outputs, made if isinstance(made, list) else [made], strict=False):
        if name and name in values:
            raise ValueError(f"a second value is called {printable(name)}")
        values[name] = value


def _finish(builder: Builder, model: Model, values: dict[str, Value]) -> g.Graph:
    if model.output not in values:
        raise ValueError("is made by no node")
    view = viewed(values[model.output])
    builder.op = Op("output", model.output, (), (model.output,))
    name = builder.vector(view) if view.is_vector else builder.image(view)
    inputs = {name: builder.shapes[name] for name in builder.shapes if name not in builder.nodes}
    return g.Graph(inputs, tuple(_alive(builder, name)), (name,))


def _alive(builder: Builder, output: str) -> Iterator[g.Node]:
    """The nodes that the output depends on, in order."""
    needed = {output}
    for node in reversed(builder.nodes.values()):
        if node.name in needed:
            needed.update(node.inputs)
    return (node for node in builder.nodes.values() if node.name in needed)
