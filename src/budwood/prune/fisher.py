"""The empirical Fisher matrix in blocks along its diagonal, for networks whose blocks do not fit into memory.

F = dampening I + (1/N) sum g g^T over N gradients, each the mean of a mini-batch's (Singh & Alistarh 2020). A layer's
remaining weights are cut into blocks of `block` consecutive ones. Gradients are streamed to disk and read back some
blocks at a time; a block's inverse, in float64, is never kept:

- no more gradients than weights in a block: by Woodbury's identity, from the block's slice of the gradients G (N, c):
  F^-1 = (I - G^T (N dampening I + G G^T)^-1 G) / dampening;
- more of them: from the sum of the outer products (c, c); of more than 3 c, which take more room than it, the file is
  folded into it whenever it is full.

Disk: 4 N bytes a weight up to N = max(3 c, 64), 8 c + 4 max(c, 64) beyond.
"""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.pruner import Plan
from ..train import distributed
from .gradients import gradients
from .structure import groups, ungroup

TOGETHER = 32
"""Images that go through the network at once: a mini-batch's gradient is the mean over such parts."""
CHUNK = 2**24
"""Float64 numbers of one matrix of the blocks that are worked on at once: 128 MB."""
ROWS = 64
"""Gradients that are at least folded together."""


@dataclass(frozen=True)
class Inverse:
    """The inverses of some blocks, as shift I + sign root^T root. root: (blocks, k, c) float64."""

    shift: float
    sign: float
    root: Tensor
    least: Tensor
    """(blocks, c): 1 / F_qq, which the diagonal of the inverse is never below but for rounding."""

    def diagonal(self) -> Tensor:
        """(blocks, c), positive."""
        return torch.maximum(self.shift + self.sign * self.root.square().sum(1), self.least)

    def times(self, vectors: Tensor) -> Tensor:
        """F^-1 v, block by block. vectors: (blocks, c)."""
        inner = self.root.mT @ (self.root @ vectors[..., None])
        return self.shift * vectors + self.sign * inner[..., 0]

    def within(self, size: int) -> Tensor:
        """The inverse at the groups of `size` weights: (blocks, c / size, size, size)."""
        if size == 1:
            return self.diagonal()[..., None, None]
        parts = self.root.unflatten(2, (-1, size)).transpose(1, 2)
        return self.sign * (parts.mT @ parts) + self.shift * torch.eye(size).to(parts)

    def dense(self) -> Tensor:
        """(blocks, c, c)."""
        found = self.sign * (self.root.mT @ self.root)
        found.diagonal(dim1=1, dim2=2).add_(self.shift)
        return found


def by_gradients(rows: Tensor, count: int, dampening: float) -> Inverse:
    """From the gradients themselves. rows: (blocks, N, c) float64; `count` is N."""
    small = rows @ rows.mT
    small.diagonal(dim1=1, dim2=2).add_(count * dampening)
    root = torch.linalg.solve_triangular(_cholesky(small), rows, upper=False)
    return Inverse(1 / dampening, -1 / dampening, root, 1 / (dampening + rows.square().sum(1) / count))


def by_products(outer: Tensor, count: int, dampening: float) -> Inverse:
    """From the sum of the gradients' outer products. outer: (blocks, c, c) float64."""
    fisher = outer / count
    fisher.diagonal(dim1=1, dim2=2).add_(dampening)
    unit = torch.eye(outer.shape[-1]).to(outer).expand_as(outer)
    root = torch.linalg.solve_triangular(_cholesky(fisher), unit, upper=False)
    return Inverse(0.0, 1.0, root, 1 / fisher.diagonal(dim1=1, dim2=2))


def _cholesky(matrices: Tensor) -> Tensor:
    """Lower factors; a UserError where there are none."""
    factor, info = torch.linalg.cholesky_ex(matrices)
    if bool(info.any()) or not bool(torch.isfinite(factor.diagonal(dim1=1, dim2=2)).all()):
        raise UserError(
            "the Fisher matrix cannot be inverted: its gradients are not finite, or so large that the dampening is "
            "lost beside them; lower the learning rate, or raise the dampening (--option dampening=1e-4)"
        )
    return factor


class Cut:
    """How one layer is cut into blocks: its weights in the order of its groups of `size`, without the groups that are
    pruned as a whole. Weights that are pruned in a group that stays have value and gradient zero."""

    def __init__(self, kept: Tensor, size: int, block: int) -> None:
        self.shape, self.size = kept.shape, size
        rows = self._rows(kept)
        self._live = rows.any(1)
        self._present = rows[self._live].flatten()
        self.count = len(self._present)
        self._whole = bool(kept.all())
        self.block = max(size, min(block - block % size, self.count))
        """Weights a block (c), a multiple of `size`."""
        self.blocks = -(-self.count // self.block)
        self.present = self.padded(self._present)
        """(blocks, c): where there is a weight to prune."""

    def flat(self, values: Tensor) -> Tensor:
        """(count,): values of the layer's shape, zero where pruned."""
        rows = self._rows(values.detach().cpu())
        return rows.flatten() if self._whole else rows[self._live].flatten().masked_fill(~self._present, 0)

    def padded(self, flat: Tensor) -> Tensor:
        """(..., any number) -> (..., blocks, c), with zeros in what the last block has too many."""
        blocks = -(-flat.shape[-1] // self.block)
        missing = blocks * self.block - flat.shape[-1]
        filled = nn.functional.pad(flat, (0, missing)) if missing else flat
        return filled.unflatten(-1, (blocks, self.block))

    def back(self, blocks: Tensor) -> Tensor:
        """(blocks, c) -> the layer's shape, zero where pruned."""
        rows = torch.zeros(len(self._live), self.size, dtype=blocks.dtype)
        rows[self._live] = blocks.flatten()[: self.count].reshape(-1, self.size)
        return ungroup(rows, self.shape) if self.size > 1 else rows.reshape(self.shape)

    def _rows(self, values: Tensor) -> Tensor:
        return groups(values, self.size) if self.size > 1 else values.reshape(-1, 1)


class LayerFisher:
    """The Fisher blocks of one layer, in two files beside `path`: `count` gradients go in, inverses come out."""

    def __init__(self, cut: Cut, path: Path, count: int) -> None:
        self.cut, self.count = cut, count
        self.few = count <= cut.block
        self.whole = count <= max(3 * cut.block, ROWS)
        self.most = count if self.whole else max(cut.block, ROWS)
        """Gradients in the file at most."""
        self._rows, self._outer = path.with_suffix(".rows"), path.with_suffix(".outer")
        self._held = 0

    @property
    def bytes(self) -> int:
        """On disk, at most."""
        products = 0 if self.whole else 8 * self.cut.block**2 * self.cut.blocks
        return 4 * self.most * self.cut.count + products

    def add(self, gradient: Tensor) -> None:
        """One more gradient, of the layer's shape."""
        with _disk(self._rows.parent), self._rows.open("ab" if self._held else "wb") as file:
            file.write(self.cut.flat(gradient).float().numpy().data)
        self._held += 1
        if not self.whole and self._held == self.most:
            self.fold()

    def fold(self) -> None:
        """Add the file's gradients to the outer products, and begin it anew."""
        if not self._held:
            return
        exists = self._outer.exists()
        with _disk(self._outer.parent), self._outer.open("r+b" if exists else "wb") as file:
            for a, b in self._chunks():
                outer = _products(self._read(a, b))
                if exists:
                    outer += self._folded(a, b)
                file.seek(8 * a * self.cut.block**2)
                file.write(outer.contiguous().numpy().data)
        self._held = 0

    def inverses(self, dampening: float, device: torch.device) -> Iterator[tuple[slice, Inverse]]:
        """(which blocks, their inverses on `device`), some blocks at a time, once all gradients are in."""
        if not self.whole:
            self.fold()
        for a, b in self._chunks():
            if self.few:
                yield slice(a, b), by_gradients(self._read(a, b).to(device), self.count, dampening)
            else:
                products = _products(self._read(a, b).to(device)) if self.whole else self._folded(a, b).to(device)
                yield slice(a, b), by_products(products, self.count, dampening)

    def _chunks(self) -> list[tuple[int, int]]:
        step = max(1, CHUNK // (self.cut.block * max(self.cut.block, self.most)))
        return [(a, min(a + step, self.cut.blocks)) for a in range(0, self.cut.blocks, step)]

    def _read(self, a: int, b: int) -> Tensor:
        """(b - a, gradients held, c) float64, of the blocks from a to b."""
        c = self.cut.block
        held = np.memmap(self._rows, dtype=np.float32, mode="r", shape=(self._held, self.cut.count))
        part = self.cut.padded(torch.from_numpy(np.array(held[:, a * c : b * c]))).transpose(0, 1)
        return torch.empty(part.shape, dtype=torch.float64).copy_(part)

    def _folded(self, a: int, b: int) -> Tensor:
        c = self.cut.block
        numbers = np.fromfile(self._outer, np.float64, (b - a) * c * c, offset=8 * a * c * c)
        return torch.from_numpy(numbers.reshape(b - a, c, c))


def _products(rows: Tensor) -> Tensor:
    """The sums of the outer products. rows: (blocks, N, c) -> (blocks, c, c)."""
    return rows.mT @ rows


@contextlib.contextmanager
def workspace(plan: Plan) -> Iterator[Path]:
    """An empty folder for large files, gone afterwards; what a killed run left in it goes first."""
    with _disk(plan.scratch or Path(tempfile.gettempdir())):
        if plan.scratch is None:
            folder = Path(tempfile.mkdtemp(prefix="budwood-fisher-"))
        else:
            folder = plan.scratch / f"fisher{distributed.rank()}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A UserError where the disk is full or cannot be written."""
    try:
        yield
    except OSError as problem:
        raise UserError(
            f"the gradients cannot be kept in {place}: {problem.strerror or problem}; make room there, "
            "or ask for fewer (--option gradients=100)"
        ) from problem


def room(folder: Path) -> int:
    """Bytes that one process may fill: nine tenths of what is free, shared among all processes."""
    return int(0.9 * shutil.disk_usage(folder).free) // distributed.world()


def averaged(
    model: nn.Module, names: list[str], plan: Plan, count: int, size: int, salt: int, *, fisher: bool = True
) -> Iterator[list[Tensor]]:
    """`gradients` of the mean loss over `size` images each, which go through the network in parts of up to TOGETHER:
    memory does not grow with `size`."""
    part = max(d for d in range(1, min(size, TOGETHER) + 1) if size % d == 0)
    parts = size // part
    stream = gradients(model, names, plan, count * parts, part, salt, fisher=fisher)
    if parts == 1:
        yield from (found for found, _ in stream)
        return
    for _ in range(count):
        total, seen = [torch.zeros_like(model.get_parameter(name)) for name in names], 0
        for found, images in itertools.islice(stream, parts):
            total = [t.add_(g, alpha=images) for t, g in zip(total, found, strict=True)]
            seen += images
        yield [t.div_(seen) for t in total]
