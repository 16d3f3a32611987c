"""Operators that work on each channel alone and on a window of pixels: depthwise convolution and pooling.

A channel's plane is laid out anew in scratch memory that stays in the first-level cache, its border filled and a plane
for each phase of the stride; the taps of the window are then places in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..graph import Array, Conv, Pool
from ..layout import Layout
from ..lower import Context, StepInfo, activation_arguments, from_map
from ..moves import Moves, Window, table, together
from ..storage import View, is_vector
from .channels import as_map
from .operand import Taps, conv_taps, fill_of, pool_taps


@dataclass(frozen=True)
class Scratch:
    """The scratch memory's division: `rows` x `columns` vectors a phase, with the halo."""

    layout: Layout
    taps: Taps

    @property
    def row(self) -> int:
        return (self.layout.width + 2 * self.taps.halo[1]) * self.layout.lanes

    @property
    def phase(self) -> int:
        return (self.layout.height + 2 * self.taps.halo[0]) * self.row

    @property
    def floats(self) -> int:
        return self.phase * len(self.taps.phases)

    @property
    def origin(self) -> int:
        return self.taps.halo[0] * self.row + self.taps.halo[1] * self.layout.lanes

    def offsets(self) -> NDArray[np.int64]:
        """Floats from an output pixel's place to each tap."""
        found = [p * self.phase + y * self.row + x * self.layout.lanes for p, y, x in self.taps.taps]
        return np.array(found, np.int64)

    def arguments(self, context: Context, name: str, source: View, fill: float) -> dict[str, Any]:
        """The arguments of a native channelwise step that say where its planes come from."""
        made = source.buffer.layout
        assert made is not None
        _, height, width = context.shape(name)
        phased = name in context.phased
        tables = []
        for number, phase in enumerate(self.taps.phases):
            at = self.origin + number * self.phase

            def place(y: NDArray[np.int64], x: NDArray[np.int64], at: int = at) -> NDArray[np.int64]:
                return at + y * self.row + x * self.layout.lanes

            window = Window(self.taps.stride, phase, self.taps.reach[phase])
            where = from_map(source, made, _Phase(number, phase, self.taps.stride) if phased else None)
            tables.append(table(self.layout, self.taps.halo, place, (height, width), where, window))
        m: Moves = together(tables, [0] * len(tables))
        return {
            "source": source.numbers(),
            "moves": m.moves,
            "index": m.index,
            "fill": fill,
            "groups_of_source": self.layout.images // made.images,
            "scratch": self.floats,
            "origin": self.origin,
            "row": self.row,
        }


@dataclass(frozen=True)
class _Phase:
    """Where a pixel stands that was made in the phases of a stride (see conv.lower_phases)."""

    number: int
    phase: tuple[int, int]
    stride: tuple[int, int]


def lower_depthwise(context: Context, node: Conv) -> None:
    name = as_map(context, node.inputs[0])
    source, out = context.view(name), context.storage.view(node.name)
    assert out.buffer.layout is not None
    rows = node.weight.shape[0]
    weights = node.weight.reshape(rows, -1)
    live = np.flatnonzero(weights.any(0))  # a slice of a map is a kernel of one tap: its neighbours may be NaN
    live = live if len(live) else np.zeros(1, np.int64)
    scratch = Scratch(out.buffer.layout, conv_taps(node).some(live))
    residual = context.view(node.inputs[1]) if len(node.inputs) == 2 else None
    left = np.count_nonzero(node.weight)
    shape = context.shape(node.name)
    info = StepInfo(
        node.name,
        "Conv",
        "depthwise",
        "one channel each",
        shape,
        1 - float(left) / node.weight.size,
        2.0 * left * shape[1] * shape[2],
    )

    def emit(plan: _native.Plan) -> None:
        bias = np.zeros(rows, np.float32) if node.bias is None else node.bias
        place = None if residual is None else residual.numbers()
        kind, numbers = activation_arguments(node.activation)
        plan.depthwise(
            **scratch.arguments(context, name, source, 0.0),
            out=out.numbers(),
            residual=place,
            taps=scratch.offsets(),
            weights=np.ascontiguousarray(weights[:, live]),
            bias=bias,
            activation=kind,
            numbers=numbers,
        )

    context.add(info, out, [source] if residual is None else [source, residual], emit)


def lower_pool(context: Context, node: Pool) -> None:
    name = as_map(context, node.inputs[0])
    source, out = context.view(name), context.storage.view(node.name)
    target = out
    if is_vector(context.shape(node.name)):  # made as a map of one pixel, then turned into a vector
        target = context.storage.new(context.storage.layout((1, 1)), out.channels)
    layout = target.buffer.layout
    assert layout is not None
    scratch = Scratch(layout, pool_taps(node))
    info = StepInfo(node.name, "Pool", "pool", node.kind, context.shape(node.name))

    def emit(plan: _native.Plan) -> None:
        factors = np.ones(1, np.float32) if node.kind == "max" else _factors(node, context.shape(name), layout)
        where = scratch.arguments(context, name, source, fill_of(node))
        largest = node.kind == "max"
        plan.pool(**where, out=target.numbers(), taps=scratch.offsets(), largest=largest, factors=factors)

    context.add(info, target, [source], emit, group=layout.images)
    if target is not out:
        from .pool import average

        note = StepInfo(node.name, "Flatten", "average", "", context.shape(node.name))
        average(context, target, out, note)


def _factors(node: Pool, shape: tuple[int, ...], layout: Layout) -> Array:
    """One over the pixels that each window counts, by (y, x, lane); one number if it is the same for all."""
    _, row, column = layout.pixels(np.arange(layout.height), np.arange(layout.width))

    def count(at: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
        low, high = 0, shape[1 + axis]
        if node.count_padding:
            low, high = -node.padding[2 * axis], high + node.padding[2 * axis + 1]
        begin = at * node.stride[axis] - node.padding[2 * axis]
        taps = begin[..., None] + np.arange(node.kernel[axis]) * node.dilation[axis]
        return np.maximum(((taps >= low) & (taps < high)).sum(-1), 1)

    factors = (1.0 / (count(row, 0) * count(column, 1))).astype(np.float32)
    inside = (row < layout.plane[0]) & (column < layout.plane[1])
    if np.ptp(factors[inside]) == 0:
        return factors[inside][:1].copy()
    return np.ascontiguousarray(factors).ravel()
