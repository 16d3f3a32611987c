"""oBERT, the optimal BERT surgeon (Kurtic et al. 2022): optimal brain surgeon with small Fisher blocks, for weights
and for groups of them, whose saliency w_Q^T ([F^-1]_QQ)^-1 w_Q / 2 knows how the weights of a group depend on each
other."""

from pydantic import Field
from torch import Tensor

from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .fisher import Inverse
from .fisher_pruner import FisherOptions, FisherPruner, group_solved, shared
from .schedule import Cubic

_PLACE = "neuralmagic/sparseml, research/optimal_BERT_surgeon_oBERT/recipes"
_NOTES = (
    "a text model, and no network of Budwood: options, epochs and batch are what can be taken over (the batch from "
    "scripts/30epochs_gradual_pruning_squad.sh); all else in the recipe are Budwood's defaults and not the authors'",
    "pruned at the epochs 2, 6, ... 26 of 30 there, and trained with AdamW by a teacher's answers alone, at a rate "
    "that falls from 8e-5 to 8e-6 in every 4 epochs anew",
    "its Fisher blocks run over all weights of a layer, pruned ones included; here over those that are left",
    "F1 of 88.3 at 90 % with single weights; 88.5 dense (README.md there)",
)


class OBertOptions(FisherOptions):
    schedule: Cubic = Cubic(start=0.05, end=0.6, updates=7, initial=0.3)
    gradients: int = Field(1024, ge=1, le=100_000)
    """How many gradients the Fisher matrix is the mean of."""
    batch: int = Field(8, ge=1, le=100_000)
    """Images that each of them is averaged over."""
    block: int = Field(50, ge=1, le=20_000)
    """Weights a Fisher block, rounded down to whole groups of the pattern."""
    dampening: float = Field(1e-5, gt=0, le=1e6)
    """What is added to the Fisher matrix's diagonal. Its authors have 1e-7 for BERT and advise to try 1e-4 to 1e-8 by
    pruning at once; on photographs 1e-7 kept 20 points less."""
    recomputations: int = Field(8, ge=1, le=1000)
    """Passes in which pruning at once is done, each with gradients of its own. Along a schedule every update is one."""


@methods.register("obert")
class OBert(FisherPruner):
    """Removes the groups (with 1xB; else single weights) with the least saliency; those pruned together are treated
    as if each went alone: the others of a block move by - sum_Q F^-1 E_Q ([F^-1]_QQ)^-1 w_Q."""

    tags = Tags(
        family="second-order", paper="Kurtic et al. 2022", gradual=True, seeded=True, edits_weights=True,
        data="labels", gradients=True, patterns=True,
    )  # fmt: skip
    Options = OBertOptions
    brief = {
        "gradients": 12, "batch": 4, "block": 8, "dampening": 1e-4, "recomputations": 2,
        "schedule": {"start": 0.1, "end": 0.7, "updates": 3},
    }  # fmt: skip
    cost = (
        "at every update, and at once in each of the `recomputations`: `gradients` x `batch` images forward and "
        "backward; 8 x `block` + 256 bytes of disk for a weight that is left (ResNet-50: 17 GB); 24 s of one CPU core "
        "for a million of them (measured with 1024 gradients in blocks of 50; so 10 min for ResNet-50) and 0.4 GB of "
        "memory beside the network and its gradients. A process each, where there are several"
    )
    papers = {
        "squad": Settings(
            model="BERT-base",
            data="SQuAD",
            source=f"{_PLACE}/30epochs_unstructured90_squad.yaml",
            recipe=Recipe(epochs=30, batch_size=16, select="last"),
            options={
                "gradients": 1024, "batch": 8, "block": 50, "dampening": 1e-7, "recomputations": 1,
                "schedule": {"start": 0.0667, "end": 0.8667, "updates": 7, "initial": 0.7},
            },
            notes=_NOTES,
        ),
        "squad-4block": Settings(
            model="BERT-base",
            data="SQuAD",
            source=f"{_PLACE}/30epochs_4block90_squad.yaml",
            recipe=Recipe(epochs=30, batch_size=16, select="last"),
            options={
                "gradients": 1024, "batch": 8, "block": 32, "dampening": 1e-7, "recomputations": 1, "pattern": "1x4",
                "schedule": {"start": 0.0667, "end": 0.8667, "updates": 7, "initial": 0.7},
            },
            notes=_NOTES,
        ),
    }  # fmt: skip

    def saliency(self, inverse: Inverse, weights: Tensor, present: Tensor) -> Tensor:
        size = self.group()
        own = weights.unflatten(1, (-1, size))
        return shared((own * group_solved(inverse, weights, size)).sum(-1) / 2, present, size)

    def movement(self, inverse: Inverse, weights: Tensor, gone: Tensor) -> Tensor:
        return -inverse.times(group_solved(inverse, weights, self.group()).flatten(1).masked_fill(~gone, 0))
