"""Tables for the repack step: which pixel of a source each lane of a destination's vectors takes.

A vector whose lanes all come from one source vector is a copy or a permutation; from a few, the merge of several
permutations; any other is gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Layout

Ints = NDArray[np.int64]
COPY, PERMUTE, MERGE, GATHER = 0, 1, 2, 3
_MOST_SOURCES = 4  # that are merged rather than gathered
_TOGETHER = 1 << 18  # lanes that are looked at at a time
_NONE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Moves:
    """`moves` [n, 4]: kind, index vector, to, from (csrc/runtime/moves.hpp); those of row r are row[r]:row[r + 1]."""

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
    first = np.take_along_axis(vector, inside.argmax(2)[..., None], 2)[..., 0]
    gathered = bool((lane < 0).any())  # where no pixel is inside, too: there may be no whole vector to read
    single = np.where(inside, vector == first[..., None], True).all(2) & (not gathered)
    straight = single & (np.where(inside, lane, -1) == np.arange(inside.shape[2])).all(2)
    wanted = read & ~(straight & (first == out)) if only_changed else read
    step = max(1, _TOGETHER // inside[0].size)
    moves, entries, times = [], [], [np.zeros(0, np.int64)]
    count = 0
    for a in range(0, len(wanted), step):
        block = np.s_[a : a + step]
        chosen: list[Any] = [array[block][wanted[block]] for array in (inside, vector, lane, first, out, straight)]
        made, rows, each = _moves(gathered, *chosen)
        made[:, 1] += count
        count += len(rows)
        moves.append(made)
        entries.append(rows)
        times.append(each)
    found = np.concatenate(moves)
    index, number = np.unique(np.concatenate(entries), axis=0, return_inverse=True)
    found[:, 1] = np.where(found[:, 0] == COPY, 0, np.append(number, 0)[np.minimum(found[:, 1], count)])
    several = np.zeros(wanted.shape, np.int64)
    several[wanted] = np.concatenate(times)
    row = np.append(0, np.cumsum(several.sum(1)))
    # A vector that is its own source must not be read for another row while it is written.
    if only_changed and bool((found[:, 2] == found[:, 3]).any()):
        row = row[[0, -1]]
    return Moves(found, row, index.ravel(), len(index))


def _moves(
    gathered: bool,
    there: NDArray[np.bool_],
    vector: Ints,
    lane: Ints,
    first: Ints,
    to: Ints,
    straight: NDArray[np.bool_],
) -> tuple[Ints, NDArray[np.int32], Ints]:
    """(the moves of n vectors in their order, their index vectors, how many moves each has). A move has the number of
    its index vector."""
    sources = np.sort(np.where(there, vector, _NONE), 1)
    new = sources != _NONE
    new[:, 1:] &= sources[:, 1:] != sources[:, :-1]
    rank = new.cumsum(1)
    several = rank[:, -1]
    few = ~straight & (several <= _MOST_SOURCES) & (not gathered)
    rest = ~straight & ~few
    parts = [(straight, 0, COPY, first, np.zeros((0, there.shape[1]), np.int64))]
    for k in range(_MOST_SOURCES):
        which = few & (several > k) if k else few  # one at least: of the border alone
        source = np.where(several > k, np.where(new & (rank == k + 1), sources, 0).sum(1), first)
        entry = np.where(there & (vector == source[:, None]), lane, -1)[which]
        parts.append((which, k, MERGE if k else PERMUTE, source, entry))
    gather = np.where(there, vector + np.maximum(lane, 0), -1)[rest]
    parts.append((rest, 0, GATHER, np.zeros_like(first), gather))
    made, place, count = [], [], 0
    for which, k, kind, source, entry in parts:
        chosen = np.flatnonzero(which)
        numbers = count + np.arange(len(chosen))
        count += len(entry)
        made.append(np.stack([np.full(len(chosen), kind), numbers, to[chosen], source[chosen]], 1))
        place.append(chosen * _MOST_SOURCES + k)
    order = np.argsort(np.concatenate(place), kind="stable")
    entries = np.concatenate([entry for *_, entry in parts]).astype(np.int32)
    return np.concatenate(made)[order], entries, np.where(few, np.maximum(several, 1), 1)
