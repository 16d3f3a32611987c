"""Drop and grow: what RigL, SET and SNFS share. From time to time every layer drops its smallest weights and grows as
many others; the methods differ in which."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Plan
from ..core.spec import Recipe
from .allocation import Allocation, mask_by_score
from .score import magnitude
from .scored import Layered, LayerOptions

IMAGENET = Recipe(
    epochs=102, batch_size=4096, lr=1.6, momentum=0.9, weight_decay=1e-4, schedule="constant", milestones=(30, 70, 90),
    label_smoothing=0.1, select="last",
)  # fmt: skip
"""How google-research/rigl trains ResNet-50: 32,000 steps."""
IMAGENET_NOTES = (
    "with Nesterov momentum there",
    "weight decay is for kernels alone there, not for batch norm",
    "25,000 of 32,000 steps with moves, of which this is the share; a last, smaller batch makes an epoch one step "
    "longer here",
)
BEFORE = "weights move before the optimizer's step, and after it in google-research/rigl"
UNIFORM = {"allocation": "uniform", "keep_dense": ["first"], "every": 100, "end": 0.78125}
ERK = {"allocation": "erk", "every": 100, "end": 0.78125}


class RegrowOptions(LayerOptions):
    allocation: Allocation = "erk"
    """How the sparsity is shared among the layers at the start (str: ResNet-50 alone)."""
    initial: Literal["random", "magnitude"] = "random"
    """Which weights there are at the start: any (random), as the authors have it, who train from scratch; or the
    largest (magnitude), which a network that has been trained before should keep."""
    alpha: float = Field(0.3, gt=0, lt=1)
    """Share of a layer's weights that is replaced at the first move; along a cosine it falls to 0."""
    every: int | None = Field(None, ge=1)
    """Steps between two moves, the first of which is at step 0. Not set: 100, as the authors have it, or fewer in a
    training so short that it would have less than ten moves (but not fewer than ten steps)."""
    end: float = Field(0.75, gt=0, le=1)
    """Share of the training after which no weight moves. The authors have 25,000 of 32,000 steps, 0.78125."""


class Regrow(Layered):
    """A method says what a pruned weight promises (`promises`); the highest are grown.

    What was just dropped may be grown again and then keeps its value; other weights come in at zero. Ties go to the
    weight that comes first (the authors add noise of 1e-5 to the magnitudes). A network that is sparse already keeps
    zeros at the start, no more: which weights it has may change all over the layer, as in a training gone on with.
    """

    Options = RegrowOptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.plan_ = plan
        scores = magnitude(model, self.layers(model, mask))
        if self.options.initial == "random":
            scores = self.chances(scores, 0)
        return self.select(scores, mask, self.sparsity)

    def chances(self, like: Mapping[str, Tensor], salt: int) -> dict[str, Tensor]:
        """Name -> random numbers in the tensor's shape, other ones for every seed and salt."""
        random = self.plan_.random(salt)
        return {name: torch.rand(tensor.shape, generator=random) for name, tensor in like.items()}

    @property
    def end(self) -> float:
        """The step from which on nothing moves."""
        return float(self.options.end * self.plan_.steps)

    @property
    def every(self) -> int:
        """Steps between two moves."""
        return int(self.options.every or min(100, max(10, int(self.end) // 10)))

    def moves(self, step: int) -> bool:
        return step < self.end and step % self.every == 0

    def share(self, step: int) -> float:
        """Of a layer's weights that are dropped at `step`."""
        return float(self.options.alpha / 2 * (1 + math.cos(math.pi * step / self.end)))

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        return self.moved(model, mask, step) if self.moves(step) else mask

    def looks_at_gradients(self, step: int) -> bool:
        return type(self).update is not Regrow.update

    def moved(self, model: nn.Module, mask: Mask, step: int) -> Mask:
        """The mask after the drop and the growth at `step`."""
        names = self.layers(model, mask)
        kept, sizes = mask.restricted(names).counts(), magnitude(model, names)
        dropped = {name: int(self.share(step) * kept[name]) for name in names}
        stay = {name: highest(name, sizes[name], mask[name], kept[name] - dropped[name]) for name in names}
        grown, promises = self.grown(mask, dropped), self.promises(model, names, step)
        come = {name: highest(name, promises[name], ~stay[name], grown[name]) for name in names}
        found = Mask(dict(mask) | {name: stay[name] | come[name] for name in names})
        for name, new in found.revived_since(mask).items():
            weight = model.get_parameter(name)
            if weight.grad is not None:  # they begin to learn at the next step
                weight.grad.masked_fill_(new.to(weight.grad.device), 0)
        return mask if found == mask else found

    def promises(self, model: nn.Module, names: list[str], step: int) -> dict[str, Tensor]:
        """Name -> how much each weight that is not kept promises."""
        raise NotImplementedError

    def grown(self, mask: Mask, dropped: Mapping[str, int]) -> Mapping[str, int]:
        """Name -> how many weights to grow, of as many in all as `dropped` says that go."""
        return dropped


def highest(name: str, scores: Tensor, among: Tensor, count: int) -> Tensor:
    """True at the `count` highest scores where `among` is True; of equal ones the first. UserError where a score is
    not finite."""
    found = mask_by_score({name: scores}, Mask({name: among}), 1 - count / scores.numel(), "global")
    return found[name]


def gradient(model: nn.Module, name: str) -> Tensor:
    """A parameter's gradient; zeros where the loss does not depend on it."""
    parameter: Any = model.get_parameter(name)
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()
