"""ONNX's elementwise operators, those that only move numbers, and what models spell out: GELU, layer norm."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .. import graph as g
from ..views import View, full, reshaped, transposed, with_axis
from . import windows
from .build import Builder, Handler, Inputs, Term, Value, numbers, scalar, viewed
from .constants import axes_of, chosen, integers, shape_asked, split_sizes, target_shape
from .file import FLOATS, Constant, Op
from .windows import mean_axes, reduce_mean_pixels

ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


# -- activations ----------------------------------------------------------------------------------------------


def activation(kind: str) -> Handler:
    def handler(builder: Builder, op: Op, inputs: Inputs) -> Value:
        return builder.activate(viewed(inputs[0]), g.Activation(kind))

    return handler


def clip(builder: Builder, op: Op, inputs: Inputs) -> Value:
    bounds = [-math.inf, math.inf]
    for i, given in enumerate(inputs[1:3]):
        if given is not None:
            number = scalar(given)
            if number is None:
                raise ValueError("its bounds must be single constant numbers")
            bounds[i] = number
    low, high = bounds
    if (low, high) == (0, 6):
        return builder.activate(viewed(inputs[0]), g.Activation("relu6"))
    return builder.activate(viewed(inputs[0]), g.Activation("clamp", low=low, high=high))


def leaky_relu(builder: Builder, op: Op, inputs: Inputs) -> Value:
    return builder.activate(viewed(inputs[0]), g.Activation("leaky_relu", slope=op.number("alpha", 0.01)))


def hard_sigmoid(builder: Builder, op: Op, inputs: Inputs) -> Value:
    alpha, beta = op.number("alpha", 0.2), op.number("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-6 or abs(beta - 0.5) > 1e-6:
        raise ValueError(f"only alpha 1/6 and beta 1/2 are supported, not {alpha:g} and {beta:g}")
    return builder.activate(viewed(inputs[0]), g.Activation("hardsigmoid"))


def gelu(builder: Builder, op: Op, inputs: Inputs) -> Value:
    kinds = {"none": "gelu", "tanh": "gelu_tanh"}
    approximate = op.text("approximate", "none")
    if approximate not in kinds:
        raise ValueError(f"approximate {approximate!r}")
    return builder.activate(viewed(inputs[0]), g.Activation(kinds[approximate]))


def softmax(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view = viewed(inputs[0])
    name = builder.vector(view)
    builder.channel_axis(view, op.integer("axis", -1))
    made = builder.emit(lambda n, s: g.Softmax(n, (), source=s), name)
    return View(made, builder.shapes[made], view.axes)


# -- arithmetic -----------------------------------------------------------------------------------------------


def add(builder: Builder, op: Op, inputs: Inputs) -> Value:
    a, b = _constant_last(inputs)
    if isinstance(a, Term):
        if a.kind == "variance" and (eps := scalar(b)) is not None:
            return replace(a, kind="variance + eps", number=eps)
        if a.kind == "erf" and scalar(b) == 1:
            return replace(a, kind="1 + erf", number=1.0)
    if isinstance(b, np.ndarray):
        return builder.affine(viewed(a), ONE, b)
    return builder.binary(g.Add, viewed(a), viewed(b))


def subtract(builder: Builder, op: Op, inputs: Inputs) -> Value:
    a, b = inputs
    if isinstance(b, Term) and b.kind == "mean" and a == b.of:
        return replace(b, kind="x - mean")
    if isinstance(b, np.ndarray):
        return builder.affine(viewed(a), ONE, -b)
    negative = builder.affine(viewed(b), -ONE, ZERO)
    return add(builder, op, [a, negative])


def multiply(builder: Builder, op: Op, inputs: Inputs) -> Value:
    a, b = _constant_last(inputs)
    if isinstance(a, Term) and a == b and a.kind == "x - mean":
        return replace(a, kind="(x - mean)^2")
    if isinstance(b, Term):
        a, b = b, a
    if isinstance(a, Term) and a.kind in ("1 + erf", "x (1 + erf)"):
        return _gelu_factor(builder, a, b)
    if isinstance(b, np.ndarray):
        return builder.affine(viewed(a), b, ZERO)
    return builder.binary(g.Mul, viewed(a), viewed(b))


def divide(builder: Builder, op: Op, inputs: Inputs) -> Value:
    a, b = inputs
    if isinstance(a, Term) and isinstance(b, Term) and a.of == b.of and (a.kind, b.kind) == ("x - mean", "deviation"):
        return _layer_norm(builder, a.of, b.number)
    if not isinstance(b, np.ndarray):
        raise ValueError("only a division by a constant is supported")
    with np.errstate(all="ignore"):
        inverse = np.asarray(1 / b.astype(np.float64))
    return multiply(builder, op, [a, inverse])


def negate(builder: Builder, op: Op, inputs: Inputs) -> Value:
    return builder.affine(viewed(inputs[0]), -ONE, ZERO)


def total(builder: Builder, op: Op, inputs: Inputs) -> Value:
    value = inputs[0]
    for other in inputs[1:]:
        value = add(builder, op, [value, other])
    return viewed(value)


def _constant_last(inputs: Inputs) -> Inputs:
    a, b = inputs
    return [b, a] if isinstance(a, np.ndarray) else [a, b]


def power(builder: Builder, op: Op, inputs: Inputs) -> Value:
    base, exponent = inputs
    if scalar(exponent) != 2:
        raise ValueError("only the second power is supported")
    return multiply(builder, op, [base, base])


def square_root(builder: Builder, op: Op, inputs: Inputs) -> Value:
    term = inputs[0]
    if not isinstance(term, Term) or term.kind != "variance + eps":
        raise ValueError("a square root is only supported within a layer norm")
    return replace(term, kind="deviation")


def erf(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view = viewed(inputs[0])
    scaled = builder.uniform_scale(view)
    if scaled is None or abs(scaled[1] - math.sqrt(0.5)) > 1e-6:
        raise ValueError("it is only supported within a GELU")
    return Term("erf", View(scaled[0], view.base, view.axes))


def _gelu_factor(builder: Builder, term: Term, factor: Value | None) -> Value:
    """x * (1 + erf(x / sqrt(2))) * 1/2, whose factors may come in any order; `number` is the constants' product."""
    number = scalar(factor)
    if number is None:
        view = viewed(factor)
        name, number = (view.name, 1.0) if view == term.of else builder.uniform_scale(view) or ("", 0.0)
        if term.kind != "1 + erf" or View(name, view.base, view.axes) != term.of:
            raise ValueError("1 + erf(x / sqrt(2)) is only supported times x")
        term = replace(term, kind="x (1 + erf)")
    term = replace(term, number=term.number * number)
    if term.kind == "x (1 + erf)" and abs(term.number - 0.5) < 1e-6:
        return builder.activate(term.of, g.Activation("gelu"))
    return term


def reduce_mean(builder: Builder, op: Op, inputs: Inputs) -> Value:
    value = inputs[0]
    view = value.of if isinstance(value, Term) else viewed(value)
    axes = mean_axes(op, inputs, view)
    if not axes:
        return view
    pieces = sorted(piece for i in axes for piece in view.axes[i])
    rows, columns = view.rows_and_columns
    if isinstance(value, View) and pieces == sorted(rows + columns):
        return reduce_mean_pixels(builder, op, view, axes)
    kinds = {"": "mean", "(x - mean)^2": "variance"}
    kind = value.kind if isinstance(value, Term) else ""
    if pieces != list(view.channels) or op.integer("keepdims", 1) != 1 or kind not in kinds:
        raise ValueError(f"a mean over the axes {axes} of {view.shape} is not supported")
    return Term(kinds[kind], view)


def _layer_norm(builder: Builder, view: View, eps: float) -> View:
    channels = view.base[0]
    builder.budget.take(2 * channels)
    scale, offset = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    made = builder.emit(lambda n, s: g.LayerNorm(n, (), scale, offset, eps, source=s), view.name)
    return View(made, view.base, view.axes)


# -- what moves numbers ---------------------------------------------------------------------------------------


def identity(builder: Builder, op: Op, inputs: Inputs) -> Value:
    if op.kind == "Dropout" and len(inputs) > 2 and inputs[2] is not None and bool(np.any(numbers(inputs[2], "mode"))):
        raise ValueError("dropout in training mode")
    if inputs[0] is None:
        raise ValueError("its input is missing")
    return inputs[0]


def cast(builder: Builder, op: Op, inputs: Inputs) -> Value:
    """Between floating-point types nothing is done: the engine computes in float32."""
    if op.integer("to", 0) not in FLOATS:
        raise ValueError("only casts to floating-point numbers are supported")
    return identity(builder, op, inputs)


def concat(builder: Builder, op: Op, inputs: Inputs) -> Value:
    views = [viewed(x) for x in inputs]
    axis = builder.channel_axis(views[0], op.integer("axis", 0))
    rest = with_axis(views[0].axes, axis)
    for view in views:
        if builder.channel_axis(view, axis) != axis or with_axis(view.axes, axis) != rest:
            raise ValueError("its inputs differ along another axis than the channels")
    names = [view.name for view in views]
    if len({len(view.base) for view in views}) > 1:
        names = [view.name if len(view.base) == 1 else builder.flatten(view.name) for view in views]
    made = builder.emit(lambda n, s: g.Concat(n, (), source=s), *names)
    base = builder.shapes[made]
    return View(made, base, with_axis(views[0].axes, axis, full("C", base[0])))


def _select(builder: Builder, view: View, axis: int, channels: tuple[int, ...] | range) -> View:
    builder.channel_axis(view, axis)
    made = builder.select(view.name, channels)
    return View(made, builder.shapes[made], with_axis(view.axes, axis, full("C", len(channels))))


def split(builder: Builder, op: Op, inputs: Inputs) -> list[View]:
    view = viewed(inputs[0])
    axis = builder.channel_axis(view, op.integer("axis", 0))
    views, start = [], 0
    for size in split_sizes(op, inputs, view.base[0]):
        views.append(_select(builder, view, axis, range(start, start + size)))
        start += size
    return views


def slice_(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view = viewed(inputs[0])
    for axis, kept in chosen(op, inputs, view.shape).items():
        if kept != range(view.shape[axis]):
            view = _select(builder, view, axis, kept)
    return view


def gather(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view, index = viewed(inputs[0]), numbers(inputs[1], "indices")
    if len(view.axes) == 1 and index.size == view.shape[0] and np.array_equal(index.ravel(), np.arange(index.size)):
        return builder.tidy(reshaped(view, index.shape))  # what torch.onnx makes of as_strided
    axis = builder.channel_axis(view, op.integer("axis", 0))
    count = view.base[0]
    picked = tuple(i + count if i < 0 else i for i in integers(index))
    if index.ndim > 1:
        raise ValueError("its indices must be a vector")
    found = _select(builder, view, axis, picked)
    return found if index.ndim else View(found.name, found.base, with_axis(found.axes, axis))


def reshape(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view = viewed(inputs[0])
    target = target_shape(op, view.shape, integers(numbers(inputs[1], "shape")))
    return builder.tidy(reshaped(view, target))


def flatten(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view, axis = viewed(inputs[0]), op.integer("axis", 1)
    if not -len(view.axes) <= axis <= len(view.axes):
        raise ValueError(f"there is no axis {axis} in {view.shape}")
    shape = view.shape
    return builder.tidy(reshaped(view, (math.prod(shape[:axis]), math.prod(shape[axis:]))))


def transpose(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view = viewed(inputs[0])
    return builder.tidy(transposed(view, op.integers("perm", reversed(range(len(view.axes))))))


def squeeze(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view = viewed(inputs[0])
    axes = {view.position(a) for a in axes_of(op, inputs)}
    axes = axes or {i for i, axis in enumerate(view.axes) if view.shape[i] == 1}
    if any(view.axes[i] for i in axes):
        raise ValueError(f"cannot leave out the axes {sorted(axes)} of {view.shape}")
    return View(view.name, view.base, tuple(axis for i, axis in enumerate(view.axes) if i not in axes))


def unsqueeze(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view, axes = viewed(inputs[0]), axes_of(op, inputs)
    rank = len(view.axes) + len(axes)
    if rank > 8 or any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
        raise ValueError(f"the axes {axes} cannot be added to {view.shape}")
    rest = iter(view.axes)
    new = {a % rank for a in axes}
    return View(view.name, view.base, tuple(() if i in new else next(rest) for i in range(rank)))


def expand(builder: Builder, op: Op, inputs: Inputs) -> Value:
    view, shape = viewed(inputs[0]), integers(numbers(inputs[1], "shape"))
    if np.broadcast_shapes(view.shape, shape) != view.shape:
        raise ValueError(f"{view.shape} cannot be expanded to {shape}")
    return view


def shape_of(builder: Builder, op: Op, inputs: Inputs) -> Constant:
    shape = np.array(viewed(inputs[0]).shape, np.int64)
    return np.asarray(shape.prod()) if op.kind == "Size" else np.array(shape_asked(op, tuple(shape)), np.int64)


HANDLERS: dict[str, Handler] = {
    **windows.HANDLERS,
    "Add": add,
    "Cast": cast,
    "Clip": clip,
    "Concat": concat,
    "Div": divide,
    "Dropout": identity,
    "Erf": erf,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": activation("hardswish"),
    "Identity": identity,
    "LeakyRelu": leaky_relu,
    "Mul": multiply,
    "Neg": negate,
    "Pow": power,
    "ReduceMean": reduce_mean,
    "Relu": activation("relu"),
    "Reshape": reshape,
    "Shape": shape_of,
    "Sigmoid": activation("sigmoid"),
    "Size": shape_of,
    "Slice": slice_,
    "Softmax": softmax,
    "Split": split,
    "Sqrt": square_root,
    "Squeeze": squeeze,
    "Sub": subtract,
    "Sum": total,
    "Tanh": activation("tanh"),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
