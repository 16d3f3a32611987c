"""SparseGPT (Frantar & Alistarh 2023) on convolutions: from column to column, what pruning a weight changes in a row's
output is made up for by the row's later weights."""

import torch
from torch import Tensor

from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .allocation import spread
from .layerwise import Layer, Layerwise, Removals
from .structure import Structure

SPAN = 128
"""Columns whose mask is chosen at once, as in the authors' code."""


@methods.register("sparsegpt")
class SparseGPT(Layerwise):
    """All rows of a layer go through its columns in the same order, so they share one inverse of H.

    The authors give every layer of a transformer the outputs of the pruned ones before it; here it sees the dense
    network's (`layerwise` says why), and a convolution's columns are its unfolded inputs, input channels fastest. The
    share of weights that a span of columns loses is exact, spans together to one weight.
    """

    tags = Tags(
        family="one-shot",
        paper="Frantar & Alistarh 2023",
        seeded=True,
        edits_weights=True,
        data="images",
        patterns=True,
    )
    brief = {"images": 32}
    cost = (
        "for a layer of R rows and D columns 2 D^2 operations for each unfolded input, and 2 D^3 + R D^2 for the "
        "pruning; with global twice. ResNet-50 with 256 images at 224 px: about 7 minutes of one core by extrapolation "
        "from single layers (6 of them for H), 1.2 GB for H of all layers, 2 GB at the most"
    )
    papers = {
        "language": Settings(
            model="OPT, BLOOM and LLaMA (language models; no convolutional network)",
            source="IST-DASLab/sparsegpt, opt.py and sparsegpt.py",
            recipe=Recipe(epochs=0),
            options={"allocation": "uniform", "images": 128, "damping": 0.01},
            sparsity=0.5,
            data="C4",
            notes=(
                "128 segments of 2048 tokens there",
                "layers are given the outputs of the pruned layers before them there, the dense network's here",
            ),
        ),
    }

    def settle(self, layer: Layer, count: int) -> tuple[Tensor, Tensor]:
        weight, kept, _ = sweep(layer, self.structure, count)
        return torch.where(kept & layer.dead[:, None], layer.weight, weight), kept

    def removals(self, layer: Layer, sparsity: float) -> Removals:
        """Every weight or block by the score that it is chosen by at `sparsity`, which is what it adds to the error."""
        structure = self.structure
        count = min(int(layer.kept.sum()), round((1 - sparsity) * layer.kept.numel()))
        scores = sweep(layer, structure, count)[2].flatten()
        sizes = layer.kept.unflatten(2, (-1, structure.unit)).sum(3).flatten()
        return Removals(scores[sizes > 0] / 2, sizes[sizes > 0])


def sweep(layer: Layer, structure: Structure, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and mask (G, R, D) of a layer that keeps `count` weights, and the score that each weight or block had
    when it was chosen or not, (G, R, D / size) float64.

    The score of a block w is w^T C^-1 w where C is its part of H^-1, given the columns before it.
    """
    upper = torch.linalg.cholesky(layer.inverse, upper=True)
    weight, kept = layer.live(), layer.kept.clone()
    scores = []
    width = max(1, SPAN // structure.size) * structure.size
    spans = [(a, min(a + width, weight.shape[2])) for a in range(0, weight.shape[2], width)]
    budgets = spread(count, [int(kept[..., a:b].sum()) for a, b in spans])
    left = 0
    for (a, b), budget in zip(spans, budgets, strict=True):
        part, present = weight[..., a:b], kept[..., a:b]
        scores.append(_scores(part * present, upper[:, a:b, a:b], structure.unit))
        if structure.kind != "n:m":
            present &= _best(scores[-1], present, budget + left, structure.unit)
            left += budget - int(present.sum())
        errors = _through(part, present, upper[:, a:b, a:b], structure)
        weight[..., b:] -= errors @ upper[:, a:b, b:]
    return weight, kept, torch.cat(scores, 2)


def _through(part: Tensor, kept: Tensor, upper: Tensor, structure: Structure) -> Tensor:
    """Prune one span (G, R, S) in place, and N:M choose its mask; the errors (G, R, S) that later columns make up
    for."""
    errors = torch.zeros_like(part)
    for i in range(part.shape[2]):
        if structure.kind == "n:m" and i % structure.size == 0:
            at = slice(i, i + structure.size)
            score = _scores(part[..., at], upper[:, at, at], 1).masked_fill(~kept[..., at], -torch.inf)
            order = score.sort(dim=2, descending=True, stable=True).indices[..., structure.most :]
            kept[..., at] = kept[..., at].scatter(2, order, False)
        error = part[..., i].masked_fill(kept[..., i], 0) / upper[:, i, i, None]
        part[..., i:] -= error[..., None] * upper[:, None, i, i:]
        part[..., i].masked_fill_(~kept[..., i], 0)
        errors[..., i] = error
    return errors


def _scores(part: Tensor, upper: Tensor, size: int) -> Tensor:
    """(G, R, S) weights and (G, S, S) upper factor of H^-1 -> (G, R, S / size)."""
    if size == 1:
        return (part / upper.diagonal(dim1=1, dim2=2)[:, None]).square()
    factors = upper.unflatten(1, (-1, size)).unflatten(3, (-1, size)).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    columns = part.unflatten(2, (-1, size)).permute(0, 2, 3, 1)  # (G, S / size, size, R)
    return torch.linalg.solve_triangular(factors.mT, columns, upper=False).square().sum(2).mT


def _best(scores: Tensor, kept: Tensor, most: int, size: int) -> Tensor:
    """True in the blocks of the highest scores, which together have at most `most` weights and less than a block
    fewer; among equal ones in the first. (G, R, S) bool."""
    sizes = kept.unflatten(2, (-1, size)).sum(3)
    order = scores.masked_fill(sizes == 0, -torch.inf).flatten().sort(descending=True, stable=True).indices
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen[order] = sizes.flatten()[order].cumsum(0) <= most
    return chosen.reshape(scores.shape).repeat_interleave(size, dim=2)
