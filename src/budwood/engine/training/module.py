"""`accelerate`: a module that trains at a fixed mask through the engine, and is a PyTorch module in everything else."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...core.errors import UserError
from ..native import instruction_set
from .function import through, update_running
from .linear import SparseLinear
from .plan import TrainingPlan
from .region import Region, Split, split
from .sparse import SparseConv2d, SparseWeight, is_same

Key = tuple[int, tuple[int, ...], tuple[bool, ...], bool, bool]


def accelerate(model: nn.Module, mask: Mapping[str, Tensor] | None = None) -> Accelerated:
    """The model, whose convolutions and linear layers with zeros now train their non-zeros only; changed in place.

    `mask`: parameter name -> bool tensor, True = kept, as budwood.Mask; without one the zeros of the weights are it.
    Other parameters than the weights of those stay dense: their zeros are the caller's to keep.
    Raises UserError where an optimizer already holds the weights, or where the mask does not fit.
    """
    if isinstance(model, Accelerated):
        raise UserError("this network is accelerated already")
    _refuse_optimizers(model)
    unknown = sorted(set(mask or {}) - set(dict(model.named_parameters())))
    if unknown:
        raise UserError(f"the mask names {unknown[0]!r}, which this network does not have: give this network's")
    thin_(model, mask)
    return Accelerated(model)


def thin_(model: nn.Module, mask: Mapping[str, Tensor] | None) -> None:
    """Puts a SparseWeight in the place of every convolution and linear layer with zeros."""
    for name, module in list(model.named_modules()):
        kind = _sparse_kind(model, name, module)
        kept = None if kind is None else _kept(module, f"{name}.weight".lstrip("."), mask)
        if kind is not None and kept is not None:
            _set(model, name, kind(module, kept).train(module.training))


def _sparse_kind(model: nn.Module, name: str, module: nn.Module) -> Callable[[Any, Tensor], SparseWeight] | None:
    """What a layer becomes where it has zeros, None where it stays."""
    if type(module) is nn.Linear:
        # PyTorch's own transformer layer hands its linear layers' weights to a kernel that wants them dense.
        inside = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.TransformerEncoderLayer)
        return None if inside else SparseLinear
    if type(module) is nn.Conv2d or is_same(module):
        return SparseConv2d if module.padding_mode == "zeros" and not isinstance(module.padding, str) else None
    return None


def _kept(layer: nn.Module, name: str, mask: Mapping[str, Tensor] | None) -> Tensor | None:
    """Which weights there are; None where all are."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if mask is not None and name not in mask:
        return None
    kept = weight.detach() != 0 if mask is None else mask[name]
    if kept.shape != weight.shape:
        raise UserError(
            f"the mask of {name} is {tuple(kept.shape)}, the weight {tuple(weight.shape)}: give this network's"
        )
    return None if bool(kept.all()) else kept.to(weight.device)


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    if not name:
        raise UserError("a network is needed, not a single layer; wrap it in nn.Sequential")
    setattr(model.get_submodule(parent), child, module)


def _refuse_optimizers(model: nn.Module) -> None:
    ours = {id(p) for p in model.parameters()}
    for found in gc.get_objects():
        if not issubclass(type(found), torch.optim.Optimizer):  # isinstance would wake lazy objects
            continue
        if any(id(p) in ours for group in found.param_groups for p in group["params"]):
            raise UserError("an optimizer holds this network's weights: call accelerate first, then build it")


class Accelerated(nn.Module):
    """The network under its own names: parameters, buffers, submodules and state dict are the model's.

    Called with float32 images on the CPU it computes the beginning of the network through the engine and the rest in
    PyTorch; under autocast that beginning stays in float32. Any other input, and a network with hooks inside, goes
    through PyTorch alone, with the same numbers. Linear layers with zeros choose for themselves.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["_model"] = model
        self.__dict__["_engine"] = _Engine()
        # The very dictionaries: what is changed here is changed there.
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self.training = model.training

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        engine: _Engine = self.__dict__["_engine"]
        model: nn.Module = self.__dict__["_model"]
        found = None if args or kwargs else engine.prepared(model, x)
        if found is None:
            return model(x, *args, **kwargs)
        parts, plan = found
        return parts.rest(model, parts.features(plan, x))

    def train(self, mode: bool = True) -> Accelerated:
        super().train(mode)
        self.__dict__["_model"].training = mode
        return self

    @property
    def last_call(self) -> str:
        """What the last call went through, and why not through the engine."""
        engine: _Engine = self.__dict__["_engine"]
        return engine.last

    @property
    def refused(self) -> str:
        """Why the last call went through PyTorch alone; empty where it did not."""
        engine: _Engine = self.__dict__["_engine"]
        return engine.refused

    @property
    def refusal(self) -> str:
        """Why nothing of the network goes through the engine, as it is now; empty where something does."""
        engine: _Engine = self.__dict__["_engine"]
        parts = engine.parts(self.__dict__["_model"])
        return parts if isinstance(parts, str) else ""

    def explain(self) -> str:
        """Which layers go through the engine, why not more, and what the last call did."""
        engine: _Engine = self.__dict__["_engine"]
        return engine.explain(self.__dict__["_model"])


class _Engine:
    """The plans of a network, made at their first use. A copy begins without any."""

    def __init__(self) -> None:
        self._parts: dict[bool, _Parts | str] = {}  # by training or evaluation
        self._lock = threading.Lock()
        self.last, self.refused = "not called yet", ""

    def __reduce__(self) -> Any:
        return _Engine, ()

    def parts(self, model: nn.Module) -> _Parts | str:
        """The network cut in two, or why it cannot be."""
        with self._lock:
            if model.training not in self._parts:
                try:
                    self._parts[model.training] = _Parts(model, split(model))
                except UserError as error:
                    self._parts[model.training] = str(error)
        return self._parts[model.training]

    def prepared(self, model: nn.Module, x: Tensor) -> tuple[_Parts, TrainingPlan] | None:
        """What the images go through, None for PyTorch alone."""
        why = _unfit(x)
        if not why:
            parts = self.parts(model)
            found = parts if isinstance(parts, str) else parts.plan(x)
            if not isinstance(found, str) and not isinstance(parts, str):
                self.refused = ""
                self.last = f"{len(x)} images {tuple(x.shape[1:])}: engine, {found.arena_bytes / 2**20:.0f} MiB"
                return parts, found
            why = str(found)
        self.refused, self.last = why, f"PyTorch alone: {why}"
        return None

    def explain(self, model: nn.Module) -> str:
        parts = self.parts(model)
        lines = [f"PyTorch alone: {parts}"] if isinstance(parts, str) else parts.explain()
        linear = {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear)}
        if linear:
            lines.append("linear layers with zeros, each by itself")
        wide = max(map(len, linear), default=0)
        lines += [f"  {n:<{wide}}  {1 - m.density:>4.0%} zeros  {m.shape!s:<18}  {m.kind}" for n, m in linear.items()]
        return "\n".join([*lines, f"last call: {self.last}"])


def _unfit(x: Any) -> str:
    if not isinstance(x, Tensor) or x.device.type != "cpu" or x.dtype != torch.float32 or x.ndim != 4:
        return "the input is no batch of float32 images on the CPU"
    if len(x) == 0 or torch.compiler.is_compiling():
        return "an empty batch, or torch.compile"
    return ""


class _Parts:
    """A region with the modules that hold its numbers, and its plans."""

    def __init__(self, model: nn.Module, parts: Split) -> None:
        self.split = parts
        self.region: Region = parts.region
        self._plans: dict[Key, TrainingPlan | str] = {}
        self.latest: TrainingPlan | None = None
        self._lock = threading.Lock()
        self.modules = parts.modules
        self.norms = [self.modules[n.name] for n in self.region.norms]
        self.named = [(n.name, what) for n in self.region.convolutions for what in ("weight",)]
        self.named += [(n.name, what) for n in self.region.norms for what in ("weight", "bias")]
        self.hooked = list(model.modules())[1:]

    def tensor(self, name: str, what: str) -> Tensor:
        found = getattr(self.modules[name], what)
        assert isinstance(found, Tensor)
        return found

    def plan(self, x: Tensor) -> TrainingPlan | str:
        """The plan for these images, or why there is none."""
        tensors = [self.tensor(*key) for key in self.named]
        if any(p.dtype != torch.float32 or p.device.type != "cpu" or not p.is_contiguous() for p in tensors):
            return "the weights are not float32 on the CPU"
        if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in self.hooked):
            return "a module inside has hooks"
        to_image = torch.is_grad_enabled() and x.requires_grad
        gradients = to_image or (torch.is_grad_enabled() and any(p.requires_grad for p in tensors))
        modes = tuple(norm.training for norm in self.norms)
        key = (len(x), tuple(x.shape[1:]), modes, gradients, to_image)
        with self._lock:
            if key not in self._plans:
                named = {n.name: mode for n, mode in zip(self.region.norms, modes, strict=True)}
                try:
                    shape, isa = tuple(x.shape[1:]), instruction_set()
                    self._plans[key] = TrainingPlan(self.region, len(x), shape, named, gradients, isa, to_image)
                except ValueError as error:
                    self._plans[key] = str(error)
            found = self._plans[key]
            if isinstance(found, TrainingPlan) and found is not self.latest:
                if self.latest is not None:
                    self.latest.free()
                self.latest = found
            return found

    def features(self, plan: TrainingPlan, x: Tensor) -> Tensor:
        """What the region makes of the images; the norms in training update their running statistics."""
        numbers = {key: self.tensor(*key) for key in self.named}
        running = {(n, w): self.tensor(n, w) for n in plan.frozen for w in ("running_mean", "running_var")}
        statistics = {name: torch.empty(2, size) for name, size in plan.measured.items()}
        features = through(plan, x, numbers, running, statistics)
        for name, found in statistics.items():
            norm = self.modules[name]
            assert isinstance(norm, nn.BatchNorm2d)
            update_running(norm, found, plan.counts[name])
        return features if self.region.keeps_plane or plan.features[1:] != (1, 1) else features.flatten(1)

    def explain(self) -> list[str]:
        convs = [conv for conv in self.region.convolutions if isinstance(self.modules[conv.name], nn.Module)]
        reason = self.split.reason
        wide = max(len(c.name) for c in convs)
        lines = [f"{len(convs)} convolutions through the engine, up to {self.region.output}"]
        kernels = {} if self.latest is None else self.latest.kernels()
        for name, pattern in ((conv.name, conv.pattern) for conv in convs):
            line = (
                f"  {name:<{wide}}  {1 - pattern.density:>4.0%} zeros  {pattern.shape!s:<18}  {kernels.get(name, '')}"
            )
            lines.append(line.rstrip())
        return [*lines, f"the rest in PyTorch; {reason}" if reason else "all of it"]

    def rest(self, model: nn.Module, features: Tensor) -> Any:
        return fx.Interpreter(model, graph=self.split.rest).run(features)
