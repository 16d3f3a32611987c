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
        return copy_channels(context, node.name, name, range(shape[0]), out)
    if is_vector(context.shape(node.name)) and is_vector(shape):
        return copy_channels(context, node.name, name, range(shape[0]), out)
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
        start, offsets, at = [0], [], []
        for image in range(have.images):
            for oy in range(node.size[0]):
                for ox in range(node.size[1]):
                    rows, columns = _cell(oy, node.size[0], have.plane[0]), _cell(ox, node.size[1], have.plane[1])
                    row, column = (a.ravel() for a in np.meshgrid(rows, columns, indexing="ij"))
                    offsets.append(_offset(source, have, np.full(row.shape, image), row, column))
                    start.append(start[-1] + len(row))
                    at.append(_offset(made, layout, np.array([image]), np.array([oy]), np.array([ox])))
        arrays = (np.array(start, np.int64), np.concatenate(offsets), np.concatenate(at))
        plan.adaptive_average(source.numbers(), made.numbers(), *arrays)

    context.add(info, made, [source], emit)
    if made is not out:
        _deal_out(context, node.name, made, out)


def _cell(number: int, cells: int, size: int) -> NDArray[np.int64]:
    """The rows or columns of a cell, as PyTorch cuts them."""
    return np.arange(number * size // cells, -(-(number + 1) * size // cells))


def _offset(
    view: View, layout: Layout, image: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64]
) -> NDArray[np.int64]:
    y, x, lane = layout.places(image, row, column)
    return np.asarray(y * view.buffer.row + x * layout.lanes + lane)


def _deal_out(context: Context, name: str, made: View, out: View) -> None:
    key = f"{name} (cells)"
    context.graph.shapes[key] = context.graph.shapes[name]
    context.storage.views[key] = made
    info = StepInfo(name, "operand", "repack", "", context.shape(name))
    repack(context, key, out, [Window()], 0.0, info)
