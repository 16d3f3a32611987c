"""Pooling: over windows, and over the cells of a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..graph import AdaptivePool, Array, Pool
from ..layout import Layout
from ..lower import Context, StepInfo, repack
from ..moves import Window
from ..storage import View, is_vector
from .channels import as_map, copy_channels
from .operand import fill_of, operand, pool_taps


def lower_pool(context: Context, node: Pool) -> None:
    shape = context.shape(node.inputs[0])
    out = context.storage.view(node.name)
    target = out
    if is_vector(context.shape(node.name)):  # made as a map of one pixel, then turned into a vector
        layout = context.storage.layout((1, 1))
        target = context.storage.new(layout, shape[0])
    source = operand(context, node.name, node.inputs[0], target, pool_taps(node), fill=fill_of(node))
    info = StepInfo(node.name, "Pool", "pool", node.kind, context.shape(node.name))

    def emit(plan: _native.Plan) -> None:
        layout = target.buffer.layout
        assert layout is not None
        factors = np.ones(1, np.float32) if node.kind == "max" else _factors(node, shape, layout)
        plan.pool(source.numbers(), target.numbers(), source.tap_offsets(), node.kind == "max", factors)

    group = target.buffer.layout.images if target.buffer.layout else None
    context.add(info, target, [source.view], emit, group=group)
    if target is not out:
        _to_vector(context, node.name, target, out)


def _factors(node: Pool, shape: tuple[int, ...], layout: Layout) -> Array:
    """One over the pixels that each window counts, by (y, x, lane); one number if it is the same for all."""
    y, x = np.arange(layout.height), np.arange(layout.width)
    _, row, column = layout.pixels(y, x)

    def count(at: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
        begin = at * node.stride[axis] - node.padding[2 * axis]
        end = begin + node.kernel[axis]
        low, high = 0, shape[1 + axis]
        if node.count_padding:
            low, high = -node.padding[2 * axis], high + node.padding[2 * axis + 1]
        return np.maximum(np.minimum(end, high) - np.maximum(begin, low), 1)

    factors = (1.0 / (count(row, 0) * count(column, 1))).astype(np.float32)
    inside = (row < layout.plane[0]) & (column < layout.plane[1])
    if np.ptp(factors[inside]) == 0:
        return factors[inside][:1].copy()
    return np.ascontiguousarray(factors).ravel()


def _to_vector(context: Context, name: str, source: View, out: View) -> None:
    """The mean over one pixel."""
    _average(context, name, source, out, StepInfo(name, "Flatten", "average", "", context.shape(name)))


def _average(context: Context, name: str, source: View, out: View, info: StepInfo) -> None:
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
        return _average(context, node.name, context.view(name), out, info)
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
