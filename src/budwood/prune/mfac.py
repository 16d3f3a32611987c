"""M-FAC (Frantar, Kurtic, Alistarh 2021): the Optimal Brain Surgeon with the inverse Fisher matrix of m gradients,
which is never formed: products with it, and its diagonal, come out of m vectors as long as the weights."""

import torch
from pydantic import Field
from torch import nn

from ..core.mask import Mask
from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .gradients import gradients
from .schedule import Cubic, exponential
from .score import magnitude
from .scored import Gradual, GradualOptions
from .woodbury import Fisher


class MFACOptions(GradualOptions):
    schedule: Cubic = Cubic(updates=10)
    gradients: int = Field(64, ge=1)
    """How many make the Fisher matrix (m)."""
    batch: int = Field(32, ge=1)
    """Images that each is the mean of."""
    dampening: float = Field(1e-5, ge=1e-12)
    """Added to the diagonal of the Fisher matrix (lambda)."""
    block: int | None = Field(128, ge=1)
    """Weights, one after the other, that are taken together; None for all, with all layers in one matrix."""
    recomputations: int = Field(4, ge=1)
    """Parts that every pruning is done in, each with new gradients; what is left shrinks by the same factor in each."""


@methods.register("mfac")
class MFAC(Gradual):
    """Removes the smallest w^2 / (2 [F^-1]_qq), and moves the others by the sum of -w_q / [F^-1]_qq F^-1 e_q over all
    that are removed, each as if it went alone. F = lambda I + mean of g g^T, over the weights that are left."""

    tags = Tags(
        family="second-order", paper="Frantar et al. 2021", gradual=True, seeded=True, edits_weights=True,
        data="labels", patterns=True,
    )  # fmt: skip
    Options = MFACOptions
    brief = {"gradients": 6, "batch": 4, "block": 100, "recomputations": 2, "schedule": {"updates": 3}}
    cost = (
        "at each of `schedule.updates`, `recomputations` times: m x `batch` images forward and backward, m^2 d "
        "multiplications, and m d 4 bytes of disk for d weights left (dense ResNet-50: 6.5 GB for m = 64, 104 GB for "
        "m = 1024), for every process; up to 2 GB of memory beside the network's. Derived, but for the time of an "
        "inverse at m = 64 and blocks of 128: 75 s on one thread for ResNet-50, ten times a measured tenth"
    )
    papers = {
        "imagenet": Settings(
            model="torchvision:resnet50",
            source="IST-DASLab/M-FAC, README.md (results) and main_prun.py (defaults)",
            recipe=Recipe(epochs=100, batch_size=128, lr=0.005, momentum=0.9, weight_decay=0.0, select="last"),
            options={
                "allocation": "global", "gradients": 64, "batch": 32, "dampening": 1e-5, "block": 128,
                "recomputations": 16,
            },
            sparsity=0.95,
            results={0.95: 72.6, 0.98: 67.6},
            notes=(
                "the repository has the results of its ImageNet runs, but not their schedule, number of gradients and "
                "block: options, batch, rate and decay are the defaults of its program, epochs and schedule are not "
                "its own",
                "MobileNetV1 (STR's): 70.9 at 75 %, 67.2 at 89 %",
            ),
        ),
        "cifar10": Settings(
            model="ResNet-20",
            data="CIFAR-10",
            source="IST-DASLab/M-FAC, README.md (sample call of main_prun.py)",
            recipe=Recipe(
                epochs=10, batch_size=128, lr=0.005, momentum=0.9, weight_decay=0.0, schedule="step",
                milestones=(7, 9), gamma=0.1, select="last",
            ),
            options={
                "allocation": "global", "gradients": 64, "batch": 32, "dampening": 1e-5, "block": 128,
                "recomputations": 16, "schedule": {"start": 0.0, "end": 0.4, "updates": 3, "initial": 0.5},
            },
            sparsity=0.875,
            notes=(
                "pruned to 50, 75 and 87.5 % before the epochs 0, 2 and 4 there; the cubic curve makes 75 to 82.8",
                "the rate is 0.005 and 0.0005 in turn until epoch 4 there, to prune at a low one",
            ),
        ),
    }  # fmt: skip

    def prune_to(self, model: nn.Module, mask: Mask, sparsity: float, step: int = 0) -> Mask:
        names, parts = self.layers(model, mask), self.options.recomputations
        self.select(magnitude(model, names), mask, sparsity)  # what cannot be reached is refused before the work
        for i, target in enumerate(exponential(mask.restricted(names).sparsity, sparsity, parts)):
            mask = self._prune(model, mask, names, target, step * parts + i)
        return mask

    def _prune(self, model: nn.Module, mask: Mask, names: list[str], sparsity: float, salt: int) -> Mask:
        if self.select(magnitude(model, names), mask, sparsity).kept == mask.kept:
            return mask
        options, plan = self.options, self.plan_
        weights = [model.get_parameter(name) for name in names]
        sizes = [weight.numel() for weight in weights]
        flat = torch.cat([weight.detach().flatten().cpu() for weight in weights]).double()
        alive = torch.cat([mask[name].flatten() for name in names])
        with Fisher(options.gradients, int(alive.sum()), options.block, options.dampening, plan.scratch) as fisher:
            drawn = gradients(model, names, plan, options.gradients, options.batch, salt)
            for done, found in enumerate(drawn, start=1):
                fisher.add(torch.cat([gradient.flatten().cpu() for gradient in found])[alive])
                plan.told(done, options.gradients)
            diagonal = fisher.invert()
            scores = torch.zeros_like(flat)
            scores[alive] = flat[alive].square() / (2 * diagonal)
            by_layer = zip(names, scores.split(sizes), weights, strict=True)
            kept = self.select({name: score.reshape(w.shape) for name, score, w in by_layer}, mask, sparsity)
            gone = ~torch.cat([kept[name].flatten() for name in names])[alive]
            flat[alive] += fisher.product(torch.where(gone, -flat[alive] / diagonal, 0.0))
        for weight, part in zip(weights, flat.split(sizes), strict=True):
            weight.data.copy_(part.reshape(weight.shape))
        kept.apply_(model)
        return kept
