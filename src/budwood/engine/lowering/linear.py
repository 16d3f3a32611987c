"""Products with a matrix: of vectors, and of feature maps that become one pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..graph import IDENTITY, Activation, Array, Conv, Linear
from ..lower import Context, StepInfo, activation_arguments
from ..storage import View, is_vector
from .channels import flatten

# Density below which the kernel that skips zeros is the faster (measured).
SPARSE_BELOW = 0.3


@dataclass(frozen=True)
class Rows:
    """A matrix by its entries, row by row."""

    values: Array
    column: NDArray[np.int32]
    start: NDArray[np.int64]
    size: int  # of the matrix, places that can hold no weight apart

    @classmethod
    def of(cls, values: Array, row: NDArray[np.int64], column: NDArray[np.int64], rows: int, size: int) -> Rows:
        start = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=rows), out=start[1:])
        return cls(np.ascontiguousarray(values), column.astype(np.int32), start, size)


def lower_linear(context: Context, node: Linear) -> None:
    source = context.view(node.inputs[0])
    product(context, node.name, "Linear", source, node.weight, node.bias, node.activation)


def product(
    context: Context,
    name: str,
    op: str,
    source: View,
    weight: Array | Rows,
    bias: Array | None,
    f: Activation,
) -> None:
    """`Rows` where what they lack is no weight: a product with zero would let NaN and infinity through."""
    out = context.storage.view(name)
    images = context.group_of(name, out)
    left = len(weight.values) if isinstance(weight, Rows) else np.count_nonzero(weight)
    density = float(left) / max(weight.size, 1)
    if not isinstance(weight, Rows) and density < SPARSE_BELOW:
        row, column = np.nonzero(weight)
        weight = Rows.of(weight[row, column], row, column, len(weight), weight.size)
    sparse = isinstance(weight, Rows)
    info = StepInfo(
        name,
        op,
        "sparse linear" if sparse else "linear",
        f"{density:.0%} of the weights left",
        context.shape(name),
        1 - density,
        2.0 * left,
    )
    shift = np.zeros(out.channels, np.float32) if bias is None else np.ascontiguousarray(bias)

    def emit(plan: _native.Plan) -> None:
        where = (source.numbers(), out.numbers(), images)
        if isinstance(weight, Rows):
            plan.sparse_linear(*where, weight.values, weight.column, weight.start, shift, *activation_arguments(f))
        else:
            plan.linear(*where, np.ascontiguousarray(weight), shift, *activation_arguments(f))

    context.add(info, out, [source], emit)


def lower_as_linear(context: Context, node: Conv) -> None:
    """A convolution whose output is one pixel: every pixel that its window sees has one weight."""
    _, height, width = _plane(context.shape(node.inputs[0]))
    rows, per_group, *kernel = node.weight.shape
    seen = [
        (ky, kx, y * width + x)
        for ky in range(kernel[0])
        for kx in range(kernel[1])
        if 0 <= (y := ky * node.dilation[0] - node.padding[0]) < height
        and 0 <= (x := kx * node.dilation[1] - node.padding[2]) < width
    ]
    taken = node.weight[:, :, [ky for ky, _, _ in seen], [kx for _, kx, _ in seen]]
    matrix: Array | Rows = taken.reshape(rows, -1)
    if node.groups > 1 or not seen:
        row, channel, at = np.nonzero(taken)
        first = row // (rows // node.groups) * per_group
        column = (first + channel) * len(seen) + at
        matrix = Rows.of(taken[row, channel, at], row, column, rows, taken.size)
    source = context.view(node.inputs[0])
    if not is_vector(context.shape(node.inputs[0])):
        source = flatten(context, node.name, node.inputs[0], np.array([pixel for _, _, pixel in seen] or [0]))
    if len(node.inputs) == 1:
        return product(context, node.name, "Conv", source, matrix, node.bias, node.activation)
    product(context, node.name, "Conv", source, matrix, node.bias, IDENTITY)
    out, residual = context.storage.view(node.name), context.view(node.inputs[1])
    images = context.group_of(node.name, out)
    info = StepInfo(node.name, "residual", "elementwise", "", context.shape(node.name))
    context.add(
        info,
        out,
        [out, residual],
        lambda plan: plan.add(
            out.numbers(), residual.numbers(), out.numbers(), images, 0, *activation_arguments(node.activation)
        ),
    )
    return None


def _plane(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])
