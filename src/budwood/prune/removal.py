"""Weights removed from the rows of a layer, always the ones that the others can make up for the best."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .layerwise import Layer
from .structure import Structure

BORDER = 576
"""Columns of the widest layer in which blocks are removed one by one. A row of D columns takes D^3 / 6 multiplications,
which one by one wait for memory."""
ROUNDS = 64
"""In wider layers each removal takes a 64th of the blocks: those of the lowest scores, one after the other."""
MEMORY = 3 * 2**27
"""Bytes that the rows removed from at the same time may take."""


@dataclass(frozen=True)
class Trace:
    """The removals of every row in their order, until nothing is left or N:M is met: (G * R, steps) each."""

    order: Tensor
    """Which block of columns goes, int64; -1 where the row is done."""
    losses: Tensor
    """By how much the row's squared error grows, float64; infinite where the row is done."""

    def running(self) -> Tensor:
        """The highest loss so far: a removal cannot be made before those that it builds on."""
        return self.losses.cummax(1).values


def trace(layer: Layer, structure: Structure) -> Trace:
    """Remove all that can go. Several rows at a time, each with an H of its own where weights are pruned already."""
    groups, rows, width = layer.weight.shape
    weight, kept = layer.live().flatten(0, 1), layer.kept.flatten(0, 1)
    group = torch.arange(groups * rows, device=weight.device) // rows
    batch = 1 if width <= BORDER else max(1, width // ROUNDS // structure.unit)
    parts = []
    for at in torch.arange(groups * rows, device=weight.device).split(max(1, MEMORY // (width**2 * 8))):
        inverse, which = layer.inverse, group[at]
        if not bool(kept[at].all()):
            inverse, which = _reduced(layer.hessian[which], kept[at]), torch.arange(len(at), device=at.device)
        parts.append(_Rows(weight[at], kept[at], inverse, which, structure, batch).run())
    steps = max(part.order.shape[1] for part in parts)
    return Trace(
        torch.cat([F.pad(part.order, (0, steps - part.order.shape[1]), value=-1) for part in parts]),
        torch.cat([F.pad(part.losses, (0, steps - part.losses.shape[1]), value=torch.inf) for part in parts]),
    )


def _reduced(hessian: Tensor, kept: Tensor) -> Tensor:
    """The inverses (r, D, D) of the parts of H that rows keep; the identity elsewhere."""
    both = kept[:, :, None] & kept[:, None]
    parts = hessian * both + torch.diag_embed((~kept).double())
    return torch.cholesky_inverse(torch.linalg.cholesky(parts)).contiguous()


class _Rows:
    """Rows from which blocks of B columns (B = 1 for single weights) are removed in step, m of each at a time.

    H^-1 of a row with its removed columns eliminated is the first H^-1 minus U U^T, and what is kept of it are the
    columns of U, those of a pivoted Cholesky factor: m B more a step. Blocks that are gone leave the tensors now and
    then, so that of D blocks n are left.
    """

    def __init__(
        self, weight: Tensor, kept: Tensor, inverse: Tensor, which: Tensor, structure: Structure, batch: int
    ) -> None:
        """weight and kept (r, D); inverse (k, D, D), of which row i has the one at which[i]; batch is m."""
        rows, width = weight.shape
        self.size, self.structure, self.batch = structure.unit, structure, batch
        self.inverse, self.which = inverse.unflatten(1, (-1, self.size)), which
        self.rows = torch.arange(rows, device=weight.device)
        self.weight = weight.masked_fill(~kept, 0).unflatten(1, (-1, self.size))  # (r, n, B)
        own = self.inverse.unflatten(3, (-1, self.size)).diagonal(dim1=1, dim2=3).movedim(-1, 1)
        self.own = own[which]  # (r, n, B, B), each block's part of H^-1
        self.gone = ~kept.unflatten(1, (-1, self.size)).any(2)  # (r, n)
        self.place = torch.arange(self.gone.shape[1], device=weight.device).repeat(rows, 1)  # (r, n)
        self.factor = weight.new_empty(*self.weight.shape, width)  # U: (r, n, B, D), `depth` columns of it
        self.depth = 0
        if structure.kind == "n:m":
            self.zeros = (~kept).unflatten(1, (-1, structure.size)).sum(2)

    def run(self) -> Trace:
        order, losses = [self.place[:, :0]], [self.weight[:, :0, 0]]
        for _ in range(self.gone.shape[1]):
            j, able = self._least(self._scores())
            if not bool(able.any()):
                break
            order.append(self.place.gather(1, j).masked_fill(~able, -1))
            losses.append(self._remove(j, able).masked_fill(~able, torch.inf))
            self._compact()
        return Trace(torch.cat(order, 1), torch.cat(losses, 1))

    def _scores(self) -> Tensor:
        """w^T C^-1 w of every block, infinite where it cannot go: (r, n)."""
        if self.size == 1:
            shares = self.weight / self.own[..., 0]
        else:
            shares = torch.linalg.solve(self.own, self.weight)
        closed = self.gone
        if self.structure.kind == "n:m":
            full = self.zeros >= self.structure.size - self.structure.most
            closed = closed | full.gather(1, self.place // self.structure.size)
        return (shares * self.weight).sum(2).clamp(min=0).masked_fill(closed, torch.inf)

    def _least(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Where the lowest scores are, (r, m), and which of these can go; of equal ones the last come first, so that
        the first weight stays."""
        turned = scores.flip(1)
        if self.batch == 1:
            j = turned.argmin(1, keepdim=True)
        else:
            j = turned.sort(dim=1, stable=True).indices[:, : self.batch]
        able, j = torch.isfinite(turned.gather(1, j)), scores.shape[1] - 1 - j
        if self.structure.kind == "n:m":  # one of a group at a time
            group = self.place.gather(1, j) // self.structure.size
            able &= ~(group[:, :, None] == group[:, None]).tril(-1).any(2)
        return j, able

    def _remove(self, j: Tensor, able: Tensor) -> Tensor:
        """Take out the blocks j (r, m) where they are able; what each in turn adds to the error, (r, m)."""
        place, several = self.place.gather(1, j), j.shape[1] * self.size
        columns = self._columns(place, j)
        on = able.repeat_interleave(self.size, dim=1)
        taken = _columns_at(columns, j, self.size)  # C, of all together: (r, m B, m B)
        taken = taken * (on[:, :, None] & on[:, None]) + torch.diag_embed((~on).to(taken))
        # An inverse of this size and a product take less time than solving for so many columns.
        root = torch.linalg.cholesky(taken)
        root = torch.linalg.solve_triangular(root, torch.diag_embed(on.to(taken)), upper=False)
        new = root @ columns  # (r, m B, n B)
        before = _at(self.weight, j).flatten(1) * on
        shares = root @ before[:, :, None]
        self.weight.sub_((shares.mT @ new).reshape(self.weight.shape))
        if self.depth + several > self.factor.shape[3]:  # where some of each m are not able
            self.factor = F.pad(self.factor, (0, max(several, self.depth // 4)))
        added = self.factor[..., self.depth : self.depth + several]
        added.copy_(new.mT.unflatten(1, (-1, self.size)))
        self.own.sub_(new.square().sum(1).reshape(self.own.shape) if self.size == 1 else added @ added.mT)
        self.depth += several
        row, at = self.rows[:, None].expand_as(j)[able], j[able]
        self.gone[row, at] = True
        self.weight[row, at] = 0
        self.own[row, at] = torch.eye(self.size, dtype=new.dtype, device=new.device)
        if self.structure.kind == "n:m":
            self.zeros[row, place[able] // self.structure.size] += 1
        return shares.reshape(*j.shape, self.size).square().sum(2) / 2

    def _columns(self, place: Tensor, j: Tensor) -> Tensor:
        """The blocks j of H^-1 as it is now, as rows: (r, m B, n B)."""
        count = self.inverse.shape[1]
        first = self.inverse.flatten(0, 1).index_select(0, (self.which[:, None] * count + place).flatten())
        first = first.reshape(len(j), -1, count * self.size)  # (r, m B, D)
        if count > self.place.shape[1]:
            first = _columns_at(first, self.place, self.size)
        picked = _at(self.factor, j).flatten(1, 2)[..., : self.depth]
        return torch.baddbmm(first, picked, self.factor.flatten(1, 2)[..., : self.depth].mT, alpha=-1)

    def _compact(self) -> None:
        """Drop blocks that are gone in every row, where they are many."""
        n = int((~self.gone).sum(1).max())
        if n == 0 or n > 0.75 * self.gone.shape[1]:
            return
        stay = self.gone.to(torch.int8).sort(dim=1, stable=True).indices[:, :n]
        self.gone, self.place = self.gone.gather(1, stay), self.place.gather(1, stay)
        self.weight, self.own, self.factor = (_at(values, stay) for values in (self.weight, self.own, self.factor))


def _at(values: Tensor, j: Tensor) -> Tensor:
    """values (r, n, ...), j (r, m) -> (r, m, ...). Copies whole parts, many times as fast as torch.gather."""
    first = torch.arange(len(j), device=j.device)[:, None] * values.shape[1]
    return values.flatten(0, 1).index_select(0, (first + j).flatten()).unflatten(0, j.shape)


def _columns_at(values: Tensor, j: Tensor, size: int) -> Tensor:
    """values (r, k, n B), blocks of B columns j (r, m) -> (r, k, m B)."""
    at = (j[:, :, None] * size + torch.arange(size, device=j.device)).flatten(1)
    return values.gather(2, at[:, None].expand(-1, values.shape[1], -1))
