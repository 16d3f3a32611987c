"""Pooling over the cells of a grid: the global average and its like."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..graph import AdaptivePool
from ..layout import Layout
from ..lower import Context, StepInfo, repack
from ..moves import Window
from ..storage import View, is_vector
from .channels import as_map, copy_channels


def average(context: Context, source: View, out: View, info: StepInfo) -> None:
    layout = source.buffer.layout
    assert layout is not None

    def emit(plan: _native.Plan) -> None:
        _, row, column = layout.pixels(np.arange(layout.height), np.arange(layout.width))
        inside = (row < layout.plane[0]) & (column < layout.plane[1])
        mask = np.zeros(0, np.float32) if inside.all() else np.ascontiguousarray(inside, np.float32).ravel()
        pixels = layout.plane[0] * layout.plane[1]
        plan.global_average(source.numbers(), out.numbers(), layout.images, pixels, mask)

    context.add(info, out, [source], emit, group=layout.images)


def lower_adaptive(context: Context, node: AdaptivePool) -> None:
    name, out = node.inputs[0], context.storage.view(node.name)
    shape = context.shape(name)
    info = StepInfo(node.name, "AdaptivePool", "average", f"{node.size[0]} x {node.size[1]}", context.shape(node.name))
    if context.shape(node.name) == (shape if len(shape) == 3 else ()):
        return copy_channels(context, node.name, name, np.arange(shape[0]), out)
    if is_vector(context.shape(node.name)) and is_vector(shape):
        return copy_channels(context, node.name, name, np.arange(shape[0]), out)
    if is_vector(context.shape(node.name)):
        return average(context, context.view(name), out, info)
    return _cells(context, node, info)


def _cells(context: Context, node: AdaptivePool, info: StepInfo) -> None:
    """The mean of each cell, made for the images that share a vector in the source, then laid out as the output."""
    source, out = context.view(as_map(context, node.inputs[0])), context.storage.view(node.name)
    have, want = source.buffer.layout, out.buffer.layout
    assert have is not None and want is not None
    made = out
    if have.images != want.images:
        blocks = have.lanes // have.images
        made = context.storage.new(Layout(want.plane, have.images, blocks, 1), out.channels)

    def emit(plan: _native.Plan) -> None:
        layout = made.buffer.layout
        assert layout is not None
        oy, ox = (a.ravel() for a in np.indices(node.size))
        (top, rows), (left, columns) = (
            _cells_of(oy, node.size[0], have.plane[0]),
            _cells_of(ox, node.size[1], have.plane[1]),
        )
        sizes = rows * columns
        end = sizes.cumsum()
        cell = np.repeat(np.arange(len(sizes)), sizes)
        row, column = np.divmod(np.arange(len(cell)) - (end - sizes)[cell], columns[cell])
        images = np.arange(have.images)[:, None]
        offsets = _offset(source, have, images, top[cell] + row, left[cell] + column)
        at = _offset(made, layout, images, oy, ox)
        start = np.append(0, (images * len(cell) + end).ravel())
        plan.adaptive_average(source.numbers(), made.numbers(), start, offsets.ravel(), at.ravel())

    context.add(info, made, [source], emit)
    if made is not out:
        _deal_out(context, node.name, made, out)


def _cells_of(number: NDArray[np.int64], cells: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row or column of each cell, and how many it has, as PyTorch cuts them."""
    first = number * size // cells
    return first, -(-(number + 1) * size // cells) - first


def _offset(
    view: View, layout: Layout, image: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64]
) -> NDArray[np.int64]:
    y, x, lane = layout.places(image, row, column)
    return np.asarray(y * view.buffer.row + x * layout.lanes + lane)


def _deal_out(context: Context, name: str, made: View, out: View) -> None:
    key = context.further(f"{name} (cells)", context.shape(name), made)
    info = StepInfo(name, "operand", "repack", "", context.shape(name))
    repack(context, key, out, [Window()], 0.0, info)
