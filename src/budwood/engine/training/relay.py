"""Laying a gradient out anew: the phases of a stride put together again, or a plane dealt out for another one.

Unlike a forward operand it may go from vectors that several images share to vectors of fewer.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .. import _native
from ..graph import Pair
from ..lower import Context, StepInfo
from ..moves import Moves, classify
from ..storage import View


def relay(context: Context, source: View, phases: tuple[Pair, ...], stride: Pair, to: View, info: StepInfo) -> None:
    """Pixel (y, x) of `to` becomes pixel (y, x) // stride of phase (y, x) % stride; zero where there is none.

    `source` holds the phases of channel c at channels c * len(phases) ...; `to` is filled with its halo.
    """
    have, want = source.buffer.layout, to.buffer.layout
    assert have is not None and want is not None
    parts, gathered = max(have.images // want.images, 1), max(want.images // have.images, 1)

    def emit(plan: _native.Plan, part: int) -> None:
        n, m = source.numbers(), to.numbers()
        step = len(phases)
        taken = (*n[:3], n[3] * step, *n[4:6], n[6] // step, *n[7:])
        target = (m[0] + part * m[1], m[1] * parts, *m[2:4], m[4] // parts, *m[5:])
        t = _table(source, phases, stride, to, part * want.images)
        plan.repack(taken, target, t.moves, t.row, t.index, 0.0, gathered)

    for part in range(parts):
        context.add(info, to, [source], partial(emit, part=part), group=max(have.images, want.images))


def _table(source: View, phases: tuple[Pair, ...], stride: Pair, to: View, first: int) -> Moves:
    """Where each lane of a group of `to` comes from, its images being those from `first` on of the source's group."""
    have, want, halo = source.buffer.layout, to.buffer.layout, to.buffer.halo
    assert have is not None and want is not None
    number = np.full(stride, -1)
    for at, phase in enumerate(phases):
        number[phase] = at
    y = np.arange(-halo[0], want.height + halo[0])
    x = np.arange(-halo[1], want.width + halo[1])
    image, row, column = want.pixels(y, x)
    image = image + first
    phase_of = number[row % stride[0], column % stride[1]]
    real = (
        (row >= -halo[0]) & (row < want.plane[0] + halo[0]) & (column >= -halo[1]) & (column < want.plane[1] + halo[1])
    )
    row, column = row // stride[0], column // stride[1]
    inside = real & (phase_of >= 0) & (row >= 0) & (row < have.plane[0]) & (column >= 0) & (column < have.plane[1])
    row, column = np.where(inside, row, 0), np.where(inside, column, 0)
    vy, vx, lane = have.places(image % have.images, row, column)
    b = source.buffer
    vector = image // have.images * b.group + np.maximum(phase_of, 0) * b.channel + vy * b.row + vx * have.lanes
    out = y[:, None] * to.buffer.row + x[None] * want.lanes
    return classify(inside, np.broadcast_to(vector, inside.shape), lane, out, np.ones(out.shape, bool), False)
