"""`torch.compile(model, backend="budwood")`: inference through the engine, what it does not know through PyTorch.

A captured graph is compiled when it is first called, since only then its parameters are known: they are copied, and
the graph is compiled again when one of them is another tensor or was changed in place (but not through `.data`, which
PyTorch does not keep account of). Whole graphs go through the importer; where an operator is not supported, the graph
is cut there, and the pieces between go through it. With gradients, or in training, PyTorch computes all of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ..core.errors import UserError
from .from_export import graph_from_exported, is_supported
from .passes import optimize
from .program import Program
from .saved import fingerprint

MOST_VARIANTS = 16
"""Shapes that one captured graph is compiled for; calls with yet others go through PyTorch."""


def budwood(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """The backend: what `torch.compile` calls for every graph that it captures."""
    return _Captured(module)


# -- what went where ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Of one captured graph: FLOPs of its convolutions (dense, for the batch it was called with)."""

    in_engine: float
    in_all: float
    reason: str = ""
    """Why not all of it is in the engine."""


_watching: list[list[Report]] = []


@contextmanager
def watch() -> Iterator[list[Report]]:
    """Collects a report for every graph that is compiled inside."""
    found: list[Report] = []
    _watching.append(found)
    try:
        yield found
    finally:
        _watching.remove(found)


def share(reports: Sequence[Report]) -> float:
    """How much of the convolutions' FLOPs is in the engine, 0 to 1; 1 without any convolution."""
    total = sum(report.in_all for report in reports)
    return sum(report.in_engine for report in reports) / total if total else 1.0


def convolution_flops(graph: fx.Graph) -> float:
    """Multiplications and additions of the graph's convolutions, by the shapes that were noted when it was made."""
    found = 0.0
    for node in graph.nodes:
        name = str(getattr(node.target, "__name__", "")).split(".")[0]
        if node.op == "call_function" and name in ("conv1d", "conv2d", "conv3d", "convolution", "_convolution"):
            out, weight = _noted(node), _noted(node.args[1])
            if isinstance(out, Tensor) and isinstance(weight, Tensor):
                found += 2.0 * math.prod(int(n) for n in out.shape) * math.prod(int(n) for n in weight.shape[1:])
    return found


def _noted(node: Any) -> Any:
    return node.meta.get("val", node.meta.get("example_value")) if isinstance(node, fx.Node) else None


# -- a captured graph -----------------------------------------------------------------------------------------

Key = tuple[Any, ...]


@dataclass
class _Variant:
    """The graph compiled for inputs of certain shapes. `run` is None where PyTorch computes it."""

    run: Callable[..., Sequence[Any]] | None
    frozen: list[tuple[Tensor, int, int]]
    """Each parameter, its version and where its numbers are."""
    report: Report
    program: Program | None = None
    fingerprint: str = ""

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the parameters are what they were."""
        now = map(_state, tensors)
        return all(a is was and state == kept for (a, *state), (was, *kept) in zip(now, self.frozen, strict=True))


@dataclass
class _Captured:
    """Called with the graph's inputs: parameters and buffers, sizes that vary, and the model's own inputs.

    Sizes are put into the graph, so each number of images is compiled for itself; where two came to the same, and
    nothing is computed from sizes, the number is free.
    """

    module: fx.GraphModule
    variants: dict[Key, _Variant] = field(default_factory=dict)
    free: dict[Key, _Variant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        places = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        self.static = [i for i, node in enumerate(places) if _is_static(node)]
        self.dynamic = [i for i in range(len(places)) if i not in set(self.static)]
        self.trains = any(_trains(node) for node in self.module.graph.nodes)
        self.counts = any(_counts(node) for node in self.module.graph.nodes)

    def __call__(self, *args: Any) -> Any:
        if self.trains or (torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)):
            _warn("gradients or training: PyTorch computes them; use model.eval() and torch.inference_mode()")
            return self.module(*args)
        if torch.is_autocast_enabled("cpu"):
            _warn("autocast: PyTorch computes in other types than float32")
            return self.module(*args)
        statics = [args[i] for i in self.static]
        key = tuple(_shape(args[i]) for i in self.dynamic)
        variant = self.variants.get(key) or self.free.get(_any_batch(key))
        if variant is None or not variant.holds(statics):
            variant = self._compiled(key, args, statics)
        if variant is None or variant.run is None:
            return self.module(*args)
        return variant.run(*(args[i] for i in self.dynamic if isinstance(args[i], Tensor)))

    def _compiled(self, key: Key, args: Sequence[Any], statics: list[Tensor]) -> _Variant | None:
        """Without a lock, which a process forked meanwhile would find taken for ever: threads may do it twice."""
        if any(not other.holds(statics) for other in list(self.variants.values())):
            self.variants.clear()
            self.free.clear()
        if len(self.variants) >= MOST_VARIANTS:
            _warn(f"more than {MOST_VARIANTS} shapes of inputs: the others go through PyTorch")
            return None
        made = _compile(_frozen(self.module, self.static, args), args, self.dynamic)
        made.frozen = [_state(t) for t in statics]
        self._compare(key, made)
        self.variants[key] = made
        for found_reports in _watching:
            found_reports.append(made.report)
        return made

    def _compare(self, key: Key, made: _Variant) -> None:
        """Notes that the number of images is free where another one gave the same graph."""
        if self.counts:
            return
        for other_key, other in list(self.variants.items()):
            if made.program and other.fingerprint == made.fingerprint and _any_batch(other_key) == _any_batch(key):
                made.program, made.run = other.program, other.run
                self.free[_any_batch(key)] = made
                return


def _any_batch(key: Key) -> Key:
    """The key without the number of images, which is the first size of the first tensor, where that is the first size
    of a tensor or a size by itself."""
    images = next((part[0][0] for part in key if isinstance(part, tuple) and part[0]), None)

    def without(part: Any) -> Any:
        if isinstance(part, tuple):
            return ((None, *part[0][1:]), *part[1:]) if part[0] and part[0][0] == images else part
        return None if part == images else part

    return tuple(map(without, key))


def _is_static(node: fx.Node) -> bool:
    """Whether the placeholder is a parameter or a buffer of a module."""
    return "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {}) or isinstance(
        getattr(node.meta.get("grapharg"), "_example", None), nn.Parameter
    )


def _trains(node: fx.Node) -> bool:
    """Whether the operator is a dropout or a batch norm in training."""
    name = str(getattr(node.target, "__name__", ""))
    flags = {"batch_norm": 5, "dropout": 2}
    if node.op != "call_function" or name not in flags:
        return False
    place = flags[name]
    given = node.args[place] if len(node.args) > place else node.kwargs.get("training", name == "dropout")
    return bool(given)


SHAPING = ("view", "reshape", "expand")
"""What may be given a size for a shape."""


def _counts(node: fx.Node) -> bool:
    """Whether something else than a shape is made of a size, or a shape of what is computed from sizes."""
    if not isinstance(_noted(node), torch.SymInt):
        return False
    shapes = all(user.op == "call_method" and user.target in SHAPING for user in node.users)
    return bool(node.users) and not (node.op == "placeholder" and shapes)


def _state(tensor: Tensor) -> tuple[Tensor, int, int]:
    return tensor, -1 if tensor.is_inference() else tensor._version, tensor.data_ptr()


def _shape(value: Any) -> Any:
    return (tuple(value.shape), value.dtype, str(value.device)) if isinstance(value, Tensor) else value


_warned: set[str] = set()


def _warn(message: str) -> None:
    """Each message once."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(f"torch.compile(backend='budwood'): {message}", stacklevel=4)


def _frozen(module: fx.GraphModule, static: Sequence[int], args: Sequence[Any]) -> fx.GraphModule:
    """A copy of the graph with parameters, buffers and sizes in it; only the model's own inputs are left."""
    graph = fx.Graph()
    renamed: dict[fx.Node, Any] = {}
    fixed, number = set(static), 0
    held: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op != "placeholder":
            made = graph.node_copy(node, lambda n: renamed[n])
            if node.op in ("get_attr", "call_module"):
                held[str(node.target)] = _attribute(module, str(node.target))
            renamed[node] = made
            continue
        value = args[number]
        if number in fixed:
            name = f"frozen_{number}"
            held[name] = value.detach().clone()
            renamed[node] = graph.get_attr(name)
        elif isinstance(value, Tensor):
            renamed[node] = graph.placeholder(node.name)
        else:
            renamed[node] = value
        number += 1
    return fx.GraphModule(held, graph)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


# -- compiling ------------------------------------------------------------------------------------------------


def _compile(frozen: fx.GraphModule, args: Sequence[Any], dynamic: Sequence[int]) -> _Variant:
    """The variant, or one without `run` and the reason why."""
    inputs = tuple(args[i].detach() for i in dynamic if isinstance(args[i], Tensor))
    total = 0.0
    try:
        with torch.no_grad():
            exported = torch.export.export(frozen, inputs, strict=False)
            total = convolution_flops(exported.graph)
            _check_outputs(exported)
            try:
                program = _program(exported)
                return _Variant(_runner(program), [], Report(total, total), program, fingerprint(program.graph))
            except UserError as error:
                run, inside = _in_pieces(exported, inputs)
                return _Variant(run, [], Report(inside, total, str(error)))
    except Exception as error:  # whatever the exporter raises: PyTorch can compute the graph all the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _warn(f"a graph goes through PyTorch: {reason}")
        return _Variant(None, [], Report(0.0, total or convolution_flops(frozen.graph), reason))


def _check_outputs(exported: ExportedProgram) -> None:
    """ValueError where the graph changes what it is given, or returns anything but new tensors that share no memory."""
    signature = exported.graph_signature
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
        raise ValueError("it changes a tensor that it is given")
    (last,) = (node for node in exported.graph.nodes if node.op == "output")
    for arg in last.args[0]:
        if not isinstance(arg, fx.Node) or arg.op == "placeholder":
            raise ValueError("it returns something that is not computed")
    shown = [node for node in exported.graph.nodes if node.op == "placeholder"] + list(last.args[0])
    places = [value.untyped_storage()._cdata for node in shown if isinstance(value := _noted(node), Tensor)]
    returned = len(last.args[0])
    if any(places.count(place) > 1 for place in places[-returned:]):
        raise ValueError("it returns a view of another tensor")


def _program(exported: ExportedProgram) -> Program:
    """Of all outputs. UserError where an operator or a value is not supported."""
    for spec in exported.graph_signature.input_specs:
        value = next(n.meta.get("val") for n in exported.graph.nodes if n.name == spec.arg.name)
        if spec.kind is InputKind.USER_INPUT and (value.dtype != torch.float32 or value.device.type != "cpu"):
            raise UserError(f"an input of type {value.dtype} on {value.device}")
    for node in exported.graph.nodes:
        value = _noted(node)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float32:
            raise UserError(f"{node.name} is computed in {value.dtype}")
    return Program(optimize(graph_from_exported(exported, every_output=True)))


def _runner(program: Program) -> Callable[..., Sequence[Tensor]]:
    def run(*inputs: Tensor) -> Sequence[Tensor]:
        made = program(*inputs)
        return tuple(made) if isinstance(made, list) else (made,)

    return run


class _Piece(nn.Module):
    """A part of a graph that runs in the engine. Of what it is given it needs no parameters, only `inputs`."""

    def __init__(self, program: Program, inputs: Sequence[int]) -> None:
        super().__init__()
        self.run, self.inputs = _runner(program), tuple(inputs)

    def forward(self, *given: Any) -> Any:
        made = self.run(*(given[i] for i in self.inputs))
        return made[0] if len(made) == 1 else made


def _in_pieces(
    exported: ExportedProgram, inputs: tuple[Tensor, ...]
) -> tuple[Callable[..., Sequence[Any]] | None, float]:
    """The graph cut where an operator is not supported, and the convolutions' FLOPs in the engine."""
    from torch.fx.passes.split_module import split_module

    whole = exported.run_decompositions({}).module(check_guards=False)
    numbers = _numbered(whole.graph)
    split = split_module(whole, whole, lambda node: numbers[node], keep_original_order=True)
    given = _Inputs(split)
    given.run(*inputs)
    inside = 0.0
    for node in [node for node in split.graph.nodes if node.op == "call_module"]:
        name, args = str(node.target), given.seen[str(node.target)]
        part = split.get_submodule(name)
        assert isinstance(part, fx.GraphModule)
        flops = convolution_flops(part.graph)
        fixed = [i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr"]
        open_ = [i for i in range(len(args)) if i not in fixed]
        if flops == 0 or not all(isinstance(args[i], Tensor) for i in open_):
            continue  # not worth the way there and back
        try:
            frozen = _frozen(part, fixed, args)
            program = _program(torch.export.export(frozen, tuple(args[i] for i in open_), strict=False))
        except UserError:
            continue
        split.set_submodule(name, _Piece(program, open_))
        inside += flops
    if inside == 0:
        return None, 0.0

    def run(*args: Tensor) -> Sequence[Any]:
        made = split(*args)
        return made if isinstance(made, tuple | list) else (made,)

    return run, inside


def _numbered(graph: fx.Graph) -> dict[fx.Node, int]:
    """Node -> number of its piece: of nodes that follow each other, all supported or all not."""
    numbers: dict[fx.Node, int] = {}
    number, before = 0, None
    for node in graph.nodes:
        if node.op == "call_function":
            known = is_supported(node.target)
            number += before is not None and known is not before
            before = known
        numbers[node] = number
    return numbers


class _Inputs(fx.Interpreter):
    """Runs a graph and notes what each of its parts was given."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, tuple[Any, ...]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.seen[str(target)] = args
        return super().call_module(target, args, kwargs)


if "budwood" not in torch._dynamo.list_backends(exclude_tags=()):
    torch._dynamo.register_backend(budwood, name="budwood")
