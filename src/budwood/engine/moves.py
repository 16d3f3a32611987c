"""Tables for the repack step: which pixel of a source each lane of a destination's vectors takes.

A vector whose lanes all come from one source vector is a copy or a permutation; from a few, the merge of several
permutations; any other is gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .layout import Layout

Ints = NDArray[np.int64]
COPY, PERMUTE, MERGE, GATHER = 0, 1, 2, 3
_MOST_SOURCES = 4  # that are merged rather than gathered


@dataclass(frozen=True)
class Moves:
    """`moves` [n, 4]: kind, index vector, to, from (see csrc/kernels/repack); those of row r are row[r]:row[r + 1]."""

    moves: Ints
    row: Ints
    index: NDArray[np.int32]
    vectors: int  # index vectors


@dataclass(frozen=True)
class Window:
    """Pixel (Y, X) of the destination is pixel (Y * stride + shift) of the source, in both directions.

    `reach`: rows above and below a block, vectors left and right of it, that somebody reads; None: all of the halo.
    """

    stride: tuple[int, int] = (1, 1)
    shift: tuple[int, int] = (0, 0)
    reach: tuple[int, int, int, int] | None = None


def table(
    to: Layout,
    halo: tuple[int, int],
    to_place: Callable[[Ints, Ints], Ints],
    source: tuple[int, int],
    from_place: Callable[[Ints, Ints, Ints], tuple[Ints, Ints]],
    window: Window,
    *,
    only_changed: bool = False,
) -> Moves:
    """The moves for all vectors of a destination with its halo (rows, vectors).

    `to_place(y, x)` is a vector's float offset; `source` the source's plane (H, W); `from_place(image, row, column)`
    gives, for pixels inside it, the float offset of the vector (or of the lone float) and the lane in it, -1 where
    there are no lanes. With `only_changed` the vectors that would be copied to themselves are left out.
    """
    y = np.arange(-halo[0], to.height + halo[0])
    x = np.arange(-halo[1], to.width + halo[1])
    image, row, column = to.pixels(y, x)
    # Blocks that reach past the image hold no pixels there, however the window moves them.
    real = (row >= -halo[0]) & (row < to.plane[0] + halo[0]) & (column >= -halo[1]) & (column < to.plane[1] + halo[1])
    row = row * window.stride[0] + window.shift[0]
    column = column * window.stride[1] + window.shift[1]
    inside = real & (row >= 0) & (row < source[0]) & (column >= 0) & (column < source[1])
    vector, lane = from_place(image, np.where(inside, row, 0), np.where(inside, column, 0))
    shape = inside.shape
    vector, lane = np.broadcast_to(vector, shape), np.broadcast_to(lane, shape)
    out = to_place(*np.meshgrid(y, x, indexing="ij"))
    top, bottom, left, right = window.reach or (halo[0], halo[0], halo[1], halo[1])
    read = ((y >= -top) & (y < to.height + bottom))[:, None] & ((x >= -left) & (x < to.width + right))[None]
    return classify(inside, vector, lane, out, read, only_changed)


def together(tables: list[Moves], offsets: list[int]) -> Moves:
    """One table that does what several do, row by row; the vectors that table i writes lie offsets[i] floats on."""
    if len({len(t.row) for t in tables}) > 1:  # one of them must be done in one go
        tables = [Moves(t.moves, t.row[[0, -1]], t.index, t.vectors) for t in tables]
    parts: list[Ints] = []
    row = [0]
    first = 0
    shifted = []
    for t, offset in zip(tables, offsets, strict=True):
        moves = t.moves.copy()
        moves[:, 1] += first
        moves[:, 2] += offset
        first += t.vectors
        shifted.append(moves)
    for r in range(len(tables[0].row) - 1):
        for t, moves in zip(tables, shifted, strict=True):
            parts.append(moves[t.row[r] : t.row[r + 1]])
        row.append(row[-1] + sum(int(t.row[r + 1] - t.row[r]) for t in tables))
    return Moves(
        np.ascontiguousarray(np.concatenate(parts)),
        np.array(row, np.int64),
        np.concatenate([t.index for t in tables]),
        first,
    )


def classify(
    inside: NDArray[np.bool_], vector: Ints, lane: Ints, out: Ints, read: NDArray[np.bool_], only_changed: bool
) -> Moves:
    """The moves of vectors [rows, columns], lane by lane: whether a pixel is there, and its vector and lane if so.

    `out` [rows, columns] is where a vector goes, `read` whether somebody reads it; see `table` for the rest.
    """
    lanes = inside.shape[2]
    first = np.take_along_axis(vector, inside.argmax(2)[..., None], 2)[..., 0]
    gathered = bool((lane < 0).any())  # where no pixel is inside, too: there may be no whole vector to read
    single = np.where(inside, vector == first[..., None], True).all(2) & (not gathered)
    straight = single & (np.where(inside, lane, -1) == np.arange(lanes)).all(2)
    number: dict[bytes, int] = {}
    moves: list[tuple[int, int, int, int]] = []
    rows = [0]

    def add(kind: int, entry: NDArray[np.int64] | None, to: int, source: int) -> None:
        at = 0 if entry is None else number.setdefault(entry.astype(np.int32).tobytes(), len(number))
        moves.append((kind, at, to, source))

    for r in range(inside.shape[0]):
        for c in np.flatnonzero(read[r]):
            to, there = int(out[r, c]), inside[r, c]
            if straight[r, c]:
                if not only_changed or first[r, c] != out[r, c]:
                    add(COPY, None, to, int(first[r, c]))
                continue
            sources = np.unique(vector[r, c][there]) if there.any() else first[r, c : c + 1]
            if not gathered and len(sources) <= _MOST_SOURCES:
                for n, source in enumerate(sources):
                    entry = np.where(there & (vector[r, c] == source), lane[r, c], -1)
                    add(MERGE if n else PERMUTE, entry, to, int(source))
            else:
                add(GATHER, np.where(there, vector[r, c] + np.maximum(lane[r, c], 0), -1), to, 0)
        rows.append(len(moves))
    index = [np.frombuffer(key, np.int32) for key in number]
    flat = np.concatenate(index) if index else np.zeros(0, np.int32)
    table = np.array(moves, np.int64).reshape(-1, 4)
    # A vector that is its own source must not be read for another row while it is written.
    if only_changed and any(move[2] == move[3] for move in moves):
        rows = [0, len(moves)]
    return Moves(table, np.array(rows, np.int64), flat, len(index))
