"""ATen's operators with windows, borders and sizes: pools, padding, cutting, sums and means.

A function's arguments are those of the operator's schema; see build.Handler.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import graph as g
from ..views import View, with_axis
from .build import ZERO, Builder, handles, pair, positions, viewed
from .layers import Numbers, edges_of

# -- pools, padding, sizes ------------------------------------------------------------------------------------


@handles("max_pool2d")
def max_pool2d(
    b: Builder,
    input: View,
    kernel_size: Numbers,
    stride: Numbers = (),
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> View:
    return _pool(b, input, "max", kernel_size, stride, padding, pair(dilation), ceil_mode, True)


@handles("max_pool2d_with_indices")
def max_pool2d_with_indices(b: Builder, *args: Any) -> tuple[View, None]:
    return max_pool2d(b, *args), None


@handles("avg_pool2d")
def avg_pool2d(
    b: Builder,
    input: View,
    kernel_size: Numbers,
    stride: Numbers = (),
    padding: Numbers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> View:
    if divisor_override is not None:
        raise ValueError("a divisor of its own")
    return _pool(b, input, "average", kernel_size, stride, padding, (1, 1), ceil_mode, count_include_pad)


def _pool(
    b: Builder,
    input: View,
    kind: str,
    kernel_size: Numbers,
    stride: Numbers,
    padding: Numbers,
    dilation: g.Pair,
    ceil: bool,
    counts: bool,
) -> View:
    made = b.emit(
        g.Pool,
        b.image(viewed(input)),
        kind=kind,
        kernel=pair(kernel_size),
        stride=pair(stride or kernel_size),
        padding=edges_of(padding, (1, 1), (1, 1)),
        dilation=dilation,
        ceil=ceil,
        count_padding=counts,
    )
    return b.whole(made)


@handles("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def adaptive_avg_pool2d(b: Builder, input: View, output_size: Numbers) -> View:
    return b.whole(b.emit(g.AdaptivePool, b.image(viewed(input)), size=pair(output_size)))


@handles("adaptive_max_pool2d")
def adaptive_max_pool2d(b: Builder, input: View, output_size: Numbers) -> tuple[View, None]:
    """Where its cells are all alike: the global maximum, above all."""
    view, size = viewed(input), pair(output_size)
    name = b.image(view)
    if view.base[1] % size[0] or view.base[2] % size[1]:
        raise ValueError(f"the size {size} does not divide that of the feature map {view.base}")
    kernel = (view.base[1] // size[0], view.base[2] // size[1])
    return b.whole(b.emit(g.Pool, name, kind="max", kernel=kernel, stride=kernel)), None


@handles("upsample_nearest2d", "_upsample_nearest_exact2d")
def upsample_nearest2d(b: Builder, input: View, output_size: Any = None, *scales: Any) -> View:
    """By whole factors: an adaptive average whose cells are a pixel each."""
    view = viewed(input)
    name = b.image(view)
    factors = scales[0] if scales and isinstance(scales[0], list) else [None, None]
    sizes = output_size or [n * f for n, f in zip(view.base[1:], factors, strict=True)]
    size = pair([int(n) for n in sizes])
    if size[0] % view.base[1] or size[1] % view.base[2]:
        raise ValueError(f"the size {size} is no multiple of that of the feature map {view.base}")
    return b.whole(b.emit(g.AdaptivePool, name, size=size))


@handles("constant_pad_nd", "pad")
def pad(b: Builder, input: View, pad: list[int], mode: Any = "constant", value: Any = 0.0) -> View:
    """`pad` counts from the last axis: before, after. A negative one cuts off. `constant_pad_nd` has no mode."""
    if not isinstance(mode, str):
        mode, value = "constant", mode
    if mode != "constant":
        raise ValueError(f"padding in the mode {mode!r}")
    view, edges, filler = viewed(input), [0, 0, 0, 0], float(value or 0)
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = len(view.axes) - 1 - i
        view = cut(b, view, axis, range(max(-before, 0), view.shape[axis] - max(-after, 0)))
        before, after = max(before, 0), max(after, 0)
        if (before or after) and _is_channel_axis(view, axis):
            view = _padded_channels(b, view, axis, before, after, filler)
        elif before or after:
            at = 2 * _direction(view, axis)
            edges[at : at + 2] = before, after
    if not any(edges):
        return view
    top, bottom, left, right = edges
    return b.resized(view, b.emit(g.Pad, view.name, padding=(top, bottom, left, right), value=filler))


def _is_channel_axis(view: View, axis: int) -> bool:
    return view.axes[axis] == view.channels and not (view.is_image and axis >= 2)


def _padded_channels(b: Builder, view: View, axis: int, before: int, after: int, value: float) -> View:
    """More channels, all of them of this value: a matrix without a weight for them, and the value as its bias."""
    matrix = np.pad(np.eye(view.base[0]), ((before, after), (0, 0)))
    return b.pointwise(view, axis, matrix, np.where(matrix.any(1), 0.0, value))


def _direction(view: View, axis: int) -> int:
    """0 if the height runs along this axis, 1 if the width does. ValueError where neither is."""
    if view.is_image and len(view.base) == 3 and axis >= 2:
        return axis - 2
    sizes = view.rows_and_columns
    if view.axes[axis] not in sizes or not view.axes[axis]:
        raise ValueError(f"axis {axis} of {view.shape} is neither the channels, the height nor the width")
    return sizes.index(view.axes[axis])


def cut(b: Builder, view: View, axis: int, kept: range) -> View:
    """Some of the channels, or evenly spaced rows or columns: a stride of 1 x 1 windows, or of one-hot kernels."""
    if kept == range(view.shape[axis]):
        return view
    if len(kept) == 0:
        raise ValueError("nothing is left of it")
    if _is_channel_axis(view, axis):
        return b.pick(view, axis, kept)
    at = _direction(view, axis)
    size = view.base[1 + at]
    stride: list[int] = [1, 1]
    stride[at] = kept.step
    step = pair(stride)
    if kept.start == 0 and len(kept) == -(-size // kept.step):
        return b.resized(view, b.emit(g.Pool, view.name, kind="max", kernel=(1, 1), stride=step))
    shape = [view.base[0], 1, 1, 1]
    shape[2 + at] = size - (len(kept) - 1) * kept.step
    kernel = b.floats(np.zeros(shape))
    kernel[(slice(None), 0, kept.start, 0) if at == 0 else (slice(None), 0, 0, kept.start)] = 1
    return b.resized(view, b.emit(g.Conv, view.name, weight=kernel, stride=step, groups=view.base[0]))


@handles("pixel_unshuffle")
def pixel_unshuffle(b: Builder, input: View, downscale_factor: int) -> View:
    return space_to_depth(b, viewed(input), (downscale_factor, downscale_factor))


def space_to_depth(b: Builder, view: View, block: g.Pair) -> View:
    """Channel c * rows * columns + r * columns + k is the r-th row's and k-th column's of each block, of channel c."""
    name, channels, (rows, columns) = b.image(view), view.base[0], block
    if view.base[1] % rows or view.base[2] % columns:
        raise ValueError(f"blocks of {block} do not divide the feature map {view.base}")
    kernel = b.floats(np.tile(np.eye(rows * columns).reshape(-1, 1, rows, columns), (channels, 1, 1, 1)))
    return b.whole(b.emit(g.Conv, name, weight=kernel, stride=block, groups=channels))


# -- sums and means -------------------------------------------------------------------------------------------


@handles("mean")
def mean(b: Builder, input: View, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> View:
    return _reduced(b, viewed(input), positions(viewed(input), dim), keepdim, True)


@handles("sum")
def sum_(b: Builder, input: View, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> View:
    return _reduced(b, viewed(input), positions(viewed(input), dim), keepdim, False)


@handles("amax")
def amax(b: Builder, input: View, dim: Any = None, keepdim: bool = False) -> View:
    """Over height and width."""
    view, axes = viewed(input), positions(viewed(input), dim)
    if not view.is_image or axes != [2, 3]:
        raise ValueError("a maximum over other than height and width")
    return _without(adaptive_max_pool2d(b, view, 1)[0], axes, keepdim)


def _reduced(b: Builder, view: View, axes: list[int], keepdim: bool, mean: bool) -> View:
    """Over height, width or both; then over all channels, or over groups of them."""
    pieces = [piece for i in axes for piece in view.axes[i]]
    count = math.prod(view.shape[i] for i in axes)
    rows, columns = (axis[0] if axis and axis[0] in pieces else None for axis in view.rows_and_columns)
    rest = [piece for piece in pieces if piece not in (rows, columns)]
    if any(piece.axis != "C" for piece in rest) or len(rest) > 1:
        raise ValueError(f"a sum over the axes {axes} of {view.shape}")
    averaged = (rows.size if rows else 1) * (columns.size if columns else 1)
    if rows or columns:
        size = (1 if rows else view.base[1], 1 if columns else view.base[2])
        view = b.resized(view, b.emit(g.AdaptivePool, view.name, size=size))
    if rest:
        axis = next(i for i in axes if rest[0] in view.axes[i])
        view = _sum_channels(b, view, axis)
    factor = (averaged / count) if mean else float(averaged)
    return _without(view if factor == 1 else b.affine(view, np.asarray(factor), ZERO), axes, keepdim)


def _sum_channels(b: Builder, view: View, axis: int) -> View:
    """Sums along an axis along which some of the channels run, or all: a matrix of zeros and ones."""
    (piece,) = view.axes[axis]
    channels = view.base[0]
    index = np.arange(channels)
    outer, inner = index // (piece.stride * piece.size), index % piece.stride
    target = outer * piece.stride + inner
    matrix = np.zeros((channels // piece.size, channels))
    matrix[target, index] = 1
    made = b.pointwise(b.whole(view.name), 1, matrix)
    axes = []
    for i, other in enumerate(view.axes):
        shrunk = (
            p._replace(stride=p.stride // piece.size) if p.axis == "C" and p.stride > piece.stride else p for p in other
        )
        axes.append(() if i == axis else tuple(shrunk))
    return View(made.name, made.base, tuple(axes))


def _without(view: View, axes: list[int], keepdim: bool) -> View:
    """The reduced axes, of which nothing is left, kept as () or left out."""
    if keepdim:
        return view
    for axis in reversed(axes):
        view = View(view.name, view.base, with_axis(view.axes, axis))
    return view
