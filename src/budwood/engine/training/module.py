"""`accelerate`: a module that trains at a fixed mask through the engine, and is a PyTorch module in everything else."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...core.errors import UserError
from ..lowering.conv import DENSE_FROM
from ..native import instruction_set
from .function import through, update_running
from .plan import TrainingPlan
from .region import Region, Split, split
from .sparse import SparseConv2d, is_same

Key = tuple[int, tuple[int, ...], tuple[bool, ...], bool]


def accelerate(model: nn.Module, mask: Mapping[str, Tensor] | None = None) -> Accelerated:
    """The model, whose convolutions with zeros now train their non-zeros only; it is changed in place.

    `mask`: parameter name -> bool tensor, True = kept, as budwood.Mask; without one the zeros of the weights are it.
    Other parameters than those of convolutions stay dense: their zeros are the caller's to keep.
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
    """Puts a SparseConv2d in the place of every convolution with zeros."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Conv2d or is_same(module):
            kept = _kept(module, f"{name}.weight".lstrip("."), mask)
            if kept is not None and module.padding_mode == "zeros" and not isinstance(module.padding, str):
                _set(model, name, SparseConv2d(module, kept).train(module.training))


def _kept(conv: nn.Module, name: str, mask: Mapping[str, Tensor] | None) -> Tensor | None:
    """Which weights there are; None where all are."""
    weight = conv.weight
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
        raise UserError("a network is needed, not a single convolution; wrap it in nn.Sequential")
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
    through PyTorch alone, with the same numbers.
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
        if isinstance(parts, str):
            return f"PyTorch alone: {parts}"
        convs = parts.split.region.convolutions
        wide = max(len(c.name) for c in convs)
        lines = [f"{len(convs)} convolutions through the engine, up to {parts.split.region.output}"]
        for name, pattern in ((conv.name, conv.pattern) for conv in convs):
            kind = "depthwise" if pattern.is_depthwise else "sparse" if pattern.density < DENSE_FROM else "dense"
            lines.append(f"  {name:<{wide}}  {kind:<9} {1 - pattern.density:>4.0%} zeros  {pattern.shape}")
        lines.append(f"the rest in PyTorch; {parts.split.reason}" if parts.split.reason else "all of it")
        return "\n".join([*lines, f"last call: {self.last}"])


def _unfit(x: Any) -> str:
    if not isinstance(x, Tensor) or x.device.type != "cpu" or x.dtype != torch.float32 or x.ndim != 4:
        return "the input is no batch of float32 images on the CPU"
    if len(x) == 0 or x.requires_grad or torch.compiler.is_compiling():
        return "an empty batch, a gradient to the images, or torch.compile"
    return ""


class _Parts:
    """A region with the modules that hold its numbers, and its plans."""

    def __init__(self, model: nn.Module, parts: Split) -> None:
        self.split = parts
        self.region: Region = parts.region
        self._plans: dict[Key, TrainingPlan | str] = {}
        self._lock = threading.Lock()
        self.modules = {n.name: model.get_submodule(n.name) for n in (*self.region.convolutions, *self.region.norms)}
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
        gradients = torch.is_grad_enabled() and any(p.requires_grad for p in tensors)
        modes = tuple(norm.training for norm in self.norms)
        key = (len(x), tuple(x.shape[1:]), modes, gradients)
        with self._lock:
            if key not in self._plans:
                named = {n.name: mode for n, mode in zip(self.region.norms, modes, strict=True)}
                try:
                    made = TrainingPlan(self.region, len(x), tuple(x.shape[1:]), named, gradients, instruction_set())
                    self._plans[key] = made
                except ValueError as error:
                    self._plans[key] = str(error)
            return self._plans[key]

    def features(self, plan: TrainingPlan, x: Tensor) -> Tensor:
        """What the region makes of the images; the norms in training update their running statistics."""
        numbers = {key: self.tensor(*key) for key in self.named}
        running = {(n, w): self.tensor(n, w) for n in plan.frozen for w in ("running_mean", "running_var")}
        statistics = {name: torch.empty(2, size) for name, size in plan.measured.items()}
        features = through(plan, x, numbers, running, statistics)
        for name, found in statistics.items():
            update_running(self.modules[name], found, plan.counts[name])
        return features if self.region.keeps_plane or plan.features[1:] != (1, 1) else features.flatten(1)

    def rest(self, model: nn.Module, features: Tensor) -> Any:
        return fx.Interpreter(model, graph=self.split.rest).run(features)
