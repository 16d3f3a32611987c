"""How a sparsity is shared among the layers: uniform, ERK, published budgets, or global (no share fixed beforehand).

A mask is exact to one weight over all layers that take part, in blocks of 1xB to less than one block. Ties go to the
weight that comes first.
"""

import csv
import functools
import itertools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..models.network import head_of
from .structure import SINGLE, groups, parse, protected, require_divisible, ungroup

Allocation = Literal["global", "uniform", "erk", "str"]
Part = Literal["first", "classifier", "depthwise", "undivided"]

CONVENTIONS: dict[str, tuple[Part, ...]] = {
    "global": (),
    "erk": (),
    "str": (),
    "uniform": ("first", "classifier", "depthwise"),
}
"""What stays dense unless told otherwise, as the methods' authors have it for a ResNet: global, ERK and STR prune every
layer (RigL's MobileNets keep the first and the depthwise convolutions); uniform keeps the first convolution and the
classifier (AC/DC), and the depthwise layers (Zhu & Gupta 2017)."""
PATTERN_CONVENTION: tuple[Part, ...] = ("first", "depthwise")
"""What stays dense in any case where groups are pruned: three input channels, or one, make no group."""


def kept_dense(model: nn.Module, parts: tuple[Part, ...], size: int = 1) -> set[str]:
    """Weight names of the first convolution, the classifier, the depthwise convolutions and the layers whose input
    channels do not fall into groups of `size`: those in `parts`."""
    convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    names: set[str] = set()
    if "first" in parts and convolutions:
        names.add(convolutions[0][0])
    if "classifier" in parts:
        names.add(head_of(model))
    if "depthwise" in parts:
        names |= {n for n, m in convolutions if m.groups > 1 and m.groups == m.in_channels}
    if "undivided" in parts:
        layers = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
        names |= {n for n, m in layers if m.weight.shape[1] % size}
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


def densities(
    allocation: Literal["uniform", "erk", "str"], shapes: Mapping[str, tuple[int, ...]], sparsity: float
) -> dict[str, float]:
    """Layer -> density, of an allocation that asks for no scores. Raises UserError as `str_budget` does."""
    return {"uniform": uniform, "erk": erk, "str": str_budget}[allocation](shapes, sparsity)


@functools.cache
def _str_table() -> dict[float, dict[str, float]]:
    """Total sparsity -> layer -> sparsity, for ResNet-50 (the file says from where)."""
    text = resources.files("budwood.prune").joinpath("budgets/str_resnet50.csv").read_text(encoding="utf-8")
    header, *rows = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    dense = {0.0: {row[0]: 0.0 for row in rows}}
    return dense | {
        float(total) / 100: {row[0]: float(row[k]) / 100 for row in rows} for k, total in enumerate(header) if k > 0
    }


def str_budget(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """Layer -> density, as STR (Kusupati et al. 2020) learned them for ResNet-50, between two of its sixteen totals in
    proportion, and so below the least one (79.55 %), on the way from a dense network. Raises UserError for other
    networks, and for sparsities above the highest."""
    table = _str_table()
    totals = sorted(table)
    layers = {name: name.removesuffix(".weight") for name in shapes}
    strange = next((layer for layer in layers.values() if layer not in table[totals[0]]), None)
    if strange is not None:
        raise UserError(
            f"STR published budgets for ResNet-50 alone, which has no layer {strange}; choose another allocation, erk "
            "or uniform"
        )
    if sparsity > totals[-1]:
        raise UserError(f"STR's budgets are for sparsities up to {totals[-1]:g}, not {sparsity:g}")
    above = next(total for total in totals if total >= sparsity)
    below = max((total for total in totals if total <= sparsity), default=above)
    share = (sparsity - below) / (above - below) if above > below else 0.0
    density = {n: 1 - (1 - share) * table[below][x] - share * table[above][x] for n, x in layers.items()}
    # Rounded to two digits, they do not sum to the total exactly.
    sizes = {name: _product(shape) for name, shape in shapes.items()}
    factor = (1 - sparsity) * sum(sizes.values()) / sum(density[name] * sizes[name] for name in shapes)
    return {name: min(1.0, factor * value) for name, value in density.items()}


def mask_by_score(
    scores: Mapping[str, Tensor], mask: Mask, sparsity: float, allocation: Allocation, pattern: str = SINGLE
) -> Mask:
    """Keep the highest scores of every layer in `scores`; what `mask` has pruned stays pruned, and its other layers
    stay as they are.

    scores: parameter name -> tensor of its shape. `sparsity` is over these layers together. A 1xB block goes by the
    sum of its scores. With N:M the highest N of a group are never pruned, so every sparsity up to 1 - N/M can be met.
    Raises UserError where there is no layer, a score is not finite, the mask is sparser already, or the pattern does
    not divide a layer or allow the sparsity.
    """
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    structure = parse(pattern)
    before, budget = _budget(shapes, mask, sparsity, pattern)
    flat = {name: _flat_score(name, scores[name], mask[name]) for name in scores}
    if structure.kind == "n:m":
        flat, final = _protect(flat, shapes, mask, sparsity, pattern)
        if final:
            budget = sum(int(torch.isposinf(score).sum()) for score in flat.values())
            allocation = "global"
    counts = _counts_by_layer(allocation, shapes, sparsity, before, budget)
    entries = {name: mask[name] for name in mask}
    left = 0  # what a layer keeps too little, as blocks are whole, is for the next
    for names, most in counts:
        if structure.kind == "block":
            kept = _top_blocks({name: flat[name].reshape(shapes[name]) for name in names}, most + left, structure.size)
            left += most - sum(int(bits.sum()) for bits in kept.values())
        else:
            keep = _top(torch.cat([flat[name] for name in names]), most)
            kept = dict(zip(names, keep.split([flat[name].numel() for name in names]), strict=True))
        entries |= {name: bits.reshape(shapes[name]) for name, bits in kept.items()}
    return Mask(entries)


def _budget(shapes: Mapping[str, tuple[int, ...]], mask: Mask, sparsity: float, pattern: str) -> tuple[Mask, int]:
    """What `mask` keeps in these layers, and how many weights they keep together at `sparsity`; UserError where that
    cannot be."""
    if not shapes:
        raise UserError("every layer of this network is one that is kept dense: nothing to prune; change keep_dense")
    total = sum(_product(shape) for shape in shapes.values())
    before = mask.restricted(shapes)
    structure = parse(pattern)
    budget = total - round(sparsity * total)
    if structure.kind == "block" and budget - structure.size < before.kept < budget:
        budget = before.kept  # an earlier, lower sparsity was rounded to a whole block
    if budget > before.kept:
        raise UserError(
            f"the network already has {before.sparsity:.2%} zeros in these layers, more than the sparsity {sparsity:g} "
            "asked for; ask for a higher one"
        )
    require_divisible(shapes, pattern)
    return before, budget


def layer_counts(
    shapes: Mapping[str, tuple[int, ...]], mask: Mask, sparsity: float, allocation: Allocation, pattern: str = SINGLE
) -> list[tuple[list[str], int]]:
    """Groups of layers that compete with each other (with "global" all together, else each alone), and how many
    weights each group keeps. UserError as of `mask_by_score`."""
    before, budget = _budget(shapes, mask, sparsity, pattern)
    return _counts_by_layer(allocation, shapes, sparsity, before, budget)


def spread(total: int, sizes: Sequence[int]) -> list[int]:
    """Whole parts of `total`, in proportion to `sizes` and at most these, that sum up to it: rounded where they are
    cumulated, so that what is rounded away goes to the next."""
    every = sum(sizes)
    cumulated = [0, *itertools.accumulate(sizes)]
    marks = [total * value // every if every else 0 for value in cumulated]
    return [b - a for a, b in itertools.pairwise(marks)]


def _protect(
    flat: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], mask: Mask, sparsity: float, pattern: str
) -> tuple[dict[str, Tensor], bool]:
    """The scores, infinite for the highest N of every M; and whether these are all that stays. A network with zeros
    of its own then has more zeros than asked for: groups that have fewer than N weights left."""
    structure = parse(pattern)
    most = 1 - structure.most / structure.size
    if sparsity > most + 1e-6:
        raise UserError(
            f"{pattern} leaves no more than {most:g} zeros, {sparsity:g} cannot be reached; ask for {most:g}"
        )
    found = {}
    for name, score in flat.items():
        best = protected(score.reshape(shapes[name]), structure.most, structure.size).flatten()
        found[name] = score.masked_fill(best & mask[name].flatten(), torch.inf)
    return found, sparsity > most - 1e-6


def _counts_by_layer(
    allocation: Allocation, shapes: Mapping[str, tuple[int, ...]], sparsity: float, before: Mask, budget: int
) -> list[tuple[list[str], int]]:
    """Groups of layers that compete with each other, and how many weights each group keeps."""
    if allocation == "global":
        return [(list(shapes), budget)]
    counts = whole_counts(densities(allocation, shapes, sparsity), shapes, before.counts(), budget)
    return [([name], counts[name]) for name in shapes]


def _top_blocks(scores: Mapping[str, Tensor], count: int, size: int) -> dict[str, Tensor]:
    """Layer -> True in the best blocks, together at most `count` weights and less than a block fewer. Pruned weights
    have the score -inf: they count for nothing and stay out."""
    rows = {name: groups(score, size) for name, score in scores.items()}
    every = torch.cat(list(rows.values()))
    present = torch.isfinite(every)
    sums = every.masked_fill(~present, 0).sum(1).masked_fill(~present.any(1), -torch.inf)
    order = sums.sort(descending=True, stable=True).indices
    chosen = torch.zeros(len(every), dtype=torch.bool)
    chosen[order] = present.sum(1)[order].cumsum(0) <= count
    kept = (chosen[:, None] & present).split([len(row) for row in rows.values()])
    return {name: ungroup(bits, scores[name].shape) for name, bits in zip(rows, kept, strict=True)}


def _flat_score(name: str, score: Tensor, kept: Tensor) -> Tensor:
    """Scores on the CPU, -inf where pruned."""
    require_finite(name, score)
    return score.detach().float().cpu().flatten().masked_fill(~kept.flatten(), -torch.inf)


def require_finite(name: str, score: Tensor) -> None:
    """Raise UserError where a score is none."""
    if not bool(torch.isfinite(score).all()):
        raise UserError(
            f"the scores of {name} are not finite: the weights have overflowed, or an option is far "
            "too large or small; lower the learning rate, or mend it"
        )


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


def whole_counts(
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
