"""PyTorch in: the graph of a module, or of a program that torch.export made.

The program is walked in ATen operators before they are taken apart: a batch norm is one, a GELU is one. What depends
on parameters and constants alone is worked out by PyTorch on the way. Reshapes and transposes are not carried out but
kept as views (../views.py), so that a network which works on channels last comes out as one that does not.
"""

from __future__ import annotations

import inspect
import operator
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ...core.errors import UserError
from .. import graph as g
from ..views import OPEN_BATCH, View
from . import layers, moves, ops, windows  # noqa: F401  they register what they handle
from .build import HANDLERS, Builder
from .in_place import meant_by, name_of, readable

MOST_NAMED = 20  # problems in one message


def graph_from_module(model: nn.Module, example: Tensor, *, dtype: DTypeLike = np.float32) -> g.Graph:
    """The graph of `model` in evaluation for images of the example's size, [N, C, H, W]; the model stays as it is.

    Parameters are copied as `dtype`. Raises UserError where the model cannot be exported or uses an operator that is
    not supported, naming all such operators.
    """
    modes = {module: module.training for module in model.modules()}
    # Not one image, which PyTorch takes for a size that never changes; nothing is computed with them.
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = torch.empty(OPEN_BATCH, *example.shape[1:], dtype=example.dtype, device=example.device)
    try:
        model.eval()
        with torch.no_grad():
            program = torch.export.export(model, (batch,), strict=False)
    except Exception as error:  # whatever the model's own code may raise
        raise UserError(f"{type(model).__name__} cannot be exported: {_first_line(error)}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return graph_from_exported(program, dtype=dtype)


def graph_from_exported(
    program: ExportedProgram, *, dtype: DTypeLike = np.float32, every_output: bool = False
) -> g.Graph:
    """The graph of a program exported in evaluation; its output is the program's first tensor, or are all of them.

    The batch may be of any fixed size or dynamic, the other sizes must be fixed. Raises UserError as above.
    """
    if not readable(program):
        try:
            program = program.run_decompositions({})  # nothing is taken apart, but nothing works in place any more
        except Exception as error:
            raise UserError(f"the exported program cannot be read: {_first_line(error)}") from error
    return _Walk(program, dtype).graph(every_output)


def is_supported(operator: Any) -> bool:
    """Whether an operator is known here; some uses of it may not be supported all the same."""
    return operator in _PYTHON or name_of(operator) in HANDLERS


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


MISSING = object()  # the value of a node that could not be read, and of all that depend on it


@dataclass(frozen=True)
class Problem:
    """An operator that is not supported, and where it stands first."""

    operator: str
    reason: str
    place: str

    def __str__(self) -> str:
        return f"{self.operator} in {self.place}" + (f": {self.reason}" if self.reason else "")


class _Walk:
    """One pass over the program's nodes: each becomes a View, a constant, a tuple of these, or MISSING."""

    def __init__(self, program: ExportedProgram, dtype: DTypeLike) -> None:
        self.program = program
        self.values: dict[torch.fx.Node, Any] = {}
        self.problems: dict[tuple[str, str], Problem] = {}
        self.inputs: dict[str, g.Shape] = {}
        self.builder = Builder(self._read_inputs(), dtype)
        for node, shape in self._inputs.items():
            self.inputs[node.name] = shape
            self.values[node] = self.builder.input(node.name, shape)

    def _read_inputs(self) -> int:
        """Parameters and constants go to `values`, shapes of the user's inputs to `_inputs`; the batch is returned."""
        self._inputs: dict[torch.fx.Node, g.Shape] = {}
        batches: set[int] = set()
        nodes = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        for spec in self.program.graph_signature.input_specs:
            node = nodes[spec.arg.name]
            value = node.meta.get("val")
            if spec.kind is not InputKind.USER_INPUT:
                state = self.program.state_dict
                target = spec.target or ""
                self.values[node] = state[target] if target in state else self.program.constants.get(target, MISSING)
            elif isinstance(value, Tensor):
                batch, *sizes = (n if isinstance(n, int) else None for n in value.shape)
                if len(sizes) not in (1, 3) or None in sizes:
                    shape = tuple(str(n) for n in value.shape)
                    raise UserError(
                        f"the input {node.name} of shape ({', '.join(shape)}): wanted is [N, C, H, W] of fixed size"
                    )
                batches.add(OPEN_BATCH if batch is None else batch)
                self._inputs[node] = tuple(n for n in sizes if n is not None)
            else:
                self.values[node] = value
        if len(batches) != 1:
            raise UserError(f"the inputs must be tensors of one batch; their first sizes are {sorted(batches)}")
        return batches.pop()

    def graph(self, every_output: bool) -> g.Graph:
        outputs = self._outputs() if every_output else self._outputs()[:1]
        for node in self._alive(outputs):
            if node not in self.values:
                self.values[node] = self._value(node)
        if self.problems:
            named = "; ".join(str(p) for p in list(self.problems.values())[:MOST_NAMED])
            rest = f"; and {more} more" if (more := len(self.problems) - MOST_NAMED) > 0 else ""
            raise UserError(f"operators of the network that are not supported: {named}{rest}")
        return self._finish(outputs)

    def _outputs(self) -> list[torch.fx.Node]:
        (last,) = (node for node in self.program.graph.nodes if node.op == "output")
        specs = zip(self.program.graph_signature.output_specs, last.args[0], strict=True)
        found = [arg for spec, arg in specs if spec.kind is OutputKind.USER_OUTPUT and isinstance(arg, torch.fx.Node)]
        if not found:
            raise UserError("the network returns no tensor")
        return found

    def _alive(self, outputs: list[torch.fx.Node]) -> list[torch.fx.Node]:
        """The nodes that the outputs depend on, in order."""
        needed = set(outputs)
        for node in reversed(self.program.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return [node for node in self.program.graph.nodes if node in needed]

    def _value(self, node: torch.fx.Node) -> Any:
        if node.op != "call_function":
            return self._refuse(node, f"a node of the kind {node.op}")
        name = meant_by(node.target)
        inputs = [self.values[n] for n in node.all_input_nodes]
        if node.target in _PYTHON or not any(_depends(v) for v in inputs):
            return MISSING if any(v is MISSING for v in inputs) else self._evaluate(node)
        if name not in HANDLERS:
            return self._refuse(node, "")
        if any(_holds_missing(v) for v in inputs):
            return MISSING
        self.builder.at(node.name, _module(node)[0])
        args, kwargs = self._arguments(node)
        try:
            return _call(HANDLERS[name], self.builder, args, kwargs)
        except ValueError as error:
            return self._refuse(node, " ".join(str(error).split()))

    def _arguments(self, node: torch.fx.Node) -> tuple[list[Any], dict[str, Any]]:
        def value(arg: Any) -> Any:
            return torch.fx.node.map_arg(arg, lambda n: self.values[n])

        return [_plain(value(a)) for a in node.args], {k: _plain(value(v)) for k, v in node.kwargs.items()}

    def _evaluate(self, node: torch.fx.Node) -> Any:
        """What depends on no input of the network."""
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            return self._refuse(node, "its result is random")
        args, kwargs = self._arguments(node)
        try:
            with torch.no_grad():
                return node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:
            return self._refuse(node, _first_line(error))

    def _refuse(self, node: torch.fx.Node, reason: str) -> Any:
        name = str(node.target)
        self.problems.setdefault((name, reason), Problem(name, reason, _place(node)))
        return MISSING

    def _finish(self, outputs: list[torch.fx.Node]) -> g.Graph:
        builder = self.builder
        builder.at("output", "")
        names = []
        for number, output in enumerate(outputs):
            view = self.values[output]
            if not isinstance(view, View):
                raise UserError(f"output {number} of the network does not depend on its input")
            try:
                names.append(builder.vector(view) if view.is_vector else builder.image(view))
            except ValueError as error:
                raise UserError(f"output {number} of the network: {error}") from None
        needed = set(names)
        for made in reversed(builder.nodes.values()):
            if made.name in needed:
                needed.update(made.inputs)
        return g.Graph(self.inputs, tuple(n for n in builder.nodes.values() if n.name in needed), tuple(names))


_PYTHON = {operator.getitem}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _depends(value: Any) -> bool:
    """Whether a value depends on the network's input, or may do so."""
    if isinstance(value, list | tuple):
        return any(_depends(v) for v in value)
    return isinstance(value, View) or value is MISSING


def _holds_missing(value: Any) -> bool:
    return value is MISSING or (isinstance(value, list | tuple) and any(v is MISSING for v in value))


def _call(handler: Any, builder: Builder, args: list[Any], kwargs: dict[str, Any]) -> Any:
    try:
        bound = inspect.signature(handler).bind(builder, *args, **kwargs)
    except TypeError as error:
        raise ValueError(f"this form of it ({error})") from None
    return handler(*bound.args, **bound.kwargs)


def _module(node: torch.fx.Node) -> tuple[str, str]:
    """The path and the class of the innermost module that the operator was called in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return str(path).removeprefix("L['self'].").removeprefix("L__self__"), name


def _place(node: torch.fx.Node) -> str:
    """Where the user finds the operator: module path, its class, file and line."""
    path, kind = _module(node)
    place = f"`{path or 'the network'}`" + (f" ({kind})" if kind else "")
    lines = re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")
    return place + (f" at {lines[-1][0]}:{lines[-1][1]}" if lines else "")
