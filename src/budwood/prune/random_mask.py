"""Random pruning: the control that every method has to beat. With `allocation=erk` it is the static random baseline
of RigL's paper (Evci et al. 2020): a random mask of ERK densities, fixed for the whole training."""

import torch
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Settings, Tags
from ..core.registry import methods
from .regrow import IMAGENET
from .scored import Scored


@methods.register("random")
class Random(Scored):
    """Removes weights by lot: every one that may go is as likely to go as another of its layer."""

    tags = Tags(family="controls", paper="Evci et al. 2020", seeded=True, patterns=True)
    cost = "one random number a weight and one sort, once: 1 s and 0.6 GB for ResNet-50 (25.5 M weights; measured)"
    papers = {
        "static": Settings(
            model="torchvision:resnet50 --from-scratch",
            source="google-research/rigl, rigl/imagenet_resnet/imagenet_train_eval.py (training_method=static, "
            "mask_init_method=erdos_renyi_kernel)",
            recipe=IMAGENET,
            options={"allocation": "erk"},
            notes=(
                "32000 steps of 4096 images there, which are 102 epochs",
                "the accuracies of this baseline stand in the paper, not in the repository; none are given here",
            ),
        ),
    }  # fmt: skip

    def scores(self, model: nn.Module, mask: Mask, sparsity: float, step: int) -> dict[str, Tensor]:
        random = self.plan_.random(step)
        return {name: torch.rand(mask[name].shape, generator=random) for name in self.layers(model, mask)}
