"""CrAM and CrAM+ (Peste et al. 2023), the compression-aware minimiser: trains dense weights that can be pruned at once.

Every step takes the gradient at C(w + rho g), where g is the gradient at w and C keeps the largest weights, at a level
drawn anew each time; CrAM+ adds g itself. The network is pruned when it is finished, and its batch norm statistics are
made anew.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Plan, Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .scored import Scored, ScoreOptions


class CrAMOptions(ScoreOptions):
    rho: float = Field(0.05, ge=0)
    """How far w + rho g is from w, as a factor of the gradient (which is not normalised)."""
    levels: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field((0.5, 0.7, 0.9), min_length=1)
    """The sparsities that C is drawn from; one asked for that is above them all comes in as well. With an N:M pattern
    C is that pattern."""
    plus: bool = True
    """Whether the gradient at w is added: CrAM+."""


@methods.register("cram")
class CrAM(Scored):
    """Two gradients a step. The mask in force stays as given until the end."""

    tags = Tags(
        family="regularisation", paper="Peste et al. 2023", gradual=True, at_once=False, patterns=True,
        recalibrates=True,
    )  # fmt: skip
    Options = CrAMOptions
    cost = (
        "two forward and backward passes a step, so twice the time; beside them the largest of all weights at every "
        "step, on the CPU: 1.0 s for ResNet-50 on one core (measured); two further copies of the weights, 0.2 GB"
    )
    papers = {
        "multi": Settings(
            model="torchvision:resnet50 --from-scratch",
            source="IST-DASLab/CrAM, configs/imagenet_resnet50_cram_plus_multi_spgrad.yaml and run_scripts; README",
            recipe=Recipe(
                epochs=100, batch_size=512, lr=0.2, momentum=0.9, weight_decay=1e-4, warmup_epochs=5, select="last"
            ),
            options={"rho": 0.05, "levels": [0.5, 0.7, 0.9], "plus": True},
            results={0.0: 77.3, 0.8: 75.8, 0.9: 74.8},
            notes=("batch norm statistics from 1000 training images",),
        ),
        "2:4": Settings(
            model="torchvision:resnet50 --from-scratch",
            source="IST-DASLab/CrAM, configs/imagenet_resnet50_cram_NM_plus_spgrad.yaml; README",
            recipe=Recipe(
                epochs=100, batch_size=512, lr=0.2, momentum=0.9, weight_decay=1e-4, warmup_epochs=5, select="last"
            ),
            options={"rho": 0.05, "pattern": "2:4", "plus": True},
            sparsity=0.5,
            results={0.5: 77.2},
            notes=("their C is 2:4 or 4:8 with equal chance at every step, and prunes the first layer too",),
        ),
    }

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        already = mask.restricted(self.layers(model, mask)).sparsity
        asked = [self.sparsity] if self.sparsity > max(self.options.levels) else []
        self.levels_ = [max(level, already) for level in (*self.options.levels, *asked)]
        if self.structure.kind == "n:m":
            self.levels_ = [self.sparsity]
        for level in (self.sparsity, *self.levels_):
            self.prune_to(model, mask, level)  # what cannot be reached is refused now and not at the end
        self.plan_ = plan
        return mask

    def backward(self, model: nn.Module, mask: Mask, step: int, closure: Callable[[], Tensor]) -> Tensor:
        """The loss of the dense pass. Buffers, so the statistics of batch norm, are that pass's alone."""
        loss = closure()
        parameters = [p for p in model.parameters() if p.grad is not None]
        weights, buffers = [p.detach().clone() for p in parameters], [b.clone() for b in model.buffers()]
        clean = [_gradient(p).clone() for p in parameters]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, clean, strict=True):
                parameter.add_(gradient, alpha=self.options.rho)
                _gradient(parameter).zero_()
        compressed = self.prune_to(model, mask, self._level(step))
        compressed.apply_(model)
        closure()
        compressed.apply_to_gradients_(model)
        with torch.no_grad():
            for parameter, weight, gradient in zip(parameters, weights, clean, strict=True):
                parameter.copy_(weight)
                if self.options.plus:
                    _gradient(parameter).add_(gradient)
            for buffer, kept in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        return loss

    def looks_at_gradients(self, step: int) -> bool:
        """C lies in the mask, so that pruned weights are zero in both passes."""
        return False

    def _level(self, step: int) -> float:
        """The sparsity of C at `step`."""
        return self.levels_[int(torch.randint(len(self.levels_), (), generator=self.plan_.random(step)))]

    def finish(self, model: nn.Module, mask: Mask, step: int) -> Mask:
        found = self.prune_to(model, mask, self.sparsity)
        found.apply_(model)
        return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
