"""What ExactOBS and SparseGPT share: each layer by itself keeps its outputs as near the dense network's as it can.

A layer with the weight W and inputs X becomes the sparse W' with a small |W X - W' X|^2 over the calibration images,
which is tr((W - W') H (W - W')^T) / 2 with H = 2 X X^T. X is what the dense network sees in every layer, also where
earlier layers are pruned already: batch norm statistics are made anew only when all are, and until then the outputs of
pruned layers are not what the finished network sees. So the layers can be done in any order.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from .allocation import Allocation, layer_counts
from .inputs import products
from .scored import Scored, ScoreOptions
from .scratch import store, stored
from .structure import ungroup

RANK = 1e-7
"""Of the mean diagonal: what is left of a column of H, given the others, below which it counts for none. The sums over
the inputs are no more exact than that."""


class LayerwiseOptions(ScoreOptions):
    allocation: Allocation = "uniform"
    """As of other methods; global shares by what each removal adds to a layer's error, relative to its output."""
    images: int = Field(256, ge=1, le=10_000_000)
    """How many are looked at; where there are fewer, they are seen again."""
    damping: float = Field(0.01, ge=0, le=1)
    """Added to the diagonal of H, relative to its mean. Where H is not of full rank then, it is 0.01."""


@dataclass(frozen=True)
class Layer:
    """One layer as G groups of R rows and D columns (G > 1 where a convolution has groups). A column's input channel
    changes fastest, so that what a pattern groups lies side by side."""

    name: str
    weight: Tensor
    """(G, R, D) float64, zero where it is pruned already."""
    kept: Tensor
    """(G, R, D) bool: what is not pruned already."""
    hessian: Tensor
    """(G, D, D) float64: H, damped. The diagonal of a dead input is that of a mean one."""
    dead: Tensor
    """(G, D) bool: inputs that are zero in every image. Their weights go first, and stay as they are where kept."""

    @functools.cached_property
    def inverse(self) -> Tensor:
        """(G, D, D) float64: of H."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.hessian)).contiguous()

    def live(self) -> Tensor:
        """The weights, zero where pruned or at dead inputs."""
        return self.weight.masked_fill(self.dead[:, None], 0)

    def energy(self) -> float:
        """The squared outputs, summed over outputs and places, averaged over images; without the bias."""
        weight = self.live()
        return float(((weight @ self.hessian) * weight).sum()) / 2


@dataclass(frozen=True)
class Removals:
    """What a layer could do without, in the order in which it would go: (n,) each."""

    losses: Tensor
    """What each removal adds to the layer's squared error, float64."""
    sizes: Tensor
    """How many weights it removes, int64."""


class Layerwise(Scored):
    """Layer by layer; a method decides in `settle` which weights of a layer stay, and what they become."""

    Options = LayerwiseOptions

    def settle(self, layer: Layer, count: int) -> tuple[Tensor, Tensor]:
        """Weight (G, R, D) float64 and mask of a layer that keeps `count` weights; with blocks as many of them as
        make whole blocks, with N:M as many as that allows."""
        raise NotImplementedError

    def removals(self, layer: Layer, sparsity: float) -> Removals:
        """All that could go, for layers to be compared; about `sparsity` of the weights will."""
        raise NotImplementedError

    @torch.no_grad()
    def prune_to(self, model: nn.Module, mask: Mask, sparsity: float, step: int = 0) -> Mask:
        names = self.layers(model, mask)
        shapes = {name: tuple(model.get_parameter(name).shape) for name in names}
        shares = layer_counts(shapes, mask, sparsity, self.options.allocation, self.pattern)
        work = _Work(self, model, mask, names, step)
        counts = {name: most for group, most in shares for name in group}
        if len(shares) < len(names) and self.structure.kind != "n:m":
            counts = work.shared_out(shares[0][1], sparsity)
        done = work.prune(counts)
        for name, (weight, _) in done.items():
            model.get_parameter(name).copy_(weight)
        return Mask(dict(mask) | {name: kept for name, (_, kept) in done.items()})


@dataclass
class _Work:
    """The layers of one pruning, one after the other. Each one's result is kept in a file, so that a run that is
    broken off goes on with the next layer."""

    pruner: Layerwise
    model: nn.Module
    mask: Mask
    names: Sequence[str]
    step: int
    done: int = field(default=0, init=False)

    def shared_out(self, budget: int, sparsity: float) -> dict[str, int]:
        """Name -> the weights to keep, where `budget` is for all layers: what costs the least goes, whichever layer's
        it is. A cost is relative to the layer's output."""

        def price(layer: Layer) -> dict[str, Tensor]:
            found = self.pruner.removals(layer, sparsity)
            return {"losses": found.losses.cpu() / (layer.energy() or 1.0), "sizes": found.sizes.cpu()}

        prices = dict(self._each("removals", price, 2 * len(self.names)))
        losses = torch.cat([part["losses"] for part in prices.values()])
        sizes = torch.cat([part["sizes"] for part in prices.values()])
        gone = cheapest(losses, sizes, int(sizes.sum()) - budget) * sizes
        parts = gone.split([len(part["sizes"]) for part in prices.values()])
        present = self.mask.counts()
        return {name: present[name] - int(part.sum()) for name, part in zip(prices, parts, strict=True)}

    def prune(self, counts: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> weight and mask, of the layer's shape."""
        present, left = self.mask.counts(), 0  # what a layer keeps too little, as blocks are whole, is for the next

        def wanted(name: str) -> int:
            return min(counts[name] + left, present[name])

        def settle(layer: Layer) -> dict[str, Tensor]:
            weight, kept = self.pruner.settle(layer, wanted(layer.name))
            shape = self.model.get_parameter(layer.name).shape
            rows = {"weight": weight.masked_fill(~kept, 0).float(), "kept": kept}
            return {key: ungroup(value, shape).cpu().contiguous() for key, value in rows.items()}

        found = {}
        for name, part in self._each("pruned", settle, self.done + len(self.names)):
            left += counts[name] - int(part["kept"].sum())
            found[name] = (part["weight"], part["kept"])
        return found

    def _each(
        self, what: str, make: Callable[[Layer], dict[str, Tensor]], total: int
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Name and result of every layer in order: from its file, or made now."""
        paths = {name: self._path(what, name) for name in self.names}
        there = {name: found for name, path in paths.items() if (found := stored(path)) is not None}
        fresh = self._layers([name for name in self.names if name not in there])
        for name, path in paths.items():
            if name in there:
                found = there[name]
            else:
                found = make(next(fresh))
                store(path, found)
            self.done += 1
            self.pruner.plan_.told(self.done, total)
            yield name, found

    def _path(self, what: str, name: str) -> Path | None:
        scratch = self.pruner.plan_.scratch
        return None if scratch is None else scratch / f"{what}-{self.step}-{name}.safetensors"

    def _layers(self, names: Sequence[str]) -> Iterator[Layer]:
        options = self.pruner.options
        for name, hessian in products(self.model, names, self.pruner.plan_, options.images, self.step):
            groups, weight = len(hessian), self.model.get_parameter(name).detach()
            kept = to_rows(self.mask[name], groups).to(hessian.device)
            rows = to_rows(weight, groups).to(hessian).masked_fill(~kept, 0)
            if not bool(torch.isfinite(rows).all()):
                raise UserError(f"the weights of {name.removesuffix('.weight')} are not finite: they have overflowed")
            place = to_rows(torch.arange(weight[0].numel()).reshape(weight[:1].shape), 1).flatten().to(hessian.device)
            hessian = hessian[:, place[:, None], place]
            yield Layer(name, rows, kept, damped(hessian, options.damping), hessian.diagonal(dim1=1, dim2=2) == 0)


def to_rows(values: Tensor, groups: int) -> Tensor:
    """A weight (O, I, ...) as (G, O / G, D), the input channels last; `ungroup` is the inverse."""
    return values.movedim(1, -1).reshape(groups, len(values) // groups, -1)


def damped(hessian: Tensor, share: float) -> Tensor:
    """(G, D, D) with `share` of its mean diagonal added to the diagonal, which dead inputs count nothing for and get
    themselves; with 0.01 of it, where the result is not of full rank."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    mean = diagonal.sum(1) / (~dead).sum(1).clamp(min=1)
    mean = torch.where(mean > 0, mean, 1.0)[:, None]
    found = hessian + torch.diag_embed(share * mean + dead * mean)
    factor, failed = torch.linalg.cholesky_ex(found)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    if share < 0.01 and (bool(failed.any()) or bool((pivots < RANK * mean).any())):
        return damped(hessian, 0.01)
    return found


def cheapest(losses: Tensor, sizes: Tensor, least: int) -> Tensor:
    """True at the removals to make, the cheapest first, until `least` weights are gone: (n,) bool. Of equal ones the
    first goes first."""
    order = losses.argsort(stable=True)
    gone = sizes[order].cumsum(0)
    made = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    made[order] = gone - sizes[order] < least
    return made
