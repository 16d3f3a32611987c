"""ATen's operators with weights, windows and borders: convolutions, linear layers, norms.

A function's arguments are those of the operator's schema; see build.Handler.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import graph as g
from ..views import View
from .build import ONE, ZERO, Builder, constant, handles, pair, viewed

Numbers = Any  # a number, or a list of one or two

# -- convolutions and linear layers ---------------------------------------------------------------------------


@handles("conv2d")
def conv2d(
    b: Builder,
    input: View,
    weight: Any,
    bias: Any = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> View:
    view, kernel = viewed(input), constant(weight)
    if view.axes[1:] == (view.channels, (), ()) and kernel.shape[2:] == (1, 1) and groups == 1 and padding in _NONE:
        return b.pointwise(view, 1, kernel[:, :, 0, 0], None if bias is None else constant(bias))
    made = b.emit(
        g.Conv,
        b.image(view),
        weight=b.floats(kernel),
        bias=None if bias is None else b.floats(constant(bias)),
        stride=pair(stride),
        padding=edges_of(padding, pair(kernel.shape[2:]), pair(dilation)),
        dilation=pair(dilation),
        groups=groups,
    )
    return b.whole(made)


_NONE = (0, [0], [0, 0], (0, 0), "valid", "same")


def edges_of(padding: Numbers | str, kernel: g.Pair, dilation: g.Pair) -> g.Edges:
    """As in PyTorch, what 'same' has to add unevenly goes to the bottom and right."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        (top, bottom), (left, right) = (
            (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for k, d in zip(kernel, dilation, strict=True)
        )
        return top, bottom, left, right
    vertical, horizontal = pair(padding)
    return vertical, vertical, horizontal, horizontal


@handles("convolution", "_convolution")
def convolution(
    b: Builder,
    input: View,
    weight: Any,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    *_: Any,
) -> View:
    if transposed:
        raise ValueError("a transposed convolution")
    if len(stride) == 1:
        return conv1d(b, input, weight, bias, stride, padding, dilation, groups)
    return conv2d(b, input, weight, bias, stride, padding, dilation, groups)


@handles("conv1d")
def conv1d(
    b: Builder,
    input: View,
    weight: Any,
    bias: Any = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> View:
    """Along the channels of a vector, [N, 1, C], as in efficient channel attention: a banded Linear."""
    view, kernel = viewed(input), constant(weight)
    if view.axes[1:] != ((), view.channels) or kernel.shape[:2] != (1, 1):
        raise ValueError("a one-dimensional convolution other than along the channels of a vector")
    (size, step, apart), channels = (kernel.shape[2], pair(stride)[0], pair(dilation)[0]), view.base[0]
    before, after, _, _ = edges_of(padding, (size, size), (apart, apart))
    rows = (channels + before + after - apart * (size - 1) - 1) // step + 1
    matrix = np.zeros((rows, before + channels + after))
    for row in range(rows):
        matrix[row, row * step : row * step + apart * size : apart] += kernel[0, 0]
    offset = None if bias is None else np.broadcast_to(constant(bias), (rows,))
    return b.pointwise(view, 2, matrix[:, before : before + channels], offset)


@handles("linear")
def linear(b: Builder, input: View, weight: Any, bias: Any = None) -> View:
    return b.pointwise(viewed(input), -1, constant(weight), None if bias is None else constant(bias))


@handles("addmm")
def addmm(b: Builder, input: Any, mat1: View, mat2: Any, *, beta: float = 1, alpha: float = 1) -> View:
    return linear(b, mat1, constant(mat2).T * alpha, np.broadcast_to(constant(input) * beta, mat2.shape[1:]))


@handles("mm", "matmul")
def matmul(b: Builder, input: View, other: Any) -> View:
    if isinstance(input, View) and isinstance(other, View):
        raise ValueError("a matrix product of two values, as in attention")
    if not isinstance(input, View) or constant(other).ndim != 2:
        raise ValueError("only a product with a constant matrix on the right is supported")
    return linear(b, input, constant(other).T)


# -- norms ----------------------------------------------------------------------------------------------------


@handles("batch_norm")
def batch_norm(
    b: Builder,
    input: View,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> View:
    if training or running_mean is None:
        raise ValueError("batch norm by the statistics of the batch")
    view, mean = viewed(input), constant(running_mean)
    factor = (1.0 if weight is None else constant(weight)) / np.sqrt(constant(running_var) + eps)
    moved = (0.0 if bias is None else constant(bias)) - mean * factor
    b.channel_axis(view, 1)
    return b.like(view, g.Affine, scale=b.floats(factor), offset=b.floats(moved))


@handles("_native_batch_norm_legit_no_training")
def batch_norm_in_evaluation(
    b: Builder, input: View, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> tuple[View, None, None]:
    return batch_norm(b, input, weight, bias, mean, var, False, momentum, eps), None, None


@handles("native_batch_norm")
def native_batch_norm(b: Builder, *args: Any) -> tuple[View, None, None]:
    return batch_norm(b, *args), None, None


@handles("layer_norm")
def layer_norm(
    b: Builder,
    input: View,
    normalized_shape: list[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> View:
    view = viewed(input)
    b.channel_axis(view, -1)
    if len(normalized_shape) != 1:
        raise ValueError("a layer norm over more than the channels of each pixel")
    scale = b.per_channel(view, ONE if weight is None else constant(weight))
    offset = b.per_channel(view, ZERO if bias is None else constant(bias))
    return b.like(view, g.LayerNorm, scale=scale, offset=offset, eps=eps)


@handles("native_layer_norm")
def native_layer_norm(b: Builder, *args: Any) -> tuple[View, None, None]:
    return layer_norm(b, *args), None, None
