"""ST-3 (Vanderschueren & De Vleeschouwer 2023): straight-through gradients, soft thresholds, sparse training.

The forward pass uses the largest weights alone, each brought towards zero by the threshold th, and each output
channel scaled up for what it lost: a (w - sign(w) th). The gradient goes to all weights as if that were w itself, so
pruned weights go on learning, and may come back. The threshold follows from the sparsity, which grows along a cubic
curve.
"""

import bisect
from collections.abc import Callable, Mapping

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Plan, Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .schedule import Cubic
from .score import magnitude
from .scored import Layered, LayerOptions

EACH_STEP = 45 * 2503 + 1
"""So many updates are one at every step from the authors' epoch 5 to 50, both included."""


class ST3Options(LayerOptions):
    schedule: Cubic = Cubic(start=0.05, end=0.5, updates=1000)
    """When how much of the network is left out of the forward pass."""
    scaled: bool = False
    """ST-3 sigma: weights are compared after multiplication by the root of the sum of their layer's extents, which
    spreads the sparsity more evenly and saves more operations."""

    @model_validator(mode="after")
    def _compared(self) -> "ST3Options":
        if self.scaled and self.allocation != "global":
            raise ValueError(f"scaled compares layers, and {self.allocation} gives each its share")
        return self


@methods.register("st3")
class ST3(Layered):
    """Trains all weights through the thresholded ones; the mask in force stays as given until the end."""

    tags = Tags(
        family="regularisation", paper="Vanderschueren & De Vleeschouwer 2023", gradual=True, at_once=False,
        edits_weights=True,
    )  # fmt: skip
    Options = ST3Options
    cost = (
        "the threshold among all weights at every step, on the CPU: 1.1 s for ResNet-50 on one core (measured); two "
        "further copies of the weights, 0.2 GB (derived)"
    )
    papers = {
        name: Settings(
            model="torchvision:resnet50 --from-scratch",
            source="vanderschuea/stthree, configs/imagenet.toml; accuracies from its README",
            recipe=Recipe(
                epochs=100, batch_size=512, lr=0.2, momentum=0.875, weight_decay=5e-5, warmup_epochs=5,
                label_smoothing=0.1, amp=True, select="last",
            ),
            options={"schedule": {"start": 0.05, "end": 0.5, "updates": EACH_STEP}, "scaled": scaled},
            results=results,
            notes=(
                "they clip the gradient's norm at 3, train in float16, keep the best epoch, and decay neither biases "
                "nor batch norm, whose momentum is 0.99 there; the classifier has no bias",
                "configs/imagenet.toml asks for 100 more epochs with the mask fixed, of which the README says nothing",
                "their learning rate changes once an epoch, here at every step",
            ),
        )
        for name, scaled, results in (
            ("st3", False, {0.8: 76.95, 0.9: 76.03, 0.95: 74.46, 0.965: 73.31, 0.98: 70.46, 0.99: 63.88}),
            ("sigma", True, {0.8: 76.44, 0.9: 75.28, 0.95: 73.69, 0.965: 72.62, 0.98: 69.75, 0.99: 63.25}),
        )
    }  # fmt: skip

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self._kept(model, mask, self.sparsity)  # what cannot be reached is refused now and not at the end
        self.already_ = mask.restricted(self.layers(model, mask)).sparsity
        self.moments_ = sorted(self.options.schedule.at(self.sparsity, plan.steps).items())
        self.forward_: dict[str, Tensor] = {}
        return mask

    def sparsity_at(self, step: int) -> float:
        """Of the forward pass of a step (0-based); what is zero from the start is counted in."""
        place = bisect.bisect_right(self.moments_, step, key=lambda moment: moment[0])
        return max(self.already_, self.moments_[place - 1][1] if place else 0.0)

    def settled(self, step: int) -> bool:
        return step >= self.moments_[-1][0]

    def backward(self, model: nn.Module, mask: Mask, step: int, closure: Callable[[], Tensor]) -> Tensor:
        """The weights do not change between the parts of a batch: what goes forward is made once a step."""
        self.forward_ = self._thresholded(model, mask, self.sparsity_at(step))[0]
        return closure()

    def forward_weights(self, weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
        """Exactly the thresholded values, with the derivative of `weights` (straight through)."""
        return {name: forward + (weights[name] - weights[name].detach()) for name, forward in self.forward_.items()}

    @torch.no_grad()
    def finish(self, model: nn.Module, mask: Mask, step: int) -> Mask:
        """What would go forward now, at the sparsity of `step`."""
        forward, kept = self._thresholded(model, mask, self.sparsity_at(step))
        for name, weight in forward.items():
            model.get_parameter(name).copy_(weight)
        return kept

    def _kept(self, model: nn.Module, mask: Mask, sparsity: float) -> Mask:
        return self.select(self._sizes(model, mask), mask, sparsity)

    def _sizes(self, model: nn.Module, mask: Mask) -> dict[str, Tensor]:
        """|w| as the layers are compared."""
        return {name: size * self._factor(size) for name, size in magnitude(model, self.layers(model, mask)).items()}

    def _factor(self, weight: Tensor) -> float:
        return float(sum(weight.shape)) ** 0.5 if self.options.scaled else 1.0

    @torch.no_grad()
    def _thresholded(self, model: nn.Module, mask: Mask, sparsity: float) -> tuple[dict[str, Tensor], Mask]:
        """The weights that go forward, and which these are."""
        kept, sizes = self._kept(model, mask, sparsity), self._sizes(model, mask)
        largest = {n: float(size.masked_fill(kept[n].to(size.device), 0).max()) for n, size in sizes.items()}
        if self.options.allocation == "global":
            largest = dict.fromkeys(largest, max(largest.values()))
        forward = {}
        for name, threshold in largest.items():
            weight = model.get_parameter(name).detach()
            forward[name] = soft(weight, kept[name].to(weight.device), threshold / self._factor(weight))
        return forward, kept


def soft(weight: Tensor, kept: Tensor, threshold: float) -> Tensor:
    """`weight` (O, ...) where `kept`, brought towards zero by `threshold`, and each output channel multiplied by about
    the ratio of its sum of |w| to that of its kept ones."""
    sizes = weight.abs()
    inner = tuple(range(1, weight.dim()))
    share = ((sizes * kept).mean(inner, keepdim=True) + 1e-6) / (sizes.mean(inner, keepdim=True) + 1e-6)
    return 1.01 / (share + 0.01) * weight.sign() * (sizes - threshold).clamp_min(0) * kept
