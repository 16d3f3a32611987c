"""How a sparsity is shared among the layers: uniform, ERK, or global (no share fixed beforehand).

A mask is exact to one weight over all layers that take part. Ties go to the weight that comes first.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..models.network import head_of

Allocation = Literal["global", "uniform", "erk"]
Part = Literal["first", "classifier", "depthwise"]

CONVENTIONS: dict[str, tuple[Part, ...]] = {"global": (), "erk": (), "uniform": ("first", "classifier", "depthwise")}
"""What stays dense unless told otherwise, as the methods' authors have it: global and ERK prune every layer;
uniform keeps the first convolution and the classifier (RigL, AC/DC), and the depthwise layers (Zhu & Gupta 2017)."""


def kept_dense(model: nn.Module, parts: tuple[Part, ...]) -> set[str]:
    """Weight names of the first convolution, the classifier and the depthwise convolutions, those in `parts`."""
    convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    names: set[str] = set()
    if "first" in parts and convolutions:
        names.add(convolutions[0][0])
    if "classifier" in parts:
        names.add(head_of(model))
    if "depthwise" in parts:
        names |= {n for n, m in convolutions if m.groups > 1 and m.groups == m.in_channels}
    return {f"{name}.weight" for name in names}


def uniform(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """Layer -> density: the same everywhere."""
    return {name: 1.0 - sparsity for name in shapes}


def erk(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """Layer -> density, Erdos-Renyi-Kernel (RigL, Evci et al. 2020): proportional to the sum of a weight's extents
    over their product; what would pass 1 is dense, and the factor solved again for the rest."""
    sizes = {name: _product(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        budget = (1.0 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        factor = max(0.0, budget) / sum(raw[name] * sizes[name] for name in rest) if rest else 0.0
        over = {name for name in rest if factor * raw[name] > 1.0}
        if not over:
            return {name: 1.0 if name in dense else factor * raw[name] for name in shapes}
        dense |= over


def mask_by_score(scores: Mapping[str, Tensor], mask: Mask, sparsity: float, allocation: Allocation) -> Mask:
    """Keep the highest scores of every layer in `scores`; what `mask` has pruned stays pruned, and its other layers
    stay as they are.

    scores: parameter name -> tensor of its shape. `sparsity` is over these layers together.
    Raises UserError where there is no layer, a score is not finite or the mask is sparser already.
    """
    if not scores:
        raise UserError("every layer of this network is one that is kept dense: nothing to prune; change keep_dense")
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    total = sum(score.numel() for score in scores.values())
    before = mask.restricted(scores)
    budget = total - round(sparsity * total)
    if budget > before.kept:
        raise UserError(
            f"the network already has {before.sparsity:.2%} zeros in these layers, more than the sparsity {sparsity:g} "
            "asked for; ask for a higher one"
        )
    flat = {name: _flat_score(name, scores[name], mask[name]) for name in scores}
    if allocation == "global":
        keep = _top(torch.cat(list(flat.values())), budget)
        kept = dict(zip(flat, keep.split([f.numel() for f in flat.values()]), strict=True))
    else:
        densities = {"uniform": uniform, "erk": erk}[allocation](shapes, sparsity)
        counts = _whole_counts(densities, shapes, before.counts(), budget)
        kept = {name: _top(flat[name], counts[name]) for name in flat}
    entries = {name: mask[name] for name in mask}
    return Mask(entries | {name: bits.reshape(shapes[name]) for name, bits in kept.items()})


def _flat_score(name: str, score: Tensor, kept: Tensor) -> Tensor:
    """Scores on the CPU, -inf where pruned."""
    flat = score.detach().float().cpu().flatten()
    if not bool(torch.isfinite(flat).all()):
        raise UserError(f"the scores of {name} are not finite: the weights have overflowed; lower the learning rate")
    return flat.masked_fill(~kept.flatten(), -torch.inf)


def _top(flat: Tensor, count: int) -> Tensor:
    """True at the `count` highest values; among equal ones the first."""
    if count <= 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    if count >= flat.numel():
        return torch.ones_like(flat, dtype=torch.bool)
    place = flat.numel() - count
    threshold = float(np.partition(flat.numpy(), place)[place])  # five times as fast as kthvalue
    keep = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    keep[ties[: count - int(keep.sum())]] = True
    return keep


def _whole_counts(
    densities: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]], most: Mapping[str, int], budget: int
) -> dict[str, int]:
    """Whole weights per layer, at most `most` each, whose sum is `budget`: the floors, and what is missing to those
    with the largest remainder (so the first of them, where remainders are equal)."""
    wanted = {name: densities[name] * _product(shape) for name, shape in shapes.items()}
    counts = {name: min(int(value + 1e-9), most[name]) for name, value in wanted.items()}
    missing = budget - sum(counts.values())
    by_remainder = sorted(shapes, key=lambda name: counts[name] - wanted[name])
    while missing > 0:
        open_layers = [name for name in by_remainder if counts[name] < most[name]]
        if not open_layers:
            break
        share = max(1, missing // len(open_layers))
        for name in open_layers:
            step = min(share, most[name] - counts[name], missing)
            counts[name] += step
            missing -= step
    return counts


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
