"""CAP, the correlation aware pruner (Kuznedelev et al. 2023): weights go one by one inside a Fisher block, and after
each all others of the block, and what they matter, are updated.

Chosen over CHITA (Benbaki et al. 2023): CAP's settings for a ResNet are published and every step of it can be held
against plain linear algebra, while CHITA's repository states no result for ImageNet.
"""

import torch
from pydantic import Field
from torch import Tensor

from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .fisher import Inverse
from .fisher_pruner import FisherOptions, FisherPruner, shared, solved
from .schedule import Cubic

CACHED = 2**20
"""Numbers of the matrices that are worked on at once: the processor's cache should hold them."""


class CAPOptions(FisherOptions):
    schedule: Cubic = Cubic(start=0.0, end=0.6, updates=8, initial=0.4)
    gradients: int = Field(1024, ge=1, le=100_000)
    """How many gradients the Fisher matrix is the mean of."""
    batch: int = Field(16, ge=1, le=100_000)
    """Images that each of them is averaged over."""
    block: int = Field(192, ge=1, le=4096)
    """Weights a Fisher block, rounded down to whole groups of the pattern."""
    dampening: float = Field(1e-5, gt=0, le=1e6)
    """What is added to the Fisher matrix's diagonal. Its authors have 1e-8, with 4096 gradients of 128 images; this is
    what oBERT, whose blocks are as small, does best with here (docs/results/methods.md), not tried for CAP."""


@methods.register("cap")
class CAP(FisherPruner):
    """Every block is emptied weight by weight (1xB: group by group). The score of a weight is the sum of what the loss
    rose until it went, itself included. The kept weights then become the minimum of the block's quadratic form under
    the mask, which is where the removals, one after the other, end up in any order."""

    tags = Tags(
        family="second-order", paper="Kuznedelev et al. 2023", gradual=True, seeded=True, edits_weights=True,
        data="labels", gradients=True, patterns=True,
    )  # fmt: skip
    Options = CAPOptions
    brief = {
        "gradients": 12, "batch": 4, "block": 16, "dampening": 1e-4,
        "schedule": {"start": 0.1, "end": 0.7, "updates": 3},
    }  # fmt: skip
    cost = (
        "at every update `gradients` x `batch` images forward and backward; 12 x `block` bytes of disk for a weight "
        "that is left (ResNet-50: 59 GB; with less room the layers go in parts, and every part's gradients are drawn "
        "twice); 93 s of one CPU core for a million of them (measured with 1024 gradients in blocks of 192; so 40 min "
        "for ResNet-50) and 0.4 GB of memory beside the network and its gradients; 249 s, 106 min and 78 GB as its "
        "authors have it (4096 gradients, 256). A process each, where there are several"
    )
    papers = {
        "resnet50d": Settings(
            model="timm:resnet50d",
            source="IST-DASLab/CAP, research/recipes/gradual_pruning/cap/300ep_resnet50d_sp=0.40_90.yaml",
            recipe=Recipe(epochs=300, batch_size=128, lr=0.2, momentum=0.9, weight_decay=2e-5, select="last"),
            options={
                "allocation": "global", "keep_dense": ["first", "classifier"], "gradients": 4096, "batch": 128,
                "block": 256, "dampening": 1e-8,
                "schedule": {"start": 0.0, "end": 0.9334, "updates": 15, "initial": 0.4},
            },
            notes=(
                "pruned every 20 epochs there, in straight lines from 40 % to 60 (epoch 40), 75 (100) and 90 (280); "
                "here at the same epochs along a cubic curve",
                "its learning rate falls from 0.2 to 0.001 in every 20 epochs anew; here once, as a cosine",
                "batch, momentum and weight decay are the defaults of its program (research/sparse_training.py); the "
                "batch is of one graphics card, and left open in research/run_gradual_pruning.sh, as is --config; the "
                "128 for the gradients is a remark there",
                "its Fisher blocks run over all weights of a layer, pruned ones included, and divide it evenly "
                "(src/sparseml/pytorch/sparsification/pruning/modifier_pruning_cap.py); here over those that are "
                "left, so that a block reaches further the more is pruned",
            ),
        ),
    }  # fmt: skip

    def group(self) -> int:
        several = self._several()
        return self.unit() if several is None else several[0]

    def _several(self) -> tuple[int, int] | None:
        """(M, N) of N:M, where of M neighbours in one block N stay; None for other patterns."""
        structure = self.structure
        return (structure.size, structure.most) if structure.kind == "n:m" else None

    def saliency(self, inverse: Inverse, weights: Tensor, present: Tensor) -> Tensor:
        size, several = self.unit(), self._several()
        live = present.unflatten(1, (-1, size)).any(2)
        dense = inverse.dense()
        step = len(weights) if weights.is_cuda else max(1, CACHED // weights.shape[1] ** 2)
        found = [
            rises(dense[a : a + step], weights[a : a + step], live[a : a + step], size, several)
            for a in range(0, len(weights), step)
        ]
        return shared(torch.cat(found), present, size)

    def movement(self, inverse: Inverse, weights: Tensor, gone: Tensor) -> Tensor:
        """- F^-1 E_Q ([F^-1]_QQ)^-1 w_Q, with Q all that goes from a block."""
        dense = inverse.dense()
        among = dense.masked_fill(~(gone[:, :, None] & gone[:, None, :]), 0)
        among.diagonal(dim1=1, dim2=2).masked_fill_(~gone, 1)
        share = torch.linalg.solve(among, weights.masked_fill(~gone, 0))
        return -(dense @ share[..., None])[..., 0]


def rises(inverse: Tensor, weights: Tensor, live: Tensor, size: int, several: tuple[int, int] | None) -> Tensor:
    """How far the loss has risen when a group goes, if the least costly goes first: (blocks, groups).

    inverse: (blocks, c, c), overwritten; weights: (blocks, c); live: (blocks, c / size), the groups that there are.
    `several` (M, N): of M neighbours the last N stay until all others are gone.
    """
    weights, live = weights.clone(), live.clone()
    every = torch.arange(len(weights), device=weights.device)
    inside = torch.arange(size, device=weights.device)
    risen = torch.zeros(len(weights), dtype=weights.dtype, device=weights.device)
    found = torch.zeros(live.shape, dtype=weights.dtype, device=weights.device)
    for _ in range(int(live.sum(1).max())):
        groups = inverse.diagonal(dim1=1, dim2=2)[..., None, None] if size == 1 else _along(inverse, size)
        own = weights.unflatten(1, (-1, size))
        answers = solved(groups, own)
        cost = (own * answers).sum(2).clamp_min(0) / 2
        pick = cost.masked_fill(~_open(live, several), torch.inf).argmin(1)
        left = live.any(1)
        risen += cost[every, pick].masked_fill(~left, 0)
        found[every[left], pick[left]] = risen[left]
        live[every, pick] = False
        at = pick[:, None] * size + inside
        columns = inverse[every[:, None], at]  # (blocks, size, c), as the matrix is symmetric
        weights -= (answers[every, pick][:, None] @ columns)[:, 0]
        inverse.baddbmm_(columns.mT, torch.linalg.solve(groups[every, pick], columns), alpha=-1)
        # What is gone stays apart: zero, with a unit matrix of its own.
        weights[every[:, None], at] = 0
        inverse[every[:, None], at] = 0
        inverse.mT[every[:, None], at] = 0
        inverse[every[:, None], at, at] = 1
    return found


def _along(matrices: Tensor, size: int) -> Tensor:
    """The squares of `size` along the diagonal: (blocks, c / size, size, size)."""
    cells = matrices.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return cells.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _open(live: Tensor, several: tuple[int, int] | None) -> Tensor:
    """Which groups may go next."""
    if several is None:
        return live
    size, most = several
    may = live & (live.unflatten(1, (-1, size)).sum(2) > most).repeat_interleave(size, 1)
    return torch.where(may.any(1, keepdim=True), may, live)
