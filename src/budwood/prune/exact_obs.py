"""ExactOBS, the pruning half of OBC (Frantar, Singh & Alistarh 2022): one weight after the other is removed from a row,
always the one that the others can make up for the best."""

import torch
from torch import Tensor

from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .layerwise import Layer, Layerwise, Removals, cheapest
from .removal import Trace, trace
from .structure import Structure


@methods.register("exact-obs")
class ExactOBS(Layerwise):
    """Every row of a layer by itself: the weight j with the least w_j^2 / [H^-1]_jj goes, the others move by
    -w_j [H^-1]_:j / [H^-1]_jj, and j is eliminated from H^-1. The increases of the squared error, sorted over the rows,
    say how many weights each row loses. A block w goes by w^T C^-1 w with its part C of H^-1.

    In layers of more than 576 columns a 64th of each row goes at a time, chosen by the scores before. What they add to
    the error is exact, and the total stays below 1.05 times that of removals one by one (on inputs as behind a ReLU;
    below 1.5 times where most inputs are nearly given by others). The weights that stay are in the end solved for
    directly, which is what the moves add up to, without their rounding errors.
    """

    tags = Tags(
        family="second-order", paper="Frantar et al. 2022", seeded=True, edits_weights=True, data="images",
        patterns=True,
    )  # fmt: skip
    brief = {"images": 32}
    cost = (
        "for a row of D columns D^3 / 6 multiplications and 8 D^2 bytes, and 2 D^2 operations for each unfolded input; "
        "with global twice. ResNet-50 at 60 % with 256 images at 224 px: 37 minutes on two cores (measured; 22 of them "
        "the three layers of 4608 columns), 2.9 GB at the most, 1.2 of them for H of all layers"
    )
    papers = {
        "post-training": Settings(
            model="torchvision:resnet50",
            source="IST-DASLab/OBC, main_trueobs.py, trueobs.py and README.md (rn18, rn34, rn50)",
            recipe=Recipe(epochs=0),
            options={"allocation": "uniform", "images": 10240, "damping": 0.0, "keep_dense": ()},
            sparsity=0.5,
            notes=(
                "1024 training images, each augmented in ten ways there; as many images here, not augmented",
                "where H cannot be inverted, 1 is added to its diagonal there; here 0.01 of its mean",
                "no single sparsity there: shares of all layers by SPDY, for a number of operations; N:M is uniform",
                "weights at inputs that are always zero become zero there; here those that are not pruned stay",
                "weights of all rows are compared by what each removal adds there; here by the most that it or one "
                "before it in its row adds, so that none is made before those that it builds on",
                "batch norm statistics made anew on 100 batches there",
            ),
        ),
    }

    def settle(self, layer: Layer, count: int) -> tuple[Tensor, Tensor]:
        structure = self.structure
        kept = cut(layer, trace(layer, structure), structure, count)
        return solve(layer, kept), kept

    def removals(self, layer: Layer, sparsity: float) -> Removals:
        structure = self.structure
        found = trace(layer, structure)
        able = found.order >= 0
        return Removals(found.running()[able], _sizes(layer, found, structure)[able])


def cut(layer: Layer, found: Trace, structure: Structure, count: int) -> Tensor:
    """The mask (G, R, D) that keeps `count` weights: the removals with the least losses are made, over all rows. N:M
    makes them all."""
    gone = found.order >= 0
    if structure.kind != "n:m":
        sizes = _sizes(layer, found, structure)
        least = int(layer.kept.sum()) - count
        # From the last row on, so that of equal rows the first keeps more.
        made = cheapest(found.running().flip(0).flatten(), sizes.flip(0).flatten(), least)
        gone &= made.reshape(gone.shape).flip(0)
    size = structure.unit
    blocks = torch.zeros(len(gone), layer.weight.shape[2] // size, dtype=torch.int64, device=gone.device)
    blocks.scatter_add_(1, found.order.clamp(min=0), gone.long())
    return layer.kept & (blocks == 0).repeat_interleave(size, dim=1).reshape(layer.kept.shape)


def _sizes(layer: Layer, found: Trace, structure: Structure) -> Tensor:
    """How many weights each removal takes."""
    present = layer.kept.flatten(0, 1).unflatten(1, (-1, structure.unit)).sum(2)
    return present.gather(1, found.order.clamp(min=0)).masked_fill(found.order < 0, 0)


def solve(layer: Layer, kept: Tensor) -> Tensor:
    """The weights (G, R, D) with the least squared error among those that are zero outside of `kept`."""
    weight = layer.weight.clone()
    for g, r in (kept != layer.kept).any(2).nonzero().tolist():
        stays, goes = kept[g, r].nonzero().flatten(), (~kept[g, r]).nonzero().flatten()
        before, hessian = layer.weight[g, r], layer.hessian[g]
        if len(stays) <= len(goes):
            target = (hessian[stays] @ before)[:, None]
            weight[g, r] = 0
            weight[g, r, stays] = _solved(hessian[stays[:, None], stays], target).flatten()
        else:
            inverse = layer.inverse[g]
            share = _solved(inverse[goes[:, None], goes], before[goes, None])
            weight[g, r] = (before - (share.T @ inverse[goes]).flatten()).masked_fill(~kept[g, r], 0)
    return weight


def _solved(matrix: Tensor, target: Tensor) -> Tensor:
    return torch.cholesky_solve(target, torch.linalg.cholesky(matrix))
