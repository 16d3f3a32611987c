"""What a pruning method is. The base class is training at a fixed mask; with a mask of ones, dense training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .mask import Mask


@dataclass(frozen=True)
class Tags:
    """What a method does, told truly: the verbs and the contract tests go by them."""

    family: str = "controls"
    paper: str = ""
    gradual: bool = False
    """It prunes during training; it cannot prune a network that is not trained."""
    edits_weights: bool = False
    """It changes kept weights itself (WoodFisher's update, STR's materialisation)."""
    learns_thresholds: bool = False
    """It brings parameters of its own, trained with the network's."""
    revives: bool = False
    """A pruned weight may be kept again later."""
    per_sample_gradients: bool = False
    density: Literal["exact", "indirect", "given"] = "exact"
    """Whether the sparsity asked for is met to one weight, only steered, or not looked at: the mask is as given."""


@dataclass(frozen=True)
class Plan:
    """How long the training is that a method prunes in."""

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class Options(BaseModel):
    """The settings of a method: typed, validated, part of the RunSpec. A method extends it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Pruner:
    """Fixed-mask training: the mask given at the start is the mask in force until the end.

    Life of a method inside `train.fit`, step by step (`fit` documents the order it keeps):
    `start` once; then per step `forward_weights` inside every forward pass, `backward` around the passes,
    `update` with the gradients in place, `applies_gradient` before the optimizer; `finish` once.
    `__init__` only stores; what is learned or counted lives in attributes saved by `state`.
    """

    tags: ClassVar[Tags] = Tags(density="given")
    Options: ClassVar[type[Options]] = Options

    def __init__(self, sparsity: float = 0.0, options: Any = None) -> None:
        self.sparsity = sparsity
        self.options = self.Options() if options is None else options

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        """The mask in force at the first step, from the mask the network comes with (ones if dense)."""
        return mask

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        """The mask in force after step `step` (0-based). Gradients are dense and in place; weights that come
        back should be set to what the method says (they are zero). Returns `mask` itself for no change."""
        return mask

    def settled(self, step: int) -> bool:
        """True if the mask in force after `step` has the final sparsity: only then may an epoch be "best"."""
        return True

    def forward_weights(self, weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor] | None:
        """Name -> the weight the forward pass uses in place of the stored one, differentiable; None for none."""
        return None

    def backward(self, model: nn.Module, mask: Mask, closure: Callable[[], Tensor]) -> Tensor:
        """Leave the step's gradients in place and return the loss. `closure()` does one forward and backward
        pass of this step's batch and adds to the gradients; CrAM and SAM-like methods call it twice."""
        return closure()

    def applies_gradient(self, step: int) -> bool:
        """False where the optimizer must not step (RigL at a mask update)."""
        return True

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the method's own, trained with the network's."""
        return []

    def finish(self, model: nn.Module, mask: Mask) -> Mask:
        """The final mask. May write final weights into `model`, which after this is a plain network."""
        return mask

    def state(self) -> dict[str, Tensor]:
        """What `load_state` needs to go on exactly (called between steps, after `start`)."""
        return {f"parameter{i}": p.detach() for i, p in enumerate(self.parameters())}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self.parameters()):
            parameter.copy_(state[f"parameter{i}"])
