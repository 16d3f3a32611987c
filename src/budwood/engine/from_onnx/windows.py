"""ONNX's operators with windows, borders and weights: Conv, the pools, Pad, the normalizations, Gemm and MatMul."""

from __future__ import annotations

import math

import numpy as np

from .. import graph as g
from ..views import View, full, whole, with_axis
from .build import Builder, Handler, Inputs, Value, numbers, scalar, viewed
from .constants import axes_of, integers
from .file import Op


def conv(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view, weight = viewed(inputs[0]), numbers(inputs[1], "weight")
    bias = None if len(inputs) < 3 or inputs[2] is None else builder.floats(numbers(inputs[2], "bias"))
    if weight.ndim != 4:
        raise ValueError("only convolutions over height and width are supported")
    kernel = (weight.shape[2], weight.shape[3])
    if op.integers("kernel_shape", kernel) != kernel:
        raise ValueError("its kernel_shape is not that of its weight")
    stride, dilation, groups = pair(op, "strides"), pair(op, "dilations"), op.integer("group", 1)
    if len(view.base) == 1:
        return _conv_of_vector(builder, op, view, weight, bias)
    name = builder.image(view)
    padding = edges(op, view.base, kernel, stride, dilation)
    w = builder.floats(weight)
    made = builder.emit(lambda n, s: g.Conv(n, (), w, bias, stride, padding, dilation, groups, source=s), name)
    return whole(made, builder.shapes[made], builder.batch)


def _conv_of_vector(builder: Builder, op: Op, view: View, weight: g.Array, bias: g.Array | None) -> View:
    """A 1 x 1 convolution of one pixel, such as those in squeeze-excite, is a Linear."""
    plain = weight.shape[2:] == (1, 1) and not any(op.integers("pads")) and op.integer("group", 1) == 1
    if not plain or view.axes[1:] != (view.channels, (), ()) or not view.starts_with_batch:
        raise ValueError(f"needs a feature map [N, C, H, W], gets a view {view.shape} of {view.base}")
    w = builder.floats(weight[:, :, 0, 0])
    made = builder.emit(lambda n, s: g.Linear(n, (), w, bias, source=s), view.name)
    return View(made, builder.shapes[made], with_axis(view.axes, 1, full("C", w.shape[0])))


def pair(op: Op, name: str) -> g.Pair:
    values = op.integers(name, (1, 1)) or (1, 1)
    if len(values) != 2 or min(values) < 1:
        raise ValueError(f"{name} {values}: two numbers of 1 or more are wanted")
    return values[0], values[1]


def edges(op: Op, shape: g.Shape, kernel: g.Pair, stride: g.Pair, dilation: g.Pair) -> g.Edges:
    """The padding: ONNX orders it top, left, bottom, right; auto_pad makes it of the image's size."""
    mode = op.text("auto_pad", "NOTSET") or "NOTSET"
    if mode == "VALID":
        return (0, 0, 0, 0)
    if mode == "NOTSET":
        pads = op.integers("pads", (0,) * 4) or (0,) * 4
        if len(pads) != 4:
            raise ValueError(f"pads {pads}: four numbers are wanted")
        return pads[0], pads[2], pads[1], pads[3]
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"auto_pad {mode}")
    found: list[int] = []
    for size, k, s, d in zip(shape[1:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        less, more = total // 2, total - total // 2
        found += (less, more) if mode == "SAME_UPPER" else (more, less)
    return found[0], found[1], found[2], found[3]


def pool(kind: str) -> Handler:
    def handler(builder: Builder, op: Op, inputs: Inputs) -> Value:
        view = viewed(inputs[0])
        name = builder.image(view)
        kernel, stride, dilation = pair(op, "kernel_shape"), pair(op, "strides"), pair(op, "dilations")
        padding = edges(op, view.base, kernel, stride, dilation)
        ceil, counts = op.integer("ceil_mode", 0) == 1, op.integer("count_include_pad", 0) == 1
        made = builder.emit(
            lambda n, s: g.Pool(n, (), kind, kernel, stride, padding, dilation, ceil, counts, source=s), name
        )
        return whole(made, builder.shapes[made], builder.batch)

    return handler


def global_pool(kind: str) -> Handler:
    def handler(builder: Builder, op: Op, inputs: Inputs) -> Value:
        view = viewed(inputs[0])
        name = builder.image(view)
        if kind == "average":
            made = builder.emit(lambda n, s: g.AdaptivePool(n, (), source=s), name)
        else:
            size = (view.base[1], view.base[2])
            made = builder.emit(lambda n, s: g.Pool(n, (), "max", size, (1, 1), source=s), name)
        return whole(made, builder.shapes[made], builder.batch)

    return handler


def pad(builder: Builder, op: Op, inputs: Inputs) -> Value:
    """Around the height and the width, wherever these are among the axes."""
    view, pads = viewed(inputs[0]), integers(numbers(inputs[1], "pads"))
    value = scalar(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    rank = len(view.axes)
    axes = range(rank)
    if len(inputs) > 3 and inputs[3] is not None:
        axes = [view.position(a) for a in integers(numbers(inputs[3], "axes"))]  # type: ignore[assignment]
    if op.text("mode", "constant") != "constant" or value is None or len(pads) != 2 * len(axes):
        raise ValueError("only padding with a constant is supported")
    around = {a: (pads[i], pads[i + len(axes)]) for i, a in enumerate(axes) if pads[i] or pads[i + len(axes)]}
    if not around:
        return view
    if len(view.base) != 3:
        raise ValueError(f"cannot pad a view {view.shape} of a vector")
    height, width = view.rows_and_columns
    if view.is_image:
        places = {2: 0, 3: 1}
    else:
        places = {view.axes.index(axis): i for i, axis in enumerate((height, width)) if axis and axis in view.axes}
    if not set(around) <= places.keys():
        raise ValueError("only height and width can be padded")
    found = {places[a]: both for a, both in around.items()}
    (top, bottom), (left, right) = found.get(0, (0, 0)), found.get(1, (0, 0))
    made = builder.emit(lambda n, s: g.Pad(n, (), (top, bottom, left, right), value, source=s), view.name)
    base = builder.shapes[made]
    new = {a: full("HW"[i], base[1 + i]) for a, i in places.items()}
    return View(made, base, tuple(new.get(i, axis) for i, axis in enumerate(view.axes)))


def batch_norm(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view = viewed(inputs[0])
    scale, offset, mean, var = (numbers(x, "parameters").astype(np.float64) for x in inputs[1:5])
    if op.integer("training_mode", 0) != 0:
        raise ValueError("batch norm in training mode")
    builder.channel_axis(view, 1)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(var + op.number("epsilon", 1e-5))
        moved = offset - mean * factor
    a, b = builder.floats(factor), builder.floats(moved)
    made = builder.emit(lambda n, s: g.Affine(n, (), a, b, source=s), view.name)
    return View(made, view.base, view.axes)


def layer_norm(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view = viewed(inputs[0])
    axis = view.position(op.integer("axis", -1))
    builder.channel_axis(view, axis)
    if axis != len(view.axes) - 1:
        raise ValueError("only a layer norm over the channels of each pixel is supported")
    scale = builder.per_channel(view, numbers(inputs[1], "scale"))
    bias = inputs[2] if len(inputs) > 2 and inputs[2] is not None else np.zeros(1, np.float32)
    offset = builder.per_channel(view, numbers(bias, "bias"))
    eps = op.number("epsilon", 1e-5)
    made = builder.emit(lambda n, s: g.LayerNorm(n, (), scale, offset, eps, source=s), view.name)
    return View(made, view.base, view.axes)


def gemm(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view, weight = viewed(inputs[0]), numbers(inputs[1], "weight")
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    if op.integer("transA", 0) or weight.ndim != 2 or len(view.axes) != 2:
        raise ValueError("only a product of a vector [N, C] with a constant matrix is supported")
    weight = weight.T if op.integer("transB", 0) else weight
    bias = None
    if len(inputs) > 2 and inputs[2] is not None:
        given = numbers(inputs[2], "bias")
        if given.ndim == 2 and given.shape[0] != 1:
            raise ValueError("a bias that differs from image to image")
        given = given.reshape(-1)
        builder.budget.take(weight.shape[1])
        bias = np.broadcast_to(given, weight.shape[1:])
        bias = bias if beta == 1 else bias * np.float32(beta)
    return builder.dense(view, weight if alpha == 1 else weight * np.float32(alpha), bias)


def matmul(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view, weight = viewed(inputs[0]), numbers(inputs[1], "second matrix")
    if weight.ndim != 2:
        raise ValueError("only a product with a constant matrix of two dimensions is supported")
    return builder.dense(view, weight, None)


def reduce_mean_pixels(builder: Builder, op: Op, view: View, axes: list[int]) -> View:
    """The mean over exactly height and width, of a feature map or of tokens."""
    if len(view.base) == 3 and math.prod(view.base[1:]) > 1:
        made = builder.emit(lambda n, s: g.AdaptivePool(n, (), source=s), view.name)
    else:
        made = view.name
    keeps = op.integer("keepdims", 1) == 1
    kept = [() if i in axes else axis for i, axis in enumerate(view.axes) if keeps or i not in axes]
    return View(made, builder.shapes[made], tuple(kept))


def mean_axes(op: Op, inputs: Inputs, view: View) -> list[int]:
    """The axes that ReduceMean reduces; all of them where none are given."""
    axes = axes_of(op, inputs)
    if not axes and op.integer("noop_with_empty_axes", 0):
        return []
    return sorted({view.position(a) for a in axes or range(len(view.axes))})


HANDLERS: dict[str, Handler] = {
    "AveragePool": pool("average"),
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "Gemm": gemm,
    "GlobalAveragePool": global_pool("average"),
    "GlobalMaxPool": global_pool("max"),
    "LayerNormalization": layer_norm,
    "MatMul": matmul,
    "MaxPool": pool("max"),
    "Pad": pad,
}
