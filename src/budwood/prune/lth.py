"""Lottery tickets by iterative magnitude pruning with rewinding (Frankle & Carbin 2019; Frankle et al. 2020): train,
prune a fifth of the weights that are left, set the others back to what they were, train again, and so on.

A run is all of these trainings, one after the other, each with the whole schedule of the learning rate, or, where the
weights go back to those after some epochs, with what then was left of it. Between two of them lies the first step of
the later one, in which no gradient is applied.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Cycles, Plan, Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .scored import Layered, ScoreOptions
from .structure import SINGLE


def levels(sparsity: float, share: float) -> list[float]:
    """The sparsity after each round that prunes `share` of what is left; the last is `sparsity` itself. Sparsities are
    written with a few digits (0.893 is ten rounds of a fifth), so what a twentieth of a round misses makes no other.
    """
    if sparsity <= 0:
        return []
    rounds = max(1, math.ceil(math.log(1 - sparsity) / math.log(1 - share) - 0.05))
    return [1 - (1 - share) ** k for k in range(1, rounds)] + [sparsity]


class RoundOptions(ScoreOptions):
    share: float = Field(0.2, ge=0.001, lt=1)
    """How much of what is left goes in a round."""


class TicketOptions(RoundOptions):
    rewind_epoch: int = Field(0, ge=0)
    """Back to the weights after so many epochs of the first training, from where all others go on with what then was
    left of the learning rate's schedule; 0 for those that the network comes with."""
    control: Literal["none", "random-mask", "random-reinit"] = "none"
    """What the last training has in place of the ticket: as many weights of each layer at random places, or the
    ticket's places with the weights that the network came with, each layer's in another order."""

    @model_validator(mode="after")
    def _of_single_weights(self) -> "TicketOptions":
        if self.control == "random-mask" and self.pattern != SINGLE:
            raise ValueError(f"the control random-mask draws single weights, and {self.pattern} has none")
        return self


class Rounds(Layered):
    """Trainings one after the other, the weights rewound between them."""

    Options = RoundOptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.largest(model, mask, self.sparsity)  # what cannot be reached is refused now and not after the last round
        already = mask.restricted(self.layers(model, mask)).sparsity
        self.levels_ = [max(level, already) for level in levels(self.sparsity, self.options.share)]
        cycles = self.cycles()
        length = cycles.length(plan.epochs) or 0
        self.place_ = functools.partial(cycles.place, length=length, steps_per_epoch=plan.steps_per_epoch)
        self.skip_ = cycles.skip * plan.steps_per_epoch
        self.first_ = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return mask

    def ticket(self, model: nn.Module, mask: Mask, done: int) -> Mask:
        """What the training `done` (1 for the second) starts from: prunes and rewinds."""
        raise NotImplementedError

    @torch.no_grad()
    def rewind(self, model: nn.Module, found: Mask) -> None:
        """Every parameter and buffer as it was first, and zero where it is pruned."""
        model.load_state_dict(self.first_)
        found.apply_(model)

    def _begins(self, step: int) -> int:
        """The training (0-based) that begins at `step`; 0 where none but the first does."""
        which, place = self.place_(step)
        return which if place == self.skip_ else 0

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        done = self._begins(step)
        return self.ticket(model, mask, done) if done else mask

    def looks_at_gradients(self, step: int) -> bool:
        return False

    def resets_momentum(self, step: int) -> bool:
        return self._begins(step) > 0

    def applies_gradient(self, step: int) -> bool:
        """Not in a step between two trainings: its gradient is that of the weights before they were rewound."""
        return self._begins(step) == 0


@methods.register("lth")
class LTH(Rounds):
    """As many rounds as the sparsity takes, and a training of the ticket that they find."""

    tags = Tags(
        family="lottery-ticket",
        paper="Frankle & Carbin 2019",
        gradual=True,
        at_once=False,
        edits_weights=True,
        patterns=True,
    )
    Options = TicketOptions
    brief = {"share": 0.34}
    cost = (
        "a whole training for each round and one more, 11 to 90 % where a fifth goes each time; one further copy of "
        "the network, 0.1 GB for ResNet-50"
    )
    papers = {
        "imagenet": Settings(
            model="torchvision:resnet50 --from-scratch",
            source="facebookresearch/open_lth, models/imagenet_resnet.py and pruning/sparse_global.py",
            recipe=Recipe(
                epochs=12 * 90, batch_size=1024, lr=0.4, momentum=0.9, weight_decay=1e-4, warmup_epochs=5,
                schedule="constant", milestones=(30, 60, 80), gamma=0.1, select="last",
            ),
            options={"share": 0.2},
            notes=(
                "12 trainings of 90 epochs each, as many as 90 % takes",
                "they rewind to any step, here to epochs",
                "their kernels are drawn by Kaiming's fan in, torchvision's by the fan out; their batch norm scales "
                "from 0 to 1 by chance, torchvision's are 1",
            ),
        ),
    }  # fmt: skip

    def cycles(self) -> Cycles:
        return Cycles(len(levels(self.sparsity, self.options.share)) + 1, self.options.rewind_epoch)

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.check(model, mask, plan.epochs)
        self.given_, self.seed_ = mask, plan.seed
        start = super().start(model, mask, plan)
        self.new_ = self.first_  # as long as they are the same, once in memory
        return start

    def settled(self, step: int) -> bool:
        return self.place_(step)[0] == len(self.levels_)

    def backward(self, model: nn.Module, mask: Mask, step: int, closure: Callable[[], Tensor]) -> Tensor:
        """Before the pass, which moves the statistics of batch norm: what to rewind to is kept, if this is the time."""
        if self.skip_ and step == self.skip_:
            self.first_ = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return closure()

    def ticket(self, model: nn.Module, mask: Mask, done: int) -> Mask:
        found = self.largest(model, mask, self.levels_[done - 1])
        control = self.options.control if done == len(self.levels_) else "none"
        if control == "random-mask":
            found = shuffled(found, self.given_, self.seed_)
        self.rewind(model, found)
        if control == "random-reinit":
            reinitialise_(model, self.new_, self.seed_)
            found.apply_(model)
        return found

    def state(self) -> dict[str, Tensor]:
        """What to rewind to, unless it is what the network comes with."""
        return {} if self.first_ is self.new_ else {f"first.{name}": value for name, value in self.first_.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self.first_ = {name: state[f"first.{name}"].to(first.device) for name, first in self.first_.items()}


def shuffled(found: Mask, given: Mask, seed: int) -> Mask:
    """As many weights of each layer as in `found`, at random among those that `given` keeps."""
    random = torch.Generator().manual_seed(seed)
    entries = {}
    for name, count in found.counts().items():
        places = given[name].flatten().nonzero().flatten()
        entry = torch.zeros(given[name].numel(), dtype=torch.bool)
        entry[places[torch.randperm(len(places), generator=random)[:count]]] = True
        entries[name] = entry.reshape(given[name].shape)
    return Mask(entries)


@torch.no_grad()
def reinitialise_(model: nn.Module, new: Mapping[str, Tensor], seed: int) -> None:
    """The network as it came, `new`, but the numbers of each kernel and matrix in an order drawn from `seed` alone: as
    if drawn once more, in whatever way the network draws them."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + 1)  # the network may have been drawn from `seed` itself
    model.load_state_dict(new)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            values = new[name].flatten()
            order = torch.randperm(len(values), generator=random)
            weight.copy_(values[order.to(values.device)].reshape(weight.shape))
