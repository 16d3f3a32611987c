"""Top-KAST, top-K always sparse training (Jayakumar et al. 2020): the largest weights A are forward, and a larger set B
around them learns, so that weights can grow into A and fall out of it."""

from collections.abc import Callable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Plan, Settings, Tags
from ..core.registry import methods
from .allocation import Allocation
from .regrow import IMAGENET
from .scored import Layered, ScoreOptions


class TopKASTOptions(ScoreOptions):
    allocation: Allocation = "uniform"
    """How the sparsities of A and B are shared among the layers: the same in each, as in the paper, or another."""
    backward: float = Field(0.5, ge=0, lt=1)
    """Sparsity of B, the weights that learn; below the sparsity asked for, or none could grow into A."""
    penalty: float | None = Field(None, ge=0)
    """Weight decay of the weights in A. Not set: the training's. Of those in B alone it is that over the density of A,
    which keeps small ones from coming and going."""
    every: int = Field(10, ge=1)
    """Steps between two choices of A and B. The paper has 1, and finds 100 as good."""


@methods.register("topkast")
class TopKAST(Layered):
    """Chooses A and B by |w|, before the forward pass of every `every`-th step.

    All weights stay stored, so the mask in force is the one that the network comes with; those outside of B are not
    touched. The network that is handed over is A, chosen anew from the last weights.
    """

    tags = Tags(
        family="re-growth", paper="Jayakumar et al. 2020", gradual=True, at_once=False, decays=True, patterns=True
    )
    Options = TopKASTOptions
    brief = {"every": 2, "backward": 0.3}
    cost = (
        "two selections over all weights at each choice, 1 s for ResNet-50 on one core (measured); memory for the "
        "weights once more in the forward pass and for A and B, 102 MB and 51 MB for ResNet-50 (derived)"
    )
    papers = {
        "resnet50": Settings(
            "torchvision:resnet50 --from-scratch",
            "Jayakumar et al. 2020 for the method; google-research/rigl for the training",
            IMAGENET,
            {"allocation": "uniform", "backward": 0.5, "penalty": 1e-4, "every": 1},
            notes=(
                "no code of the authors was found, nor their training's settings: it is RigL's here",
                "according to neuralmagic/sparseml, which chooses over all layers together, they used no momentum",
            ),
        ),
    }

    def check(self, model: nn.Module, mask: Mask, epochs: int) -> None:
        super().check(model, mask, epochs)
        if 0 < self.sparsity <= self.options.backward:
            raise UserError(
                f"backward={self.options.backward:g} leaves no weight to grow beside the sparsity {self.sparsity:g}; "
                f"lower it (--option backward={self.sparsity / 2:g})"
            )

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        own = plan.recipe.weight_decay if plan.recipe is not None else 0.0
        self.penalty_ = own if self.options.penalty is None else self.options.penalty
        self._choose(model, mask)
        return mask

    def _choose(self, model: nn.Module, mask: Mask) -> None:
        forward = self.largest(model, mask, self.sparsity)
        already = mask.restricted(self.layers(model, mask)).sparsity
        around = self.largest(model, mask, max(min(self.options.backward, self.sparsity), already))
        # A layer's whole weights are rounded for A and B apart; A lies in B in any case.
        self.backward_ = Mask({name: around[name] | forward[name] for name in mask})
        device = next(model.parameters()).device
        self.forward_ = {name: kept.to(device) for name, kept in forward.items()}

    def backward(self, model: nn.Module, mask: Mask, step: int, closure: Callable[[], Tensor]) -> Tensor:
        if step > 0 and step % self.options.every == 0:
            self._choose(model, mask)
        return closure()

    def forward_weights(self, weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
        """w in A, 0 elsewhere; the gradient is passed on to all."""
        return {name: w + (w * self.forward_[name] - w).detach() for name, w in weights.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        for name, forward in self.forward_.items():
            weight = model.get_parameter(name)
            if weight.grad is not None:
                more = torch.where(forward, 1.0, 1 / (1 - self.sparsity))
                weight.grad.add_(weight * more, alpha=self.penalty_)
        return mask

    def trains(self, mask: Mask) -> Mask:
        return self.backward_

    def finish(self, model: nn.Module, mask: Mask, step: int) -> Mask:
        found = self.largest(model, mask, self.sparsity)
        found.apply_(model)
        return found

    def state(self) -> dict[str, Tensor]:
        forward = {f"forward.{name}": kept for name, kept in self.forward_.items()}
        backward = {f"backward.{name}": self.backward_[name] for name in self.backward_}
        return forward | backward

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.forward_ = {name: state[f"forward.{name}"].to(kept.device) for name, kept in self.forward_.items()}
        self.backward_ = Mask({name: state[f"backward.{name}"] for name in self.backward_})
