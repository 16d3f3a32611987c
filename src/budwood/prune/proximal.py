"""L1 regularisation by proximal gradient steps (Duchi & Singer 2009, FOBOS; Yun et al. 2021 for deep networks): after
every step of the optimizer each weight is brought towards zero by the same amount, and stays at zero if it gets there.

That alone meets no sparsity exactly. So it is what comes before a pruning: for the first part of the training the
weights are shrunk, then the smallest are pruned to the sparsity asked for, and the rest is trained without shrinkage,
which takes the penalty's bias off the weights that stay.
"""

from collections.abc import Callable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Plan, Tags
from ..core.registry import methods
from ..train.optim import learning_rate
from .score import largest_pruned
from .scored import Scored, ScoreOptions


class ProximalOptions(ScoreOptions):
    strength: float | None = Field(None, ge=0)
    """The factor of the sum of all |w| in the loss. Not set: the one by which weights that the loss does not hold go
    to zero just in time, if they are among the smallest that are to be pruned."""
    until: float = Field(0.7, gt=0, lt=1)
    """When the network is pruned, as a share of the training."""


@methods.register("l1")
class Proximal(Scored):
    """Shrinks all weights that take part, prunes the smallest, and goes on with the rest."""

    tags = Tags(
        family="regularisation", paper="Duchi & Singer 2009", gradual=True, at_once=False, edits_weights=True,
        patterns=True,
    )  # fmt: skip
    Options = ProximalOptions
    cost = (
        "at each step the time of two additions of all weights; once 0.8 s and 0.6 GB for ResNet-50, to find "
        "the smallest (measured on one core)"
    )

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        if plan.recipe is None:
            raise UserError("this method goes by the learning rate of a training")
        self.prune_to(model, mask, self.sparsity)  # what cannot be reached is refused now and not when it is pruned
        recipe, self.at_ = plan.recipe, min(int(self.options.until * plan.steps), plan.steps - 1)
        # Momentum makes of a gradient g steps of g / (1 - momentum) in all, and the penalty has to keep up with it.
        self.rates_ = [
            learning_rate(recipe, step, plan.steps_per_epoch) / (1 - recipe.momentum) for step in range(self.at_)
        ]
        self.strength_ = self.options.strength
        if self.strength_ is None:
            weights = [model.get_parameter(name) for name in self.layers(model, mask)]
            self.strength_ = largest_pruned(weights, self.sparsity) / max(sum(self.rates_), 1e-12)
        return mask

    def settled(self, step: int) -> bool:
        return step >= self.at_

    def backward(self, model: nn.Module, mask: Mask, step: int, closure: Callable[[], Tensor]) -> Tensor:
        """The proximal step of the step before comes first, so that the gradient is that of the shrunk weights."""
        self._shrink(model, mask, step - 1)
        return closure()

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        return self.prune_to(model, mask, self.sparsity) if step == self.at_ else mask

    def looks_at_gradients(self, step: int) -> bool:
        return False

    def finish(self, model: nn.Module, mask: Mask, step: int) -> Mask:
        """While weights are still shrunk: the proximal step that has not been made yet, without a pruning."""
        self._shrink(model, mask, step)
        return mask

    @torch.no_grad()
    def _shrink(self, model: nn.Module, mask: Mask, step: int) -> None:
        """The proximal step that follows the optimizer's at `step`."""
        if 0 <= step < self.at_:
            for name in self.layers(model, mask):
                proximal_(model.get_parameter(name), self.strength_ * self.rates_[step])

    def state(self) -> dict[str, Tensor]:
        return {"strength": torch.tensor(self.strength_, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.strength_ = float(state["strength"])


def proximal_(weight: Tensor, amount: float) -> None:
    """In place, the v that minimises (v - w)^2 / 2 + amount |v|: sign(w) max(|w| - amount, 0)."""
    weight.copy_(weight.sign() * (weight.abs() - amount).clamp_min(0))
