"""Operators that only move values: whole channels, pixels into a vector, a border around a plane."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _native
from ..graph import Concat, Flatten, Pad, Select
from ..lower import Context, StepInfo, repack
from ..moves import Window
from ..storage import View, is_vector


def copy_channels(context: Context, node: str, name: str, channels: ArrayLike, out: View) -> None:
    source = context.view(name)
    numbers = np.asarray(channels, np.int64)
    images = 1 if out.buffer.layout else context.group_of(node, out)
    info = StepInfo(node, "copy", "copy", "", context.shape(name))
    context.add(info, out, [source], lambda plan: plan.copy(source.numbers(), out.numbers(), images, numbers))


def as_map(context: Context, name: str) -> str:
    """A name for the value as a feature map: one of a single pixel is kept as a vector otherwise."""
    if not is_vector(context.shape(name)):
        return name
    if name not in context.maps:
        source, channels = context.view(name), context.shape(name)[0]
        layout = context.storage.layout((1, 1))
        out = context.storage.new(layout, channels)
        context.maps[name] = context.further(f"{name} (map)", (channels, 1, 1), out)
        one = np.zeros(1, np.int64)

        def emit(plan: _native.Plan) -> None:
            at = np.array([int(layout.places(one + image, one, one)[2][0]) for image in range(layout.images)], np.int64)
            plan.expand(source.numbers(), out.numbers(), layout.images, at)

        context.add(StepInfo(name, "copy", "copy", "", (channels, 1, 1)), out, [source], emit, group=layout.images)
    return context.maps[name]


def lower_concat(context: Context, node: Concat) -> None:
    first = 0
    for name in node.inputs:
        count = context.shape(name)[0]
        if not context.storage.is_part(name, node.name, first):
            out = context.storage.view(node.name).part(first, count)
            copy_channels(context, node.name, name, np.arange(count), out)
        first += count


def lower_select(context: Context, node: Select) -> None:
    context.view(node.inputs[0])
    if not context.storage.is_part(node.name, node.inputs[0], node.channels[0]):
        copy_channels(context, node.name, node.inputs[0], node.channels, context.storage.view(node.name))


def lower_pad(context: Context, node: Pad) -> None:
    out = context.storage.view(node.name)
    info = StepInfo(node.name, "Pad", "repack", "", context.shape(node.name))
    name = as_map(context, node.inputs[0])
    if is_vector(context.shape(node.name)):
        return copy_channels(context, node.name, node.inputs[0], np.arange(out.channels), out)
    window = Window((1, 1), (-node.padding[0], -node.padding[2]))
    return repack(context, name, out, [window], node.value, info, outside=name in context.graph.inputs)


def flatten(context: Context, node: str, name: str, pixels: NDArray[np.int64]) -> View:
    """A vector of its own for some pixels of a feature map, in PyTorch's order."""
    out = context.storage.new(None, context.shape(name)[0] * len(pixels))
    _flatten(context, node, name, out, pixels)
    return out


def lower_flatten(context: Context, node: Flatten) -> None:
    name = node.inputs[0]
    out = context.storage.view(node.name)
    if is_vector(context.shape(name)):
        context.view(name)
        if not context.storage.is_part(node.name, name, 0):
            copy_channels(context, node.name, name, np.arange(context.shape(name)[0]), out)
    else:
        _, height, width = context.shape(name)
        _flatten(context, node.name, name, out, np.arange(height * width))


def _flatten(context: Context, node: str, name: str, out: View, pixels: NDArray[np.int64]) -> None:
    source = context.view(name)
    layout = source.buffer.layout
    assert layout is not None
    width = context.shape(name)[2]

    def emit(plan: _native.Plan) -> None:
        row, column = np.divmod(pixels, width)
        y, x, lane = layout.places(np.arange(layout.images)[:, None], row[None], column[None])
        at = (y * source.buffer.row + x * layout.lanes + lane).ravel()
        plan.flatten(source.numbers(), out.numbers(), layout.images, at)

    info = StepInfo(node, "Flatten", "copy", "", context.shape(name))
    context.add(info, out, [source], emit, group=layout.images)
