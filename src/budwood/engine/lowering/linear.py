"""Products with a matrix: of vectors, and of feature maps that become one pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..graph import IDENTITY, Activation, Array, Conv, Linear
from ..lower import Context, StepInfo, activation_arguments
from ..storage import View, is_vector
from .channels import flatten

# Density below which the kernel that skips zeros is the faster (measured).
SPARSE_BELOW = 0.3


def lower_linear(context: Context, node: Linear) -> None:
    source = context.view(node.inputs[0])
    product(context, node.name, "Linear", source, node.weight, node.bias, node.activation)


def product(
    context: Context,
    name: str,
    op: str,
    source: View,
    weight: Array,
    bias: Array | None,
    f: Activation,
    *,
    skip_zeros: bool = False,
) -> None:
    """`skip_zeros` where a zero is no weight: a product with it would let NaN and infinity through."""
    out = context.storage.view(name)
    images = context.group_of(name, out)
    left = np.count_nonzero(weight)
    density = float(left) / weight.size
    sparse = skip_zeros or density < SPARSE_BELOW
    info = StepInfo(
        name,
        op,
        "sparse linear" if sparse else "linear",
        f"{density:.0%} of the weights left",
        context.shape(name),
        1 - density,
        2.0 * left,
    )
    shift = np.zeros(len(weight), np.float32) if bias is None else np.ascontiguousarray(bias)

    def emit(plan: _native.Plan) -> None:
        where = (source.numbers(), out.numbers(), images)
        if sparse:
            plan.sparse_linear(*where, *_csr(weight), shift, *activation_arguments(f))
        else:
            plan.linear(*where, np.ascontiguousarray(weight), shift, *activation_arguments(f))

    context.add(info, out, [source], emit)


def _csr(weight: Array) -> tuple[Array, NDArray[np.int32], NDArray[np.int64]]:
    row, column = np.nonzero(weight)
    start = np.zeros(len(weight) + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=len(weight)), out=start[1:])
    return np.ascontiguousarray(weight[row, column]), column.astype(np.int32), start


def lower_as_linear(context: Context, node: Conv) -> None:
    """A convolution whose output is one pixel: every pixel that its window sees has one weight."""
    channels, height, width = _plane(context.shape(node.inputs[0]))
    rows, per_group, *kernel = node.weight.shape
    seen = [
        (ky, kx, y * width + x)
        for ky in range(kernel[0])
        for kx in range(kernel[1])
        if 0 <= (y := ky * node.dilation[0] - node.padding[0]) < height
        and 0 <= (x := kx * node.dilation[1] - node.padding[2]) < width
    ]
    full = np.zeros((rows, channels, max(len(seen), 1)), np.float32)  # a window beside the image: one pixel, unused
    per = rows // node.groups
    for at, (ky, kx, _) in enumerate(seen):
        for g in range(node.groups):
            to = np.s_[g * per : (g + 1) * per]
            full[to, g * per_group : (g + 1) * per_group, at] = node.weight[to, :, ky, kx]
    source = context.view(node.inputs[0])
    if not is_vector(context.shape(node.inputs[0])):
        source = flatten(context, node.name, node.inputs[0], [pixel for _, _, pixel in seen] or [0])
    matrix, skip = full.reshape(rows, -1), node.groups > 1 or not seen
    if len(node.inputs) == 1:
        return product(context, node.name, "Conv", source, matrix, node.bias, node.activation, skip_zeros=skip)
    product(context, node.name, "Conv", source, matrix, node.bias, IDENTITY, skip_zeros=skip)
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
