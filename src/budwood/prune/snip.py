"""SNIP (Lee, Ajanthan, Torr 2019): before any training, keep the weights to which the loss is most sensitive."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .fisher import averaged
from .fresh import with_statistics
from .scored import Scored, ScoreOptions


class SNIPOptions(ScoreOptions):
    gradients: int = Field(8, ge=1)
    """Batches whose gradients are summed. Its authors take one; ten images a class are usual."""
    batch: int = Field(128, ge=1)
    """Images in each."""


@methods.register("snip")
class SNIP(Scored):
    """Removes the smallest |w dL/dw|, which is |dL/dc| for a factor c = 1 on the weight (the paper's sensitivity).

    In evaluation mode, as in the authors' program; a network that was never trained has its batch norm statistics
    measured first, on a copy. Without labels the loss is that of the network's own answers.
    """

    tags = Tags(
        family="one-shot", paper="Lee et al. 2019", seeded=True, data="labels", gradients=True, patterns=True,
    )  # fmt: skip
    Options = SNIPOptions
    brief = {"gradients": 2, "batch": 16}
    cost = (
        "once: `gradients` x `batch` images forward and backward (1024 by default, a thousandth of an epoch of "
        "ImageNet); the memory of a training step of 32 images, and the gradients beside the weights: 102 MB for "
        "ResNet-50 (derived)"
    )
    papers = {
        "cifar10": Settings(
            model="VGG-D --from-scratch",
            data="CIFAR-10",
            source="namhoonlee/snip-public, README.md and snip/{prune,model,main}.py",
            recipe=Recipe(
                epochs=426, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="constant",
                milestones=(85, 170, 256, 341), gamma=0.2, select="last",
            ),
            options={"allocation": "global", "gradients": 1, "batch": 128},
            sparsity=0.95,
            notes=(
                "150000 steps there, the rate falls every 30000; here in epochs of the 45000 images it trains on",
                "it prunes biases too, here only weights are pruned",
                "the weights are drawn anew after the pruning there; here those that were scored are trained",
                "batch norm has its initial statistics (0 and 1) when it prunes; here it is measured first",
            ),
        ),
    }  # fmt: skip

    def scores(self, model: nn.Module, mask: Mask, sparsity: float, step: int) -> dict[str, Tensor]:
        names, options = self.layers(model, mask), self.options
        settled = with_statistics(model, self.plan_, options.batch, step)
        sums = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
        stream = averaged(settled, names, self.plan_, options.gradients, options.batch, step, fisher=False)
        for done, found in enumerate(stream, start=1):
            for name, gradient in zip(names, found, strict=True):
                sums[name] += gradient
            self.plan_.told(done, options.gradients)
        return {name: (model.get_parameter(name).detach() * total).abs() for name, total in sums.items()}
