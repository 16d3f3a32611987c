"""What a pruning method is. The base class is training at a fixed mask; with a mask of ones, dense training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .errors import UserError
from .mask import Mask
from .spec import Recipe

Family = Literal[
    "magnitude", "second-order", "re-growth", "lottery-ticket", "regularisation", "one-shot", "controls",
]  # fmt: skip


@dataclass(frozen=True)
class Tags:
    """What a method does, told truly: the verbs and the contract tests go by them."""

    family: Family = "controls"
    paper: str = ""
    gradual: bool = False
    """Its mask changes during a training: pruned little by little, or moved. Where there is one, it is given it."""
    at_once: bool = True
    """It can prune without a training."""
    seeded: bool = False
    """What it prunes at once depends on the seed."""
    edits_weights: bool = False
    """It changes kept weights itself (WoodFisher's update, STR's materialisation)."""
    learns_thresholds: bool = False
    """It brings parameters of its own, trained with the network's."""
    revives: bool = False
    """A pruned weight may be kept again later."""
    data: Literal["none", "images", "labels"] = "none"
    """What it must see beyond the batches of the training (`Plan.batches`): nothing, images, or images with labels,
    for which the network's own answers stand in where there are none."""
    gradients: bool = False
    """It chooses weights by gradients of the loss."""
    patterns: bool = False
    """It takes the option `pattern`: N:M and 1xB beside single weights."""
    recalibrates: bool = False
    """The network it hands over needs batch norm statistics of its own, also where it is trained."""
    decays: bool = False
    """It sees to the weight decay of the weights in the mask itself; the optimizer leaves them alone."""
    density: Literal["exact", "indirect", "given"] = "exact"
    """Whether the sparsity asked for is met to one weight, aimed at (and missed where it must be), or not looked at:
    the mask is as given."""

    @property
    def needs_training(self) -> bool:
        """Whether it prunes upstream in a training alone: GMP at once is magnitude pruning."""
        return not self.at_once or (self.gradual and self.data == "none")


Batches = Iterator[tuple[Tensor, Tensor]]
"""Images (N, 3, H, W) float32 channels-last, and class indices (N,), on the network's device."""


@dataclass(frozen=True)
class Plan:
    """The training that a method prunes in, and what it may draw on. Pruning at once is a training of no steps."""

    epochs: int
    steps_per_epoch: int
    seed: int = 0
    """Of what a method leaves to chance."""
    batches: Callable[[int, int], Batches] | None = None
    """`batches(size, salt)`: training images, again and again, in an order that follows from seed and salt (a step,
    say) alone; drawing them leaves all other randomness as it is. None where there are no images."""
    labelled: bool = True
    """False where the classes in `batches` mean nothing."""
    scratch: Path | None = None
    """A folder for what is large or dear to make again; it outlives a killed run, and goes when the run is done."""
    progress: Callable[[int, int], None] | None = None
    """Told (done, of how many) by a method that takes long."""
    recipe: Recipe | None = None
    """How the training goes, for a method that depends on its learning rate or weight decay. None where there is
    none."""

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def random(self, salt: int = 0) -> torch.Generator:
        """Random numbers that follow from the seed and a salt (a step, say) alone, and leave all others as they are."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + salt)

    def told(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


@dataclass(frozen=True)
class Cycles:
    """Trainings one after the other in one run, each with the schedule of the learning rate from its start; all but the
    first begin `skip` epochs into it, where their weights were rewound to."""

    count: int = 1
    skip: int = 0

    def length(self, epochs: int) -> int | None:
        """Epochs of the first training where all together have so many; None where no number of epochs fits."""
        length, left = divmod(epochs + (self.count - 1) * self.skip, self.count)
        return None if left or (self.count > 1 and length <= self.skip) else length

    def fitting(self, epochs: int) -> int:
        """The least number of epochs that fits, and is not below `epochs`."""
        if self.count == 1:
            return epochs
        together = (self.count - 1) * self.skip
        return self.count * max(self.skip + 1, -(-(epochs + together) // self.count)) - together

    def place(self, step: int, length: int, steps_per_epoch: int) -> tuple[int, int]:
        """Which training a step belongs to (0-based), and which step of the schedule it is; `length` as above."""
        first, skip = length * steps_per_epoch, self.skip * steps_per_epoch
        if self.count == 1 or step < first:
            return 0, step
        which, rest = divmod(step - first, first - skip)
        return which + 1, skip + rest


@dataclass(frozen=True)
class Settings:
    """How a method's authors used it: what `budwood recipe show METHOD --paper` writes."""

    model: str
    source: str
    """Repository and file, or table of the paper, that these are from."""
    recipe: Recipe
    options: Mapping[str, Any] = field(default_factory=dict)
    sparsity: float = 0.9
    data: str = "ImageNet"
    results: Mapping[float, float] = field(default_factory=dict)
    """Sparsity -> top-1 accuracy in percent that they report."""
    notes: tuple[str, ...] = ()
    """What the fields cannot say."""


class Options(BaseModel):
    """The settings of a method: typed, validated, part of the RunSpec. A method extends it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Pruner:
    """Fixed-mask training: the mask given at the start is the mask in force until the end.

    Life of a method inside `train.fit`, step by step (`fit` documents the order it keeps):
    `start` first, again in a run that goes on (then `load_state`), so what it draws is `plan.random`'s; then per step
    `forward_weights` inside every forward pass, `backward` around the passes, `update` with the gradients in place,
    `applies_gradient` before the optimizer; after each epoch `finish`, on a copy.
    A function is told the step it is called for, 0-based, in a run that goes on as well, so that no method counts.
    `__init__` only stores; what is learned lives in attributes saved by `state`.
    """

    tags: ClassVar[Tags] = Tags(density="given")
    Options: ClassVar[type[Options]] = Options
    brief: ClassVar[dict[str, Any]] = {}
    """Options that make it do something in the sixteen steps of the contract's training."""
    papers: ClassVar[Mapping[str, Settings]] = {}
    """The authors' settings by a short name; the first is the one that is meant without a name."""
    cost: ClassVar[str] = "none beyond the training"
    """Time and memory it takes beside the training itself, as a formula with a figure for ResNet-50."""

    def __init__(self, sparsity: float = 0.0, options: Any = None) -> None:
        self.sparsity = sparsity
        self.options: Any = self.Options() if options is None else options

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        """The mask in force at the first step, from the mask the network comes with (ones if dense)."""
        return mask

    def layers(self, model: nn.Module, mask: Mask) -> list[str]:
        """Names of the weights that take part; the sparsity asked for is theirs."""
        return list(mask)

    def check(self, model: nn.Module, mask: Mask, epochs: int) -> None:
        """Raise UserError where it can be told beforehand that this network cannot be pruned as asked, or not in so
        many epochs (0: at once)."""
        if epochs == 0 and not self.tags.at_once:
            raise UserError("this method prunes while it trains, and there is no training; set --epochs to 1 or more")
        cycles = self.cycles()
        if epochs and cycles.length(epochs) is None:
            shorter = f", all but the first {cycles.skip} shorter" if cycles.skip else " of equal length"
            fitting = cycles.fitting(epochs)
            raise UserError(
                f"{epochs} epochs do not divide into {cycles.count} trainings{shorter}; set --epochs to {fitting}"
            )

    def unit(self) -> int:
        """How many weights are pruned together at least: the density is exact to this many."""
        return 1

    def cycles(self) -> Cycles:
        """The trainings that a run is made of: one, but for lottery tickets."""
        return Cycles()

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        """The mask in force after step `step` (0-based). Gradients are in place, dense where `looks_at_gradients`
        says so; weights that come back should be set to what the method says (they are zero). Returns `mask` itself
        for no change."""
        return mask

    def looks_at_gradients(self, step: int) -> bool:
        """Whether gradients of pruned weights count at `step`: `backward` or `update` goes by them, or a weight that
        `update` revives is trained by its own. Where not they may be anything, and are not computed by the engine.

        A method with a `backward` or an `update` of its own that says nothing is taken to look at them always."""
        return type(self).update is not Pruner.update or type(self).backward is not Pruner.backward

    def settled(self, step: int) -> bool:
        """True if the mask in force after `step` has the final sparsity: only then may an epoch be "best"."""
        return True

    def forward_weights(self, weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor] | None:
        """Name -> the weight the forward pass uses in place of the stored one, differentiable; None for none."""
        return None

    def backward(self, model: nn.Module, mask: Mask, step: int, closure: Callable[[], Tensor]) -> Tensor:
        """Leave the gradients of `step` in place and return the loss. `closure()` does one forward and backward
        pass of this step's batch and adds to the gradients; CrAM and SAM-like methods call it twice."""
        return closure()

    def resets_momentum(self, step: int) -> bool:
        """True where the optimizer must forget everything at `step`, right after `update`; what it knows of revived
        weights it forgets in any case."""
        return False

    def trains(self, mask: Mask) -> Mask:
        """The weights that the optimizer may change; others keep their value, and no momentum. `mask` itself, unless
        weights outside of it are stored (Top-KAST)."""
        return mask

    def applies_gradient(self, step: int) -> bool:
        """False where the optimizer must not step (RigL at a mask update)."""
        return True

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the method's own, trained with the network's."""
        return []

    def finish(self, model: nn.Module, mask: Mask, step: int) -> Mask:
        """The final mask, if `step` was the last. May write final weights into `model`, which after this is a plain
        network."""
        return mask

    def state(self) -> dict[str, Tensor]:
        """What `load_state` needs to go on exactly (called between steps, after `start`)."""
        return {f"parameter{i}": p.detach() for i, p in enumerate(self.parameters())}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self.parameters()):
            parameter.copy_(state[f"parameter{i}"])
