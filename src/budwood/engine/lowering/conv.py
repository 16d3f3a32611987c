"""Convolutions: sparse, dense or depthwise, whichever its weights make the fastest."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..graph import Conv
from ..layout import tiles
from ..lower import Context, StepInfo, activation_arguments
from ..storage import View, is_vector
from .channelwise import lower_depthwise
from .linear import Rows, lower_as_linear
from .operand import Operand, PhaseView, conv_taps, dealt_out, operand, taps

Kind = Literal["sparse", "dense"]

# What the sparse kernel takes, where the dense one takes 1 for a weight and a vector of pixels (measured, see
# benchmarks/choice.py): for a non-zero and a vector, the loads of its weight and place included; for a row of a block
# and a vector, a sum that is loaded and stored, and the row's end; and the inputs that a block has at most.
_NON_ZERO, _ROW, _BLOCK = 1.33, 4.3, 100
WIDEST = 14
DENSE_WIDEST = 8
# Vectors that a block of inputs may take (measured): as many as the first-level cache holds (48 KB, 768 lines, shared
# with the sums that pass by) where a row has many non-zeros for each vector, more where it has few, since every block
# costs a load and a store of each sum.
_DENSE_LINES = 600
_LINES = ((0.03, 650), (0.02, 750), (0.012, 900), (0.008, 1400), (0.005, 2000), (0.0, 2500))
_ALONE = 1.4  # a single block may be so much larger: its sums are never loaded
# Products that a block adds to a sum, one after the other: more would lose too many digits. It counts where tiles are
# narrow, since the cache then holds more.
_LONGEST = {"sparse": 64, "dense": 128}


def blocks(
    channels: int, taps_per_channel: int, lines_per_channel: int, budget: int, longest: float = math.inf
) -> NDArray[np.int64]:
    """First operand of each block, then their number: whole channels, blocks of nearly the same size, of at most
    `longest` operands if a channel has no more."""
    most = max(min(budget // lines_per_channel, int(min(longest, 1 << 40)) // taps_per_channel), 1)
    alone = channels * lines_per_channel <= _ALONE * budget and channels * taps_per_channel <= longest
    count = 1 if alone else -(-channels // most)
    return np.array([channels * b // count for b in range(count + 1)], np.int64) * taps_per_channel


def lower_conv(context: Context, node: Conv) -> None:
    if is_vector(context.shape(node.name)):
        return lower_as_linear(context, node)
    if node.name in context.phased:
        return _lower_phases(context, node)
    if node.is_depthwise and not _deals_out(node):
        return lower_depthwise(context, node)
    out = context.storage.view(node.name)
    source = operand(context, node.name, node.inputs[0], out, conv_taps(node))
    shape = context.shape(node.name)
    _add(context, node, source, out, 2.0 * np.count_nonzero(node.weight) * shape[1] * shape[2])
    return None


def _only_moves(node: Conv) -> bool:
    """Whether it makes no sums, but copies and constants. The sparse kernel does that without a look at what lies
    beside, where a zero is no weight, and a NaN may not be taken in."""
    return bool((np.count_nonzero(node.weight.reshape(len(node.weight), -1), axis=1) <= 1).all())


def _deals_out(node: Conv) -> bool:
    """Whether it puts each pixel of a window into a channel of its own: space to depth."""
    window = node.weight.shape[2:]
    return _only_moves(node) and len(node.weight) > node.groups and node.stride == window != (1, 1)


def _add(context: Context, node: Conv, source: Operand, out: View, flops: float) -> None:
    reads = [source.view]
    residual = None
    if len(node.inputs) == 2:
        residual = context.view(node.inputs[1])
        reads.append(residual)
    density = float(np.count_nonzero(node.weight)) / node.weight.size
    share = sparse_share(density, node.weight[0].size)
    kind: Kind = "sparse" if share < 1 else "dense"
    reason = f"{density:.0%} of the weights left, sparse by the model {share:.2f} times dense"
    if _only_moves(node):
        kind, reason = "sparse", "copies"
    if kind == "sparse" and not near(source):
        kind, reason = "dense", f"{density:.0%} of the weights left, too far apart for 16 bits"
    info = StepInfo(node.name, "Conv", kind, reason, context.shape(node.name), 1 - density, flops)
    emit = _sparse if kind == "sparse" else _dense
    by_channels = _read_by_channels(context, node.name)
    context.add(info, out, reads, lambda plan: emit(plan, node, source, out, residual, density, by_channels))


def near(source: Operand) -> bool:
    """Whether the places of a block's operands can be counted in 16 bits; a block may be one channel, or all."""
    offsets = source.offsets()
    assert source.view.buffer.layout is not None
    return int(np.ptp(offsets)) // source.view.buffer.layout.lanes < 1 << 16


def _read_by_channels(context: Context, name: str) -> bool:
    """Whether whoever reads the value works on each channel alone."""
    users = context.users[name]
    return any(isinstance(u, Conv) and u.is_depthwise for u in users)


def _lower_phases(context: Context, node: Conv) -> None:
    """A convolution of the network's input that only a pooling reads: made in the planes that the pooling wants.

    Pixel (Y, X) of a phase is pixel (Y, X) * stride + phase of the convolution's output.
    """
    t = context.phased[node.name]
    shape = context.shape(node.name)
    view = context.storage.views[node.name]
    windows = []
    for phase in t.phases:
        stride = (node.stride[0] * t.stride[0], node.stride[1] * t.stride[1])
        top, left = node.padding[0] - phase[0] * node.stride[0], node.padding[2] - phase[1] * node.stride[1]
        kernel = (node.weight.shape[2], node.weight.shape[3])
        windows.append(taps(kernel, stride, (top, 0, left, 0), node.dilation))
    sources = dealt_out(context, node.name, node.inputs[0], view, windows)
    flops = 2.0 * np.count_nonzero(node.weight) * shape[1] * shape[2] / len(sources)
    for number, source in enumerate(sources):
        _add(context, node, source, PhaseView(view.buffer, number, shape[0], len(sources)), flops)


def sparse_share(density: float, inputs: int) -> float:
    """What the sparse kernel takes of the dense one's time where a row has so many inputs, by a model of both.

    It looks at nothing that differs from plan to plan: an image gets the same kernels, and the same 0 x NaN, whatever
    batch it comes in.
    """
    return _NON_ZERO * density + _ROW / min(inputs, _BLOCK)


def tiling(source: Operand, out: View, density: float, kind: Kind) -> dict[str, Any]:
    """How a kernel goes over the operands of `out`: their `offsets`, the `widest` tile, the `blocks` of inputs."""
    layout = out.buffer.layout
    assert layout is not None
    widest = DENSE_WIDEST if kind == "dense" else WIDEST
    tile = -(-layout.width // tiles(layout.width, widest))
    lines = source.lines(tile)
    each = density * len(source.taps) / lines  # non-zeros of a row for each vector
    budget = _DENSE_LINES if kind == "dense" else next(most for least, most in _LINES if each >= least)
    longest = _LONGEST[kind] / (density if kind == "sparse" else 1.0) if density else math.inf
    cut = blocks(source.channels, len(source.taps), lines, budget, longest)
    return {"offsets": np.ascontiguousarray(source.offsets().ravel()), "widest": widest, "blocks": cut}


def _common(
    node: Conv, source: Operand, out: View, residual: View | None, density: float, by_channels: bool, kind: Kind
) -> dict[str, Any]:
    bias = np.zeros(out.channels, np.float32) if node.bias is None else np.ascontiguousarray(node.bias)
    activation, numbers = activation_arguments(node.activation)
    return {
        "operand": source.view.numbers(),
        "out": out.numbers(),
        "residual": None if residual is None else residual.numbers(),
        **tiling(source, out, density, kind),
        "by_channels": by_channels,
        "activation": activation,
        "numbers": numbers,
        "bias": bias,
    }


def _sparse(
    plan: _native.Plan, node: Conv, source: Operand, out: View, residual: View | None, density: float, by_channels: bool
) -> None:
    rows = node.weight.shape[0]
    flat = node.weight.reshape(rows, -1)
    row, column = np.nonzero(flat)
    first = row // (rows // node.groups) * flat.shape[1]
    found = Rows.of(flat[row, column], row, first + column, rows, flat.size)
    common = _common(node, source, out, residual, density, by_channels, "sparse")
    plan.sparse_conv(**common, values=found.values, columns=found.column, start=found.start)


def _dense(
    plan: _native.Plan, node: Conv, source: Operand, out: View, residual: View | None, density: float, by_channels: bool
) -> None:
    weights = np.ascontiguousarray(node.weight.ravel())
    common = _common(node, source, out, residual, density, by_channels, "dense")
    plan.dense_conv(**common, weights=weights, groups=node.groups)
