"""SNFS, sparse networks from scratch or sparse momentum (Dettmers & Zettlemoyer 2019): every layer now and then drops
its smallest weights and grows those whose gradient has long been large."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Plan, Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .allocation import require_finite, whole_counts
from .regrow import BEFORE, ERK, IMAGENET, IMAGENET_NOTES, Regrow, RegrowOptions, gradient

MODEL = "torchvision:resnet50 --from-scratch"


class SNFSOptions(RegrowOptions):
    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay per step of the average of the dense gradients."""
    redistribute: bool = False
    """Layers grow weights in proportion to the mean momentum of those that they keep, as in the paper, and not as many
    as they drop, as google-research/rigl has it."""


@methods.register("snfs")
class SNFS(Regrow):
    """Grows by the average m of the dense gradients, m = 0.9 m + 0.1 g at every step until the last move.

    Redistributed, a layer l grows a share mean |m_l| / sum of these means of all that is dropped, with the mean over
    the weights it has before the drop. What does not fit into a layer goes to the others in equal parts.
    """

    tags = Tags(
        family="re-growth", paper="Dettmers & Zettlemoyer 2019", gradual=True, at_once=False, revives=True,
        gradients=True,
    )  # fmt: skip
    Options = SNFSOptions
    brief = {"every": 3}
    cost = (
        "one number a weight for the average, 102 MB for ResNet-50, brought up to date at every step; and two "
        "selections over all weights at each move, 1.7 s for ResNet-50 on one core (measured)"
    )
    papers = {
        "erk": Settings(
            MODEL,
            "Evci et al. 2020, ResNet-50 table (the same in luuyin/chase, README.md); google-research/rigl",
            IMAGENET,
            {**ERK},
            results={0.8: 75.2, 0.9: 72.9},
            notes=("measured by RigL's authors, without redistribution", BEFORE, *IMAGENET_NOTES),
        ),
        "redistributed": Settings(
            MODEL,
            "TimDettmers/sparse_learning, imagenet/baseline and results/imagenet_0.15626087.log",
            Recipe(
                epochs=100, batch_size=256, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="constant",
                milestones=(30, 60, 90), select="last",
            ),
            {
                "allocation": "uniform", "keep_dense": [], "alpha": 0.2, "every": 5005, "end": 1.0,
                "redistribute": True,
            },
            notes=(
                "72.3 % with a density of 0.156 in the layers that are sparse there",
                "with Nesterov momentum; moved at the end of every epoch; the cosine falls to 0.005 there, not to 0",
                "the momentum of the optimizer, weight decay and all, is the average there",
                "weights that are grown keep their momentum there; here it begins at zero",
                "layers with less than 20 % zeros whose share grows drop less there",
            ),
        ),
    }  # fmt: skip

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.average_ = {name: torch.zeros_like(model.get_parameter(name)) for name in self.layers(model, mask)}
        return super().start(model, mask, plan)

    @torch.no_grad()
    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        if step < self.end:
            for name, average in self.average_.items():
                average.lerp_(gradient(model, name), 1 - self.options.momentum)
        return super().update(model, mask, step, batch)

    def looks_at_gradients(self, step: int) -> bool:
        """At every step that goes into the average."""
        return step < self.end

    def promises(self, model: nn.Module, names: list[str], step: int) -> dict[str, Tensor]:
        return {name: self.average_[name].detach().abs() for name in names}

    def grown(self, mask: Mask, dropped: Mapping[str, int]) -> Mapping[str, int]:
        if not self.options.redistribute:
            return dropped
        for name in dropped:
            require_finite(name, self.average_[name])
        kept = mask.counts()
        means = {name: self._mean(name, mask[name]) if kept[name] else 0.0 for name in dropped}
        if (total := sum(means.values())) == 0:
            return dropped
        room = {name: mask[name].numel() - kept[name] + count for name, count in dropped.items()}
        budget = sum(dropped.values())
        return whole_counts({n: means[n] / total for n in means}, {n: (budget,) for n in means}, room, budget)

    def _mean(self, name: str, kept: Tensor) -> float:
        """Mean |m| of the weights that are kept."""
        average = self.average_[name].detach()
        return float(average[kept.to(average.device)].abs().mean())

    def state(self) -> dict[str, Tensor]:
        return {name: average.detach() for name, average in self.average_.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, average in self.average_.items():
            average.copy_(state[name])
