"""GraSP (Wang, Zhang, Grosse 2020): before any training, keep the weights that the flow of the gradient needs."""

import copy
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .gradients import answered, batches_of
from .scored import Scored, ScoreOptions


class GraSPOptions(ScoreOptions):
    gradients: int = Field(50, ge=1)
    """Batches whose losses are summed; its authors take ten images a class."""
    batch: int = Field(20, ge=1)
    """Images in each."""
    temperature: float = Field(200.0, gt=0)
    """The logits are divided by it, which makes the network's answers nearly uniform."""


REDRAWN = "the scores are those of a copy with a classifier that is drawn once more there; here it keeps its weights"


@methods.register("grasp")
class GraSP(Scored):
    """Removes the highest -w (H g), the weights without which the norm of the gradient would fall least (or grow
    most): g and H are gradient and Hessian of the loss. So the least w (H g) go first.

    Batch norm has the statistics of each batch, as the authors have it, on a copy; dropout does nothing. The
    classifier keeps its weights, which they draw anew.
    """

    tags = Tags(
        family="one-shot", paper="Wang et al. 2020", seeded=True, data="labels", gradients=True, patterns=True,
    )  # fmt: skip
    Options = GraSPOptions
    brief = {"gradients": 2, "batch": 16}
    cost = (
        "once: `gradients` x `batch` images forward and backward, then once more with a second backward through the "
        "first: 4 to 5 times the time of SNIP, 2 to 3 times the memory of a training step of `batch` images (derived)"
    )
    papers = {
        "imagenet": Settings(
            model="torchvision:resnet50 --from-scratch",
            source="alecwangcq/GraSP, configs/imagenet/resnet50/GraSP_90.json, pruner/GraSP_ImageNet.py, "
            "main_finetune_imagenet.py",
            recipe=Recipe(
                epochs=90, batch_size=256, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="constant",
                milestones=(30, 60), gamma=0.1, select="last",
            ),
            options={"allocation": "global", "gradients": 1875, "batch": 20, "temperature": 200.0},
            notes=(
                "150 batches of 250 images there, taken in parts of 20: 37500 images",
                REDRAWN,
                "sparsities 0.6, 0.8 and 0.9; the accuracies stand in the paper, not in the repository",
            ),
        ),
        "cifar10": Settings(
            model="ResNet-32 --from-scratch",
            data="CIFAR-10",
            source="alecwangcq/GraSP, configs/cifar10/resnet32/GraSP_90.json, main_prune_non_imagenet.py",
            recipe=Recipe(
                epochs=160, batch_size=128, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="constant",
                milestones=(80, 120), gamma=0.1, select="best",
            ),
            options={"allocation": "global", "gradients": 2, "batch": 50, "temperature": 200.0},
            notes=("ten images of each class there, here 100 of any class", REDRAWN),
        ),
    }  # fmt: skip

    def scores(self, model: nn.Module, mask: Mask, sparsity: float, step: int) -> dict[str, Tensor]:
        names = self.layers(model, mask)
        copied = _by_batches(model)
        weights = [copied.get_parameter(name) for name in names]
        kept = [mask[name].to(weight.device) for name, weight in zip(names, weights, strict=True)]
        flow = [torch.zeros_like(weight) for weight in weights]
        product = [torch.zeros_like(weight) for weight in weights]
        with torch.enable_grad():
            for loss in self._losses(copied, step, done=0):
                for total, gradient in zip(
                    flow, torch.autograd.grad(loss, weights, materialize_grads=True), strict=True
                ):
                    total += gradient
            # Pruned weights stay where they are: the gradient flows through the others alone.
            flow = [total * alive for total, alive in zip(flow, kept, strict=True)]
            for loss in self._losses(copied, step, done=self.options.gradients):
                found = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
                along = torch.stack([(f * g).sum() for f, g in zip(flow, found, strict=True)]).sum()
                for total, column in zip(
                    product, torch.autograd.grad(along, weights, materialize_grads=True), strict=True
                ):
                    total += column
        return {name: w.detach() * hg for name, w, hg in zip(names, weights, product, strict=True)}

    def _losses(self, model: nn.Module, step: int, done: int) -> Iterator[Tensor]:
        """The loss of each batch, softened by the temperature; the same ones every time."""
        plan, options = self.plan_, self.options
        batches = batches_of(plan, options.batch, step)
        for i in range(options.gradients):
            images, labels = next(batches)
            if len(images) == 1 and any(module.training for module in model.modules()):
                raise UserError(
                    "GraSP takes the statistics of each batch, and one image has none; set batch to 2 or more"
                )
            output = model(images).float()
            yield F.cross_entropy(output / options.temperature, answered(output, labels, plan.labelled))
            plan.told(done + i + 1, 2 * options.gradients)


def _by_batches(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, but for its batch norm."""
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return copied
