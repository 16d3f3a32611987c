"""M-FAC (Frantar, Kurtic, Alistarh 2021): the Optimal Brain Surgeon with the inverse Fisher matrix of m gradients,
which is never formed: products with it, and its diagonal, come out of m vectors as long as a block."""

from pydantic import Field

from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .fisher_pruner import FisherOptions, FisherPruner
from .schedule import Cubic, exponential


class MFACOptions(FisherOptions):
    schedule: Cubic = Cubic(updates=10)
    gradients: int = Field(64, ge=1, le=20_000)
    """How many make the Fisher matrix (m). Only where a block has fewer weights is it formed: as good, and smaller."""
    block: int = Field(128, ge=1)
    """Weights of a layer, one after the other, that are taken together, rounded down to whole groups of the pattern; a
    layer with fewer is one block. Memory is 34 bytes x m x block."""
    recomputations: int = Field(4, ge=1, le=1000)
    """Parts that every pruning is done in, each with new gradients; what is left shrinks by the same factor in each."""


@methods.register("mfac")
class MFAC(FisherPruner):
    """Removes the smallest w_q^2 / (2 [F^-1]_qq), and moves the others by the sum of -w_q / [F^-1]_qq F^-1 e_q over all
    that are removed, each as if it went alone. F = lambda I + mean of g g^T, over the weights that are left."""

    tags = Tags(
        family="second-order", paper="Frantar et al. 2021", gradual=True, seeded=True, edits_weights=True,
        data="labels", gradients=True, patterns=True,
    )  # fmt: skip
    Options = MFACOptions
    brief = {"gradients": 6, "batch": 4, "block": 100, "recomputations": 2, "schedule": {"updates": 3}}
    cost = (
        "at each of `schedule.updates`, `recomputations` times: `gradients` x `batch` images forward and backward; "
        "4 x `gradients` bytes of disk for a weight that is left (dense ResNet-50: 6.5 GB; with less room the layers "
        "go in parts, and every part's gradients are drawn twice); 4 s of one CPU core for a million of them (measured "
        "with 64 gradients, in blocks of 128 and of a million; so 100 s for ResNet-50) and 0.4 GB of memory beside the "
        "network and its gradients, or 34 bytes x `gradients` x `block` where that is more (5.1 GB for ResNet-50's "
        "largest layer as one block, derived). A process each, where there are several"
    )
    papers = {
        "cifar10": Settings(
            model="ResNet-20",
            data="CIFAR-10",
            source="IST-DASLab/M-FAC, README.md (sample call) and main_prun.py (defaults)",
            recipe=Recipe(
                epochs=10, batch_size=128, lr=0.005, momentum=0.9, weight_decay=0.0, schedule="constant",
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
                "blocks run across the bounds of layers there, and can be all weights at once (blocksize -1)",
                "results are published for ImageNet alone (ResNet-50: 72.6 at 95 %, 67.6 at 98 %; STR's MobileNetV1: "
                "70.9 at 75 %, 67.2 at 89 %), without schedule, number of gradients or block",
            ),
        ),
    }  # fmt: skip

    def targets(self, already: float, sparsity: float) -> list[float]:
        return exponential(already, sparsity, self.options.recomputations)

    def resets_momentum(self, step: int) -> bool:
        """The authors go on with a new optimizer after every pruning."""
        return step in self.moments_
