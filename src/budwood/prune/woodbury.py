"""The inverse Fisher matrix of m gradients by Woodbury's identity: never as a matrix, and with its vectors on disk."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError

PAGE = 2**25
"""Numbers of the gradients that are in memory at a time: 0.25 GiB in float64, of which there are up to six."""


class _Group(NamedTuple):
    """Neighbouring blocks of equal size, which are in memory together; or a part of a block that is too large."""

    start: int
    stop: int
    blocks: int


class Fisher:
    """F = dampening I + mean of g g^T over m gradients of d weights, in blocks along the diagonal; and its inverse.

    `invert` puts in place of the gradients the m vectors of the paper, v_i = F_i^-1 g_i / sqrt(m + g_i^T F_i^-1 g_i)
    with F_i made of the gradients before the i-th, times sqrt(dampening): F^-1 = (I - sum v_i v_i^T) / dampening.
    There they come one after the other; here all at once, the same ones, as L^-1 G with L L^T = G G^T + m dampening I,
    where the rows of G are the gradients. A block with fewer weights than gradients needs only as many vectors.

    They are float32 in a file without a name in `folder`: m d 4 bytes of disk, free again when it is closed or the
    process dies. UserError where the disk is too small.
    """

    def __init__(self, count: int, weights: int, block: int | None, dampening: float, folder: Path | None) -> None:
        self.count, self.weights, self.dampening = count, weights, dampening
        self.block = min(block or weights, weights)
        self.folder = Path(tempfile.gettempdir()) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.folder).free < 4 * count * weights:
            raise self._too_large()
        self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> "Fisher":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what is still to be written does not matter
            self.file.close()

    def add(self, gradient: Tensor) -> None:
        """The next gradient (d,)."""
        if not bool(torch.isfinite(gradient).all()):
            raise UserError("a gradient is not finite: the weights have overflowed; lower the learning rate")
        try:
            self.file.write(gradient.float().contiguous().numpy().data)
            self.file.flush()
        except OSError as error:
            raise self._too_large() from error

    def invert(self) -> Tensor:
        """The diagonal of F^-1 (d,), float64. Before `product`, and once."""
        found = torch.empty(self.weights, dtype=torch.float64)
        for parts in self._groups():
            rank = self._rank(parts)
            gram = self.count * self.dampening * torch.eye(rank, dtype=torch.float64)
            for part in parts:
                rows = self._gradients(part, rank)
                gram = gram + rows @ rows.mT
            root = torch.linalg.cholesky(gram)
            for part in parts:
                vectors = torch.linalg.solve_triangular(root, self._gradients(part, rank), upper=False)
                found[part.start : part.stop] = (1 - vectors.square().sum(1)).flatten() / self.dampening
                self._write(part, vectors)
        return found

    def product(self, x: Tensor) -> Tensor:
        """F^-1 x, for x (d,) in float64."""
        found = torch.empty_like(x)
        for parts in self._groups():
            rank = self._rank(parts)
            along: Tensor | float = 0.0
            for part in parts:
                along = along + self._read(part, rank) @ self._of(x, part)
            for part in parts:
                away = self._read(part, rank).mT @ along
                found[part.start : part.stop] = (self._of(x, part) - away).flatten() / self.dampening
        return found

    def _groups(self) -> Iterator[list[_Group]]:
        """All blocks, in parts that fit in a page: several blocks in one, or one block in several."""
        whole = self.weights - self.weights % self.block
        many = max(1, PAGE // (self.count * self.block))
        width = max(1, PAGE // self.count)
        bounds = [(start, min(start + many * self.block, whole)) for start in range(0, whole, many * self.block)]
        if whole < self.weights:
            bounds.append((whole, self.weights))
        for start, stop in bounds:
            blocks = max(1, (stop - start) // self.block)
            if blocks > 1:
                yield [_Group(start, stop, blocks)]
            else:
                yield [_Group(at, min(at + width, stop), 1) for at in range(start, stop, width)]

    def _rank(self, parts: list[_Group]) -> int:
        """How many vectors a block of this group has."""
        if len(parts) > 1:
            return self.count
        (part,) = parts
        return min(self.count, (part.stop - part.start) // part.blocks)

    def _of(self, x: Tensor, part: _Group) -> Tensor:
        """(d,) -> (blocks, weights, 1)"""
        return x[part.start : part.stop].reshape(part.blocks, -1, 1)

    def _gradients(self, part: _Group, rank: int) -> Tensor:
        """(blocks, rank, weights); where there are more gradients than weights, their triangular factor: as good."""
        rows = self._read(part, self.count)
        return rows if rank == self.count else torch.linalg.qr(rows, mode="r").R

    def _read(self, part: _Group, rows: int) -> Tensor:
        """(blocks, rows, weights) in float64"""
        found = torch.empty(rows, part.stop - part.start)
        for i in range(rows):
            self.file.seek(4 * (i * self.weights + part.start))
            self.file.readinto(found[i].numpy().data)
        return found.reshape(rows, part.blocks, -1).transpose(0, 1).double()

    def _write(self, part: _Group, vectors: Tensor) -> None:
        rows = vectors.transpose(0, 1).flatten(1).float()
        for i, row in enumerate(rows.contiguous()):
            self.file.seek(4 * (i * self.weights + part.start))
            self.file.write(row.numpy().data)

    def _too_large(self) -> UserError:
        return UserError(
            f"{self.count} gradients of {self.weights} weights take {4 * self.count * self.weights / 1e9:.3g} GB of "
            f"disk, which {self.folder} does not have; lower --option gradients="
        )
