"""ATen's elementwise operators: activations and arithmetic.

A function's arguments are those of the operator's schema; see build.Handler.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import graph as g
from ..views import Piece, View
from .build import ONE, ZERO, Builder, Handler, constant, handles, shape_of, viewed

# -- activations ----------------------------------------------------------------------------------------------


def _activation(kind: str) -> Handler:
    def handler(b: Builder, input: View) -> View:
        return b.activate(viewed(input), kind)

    return handler


for _kind in ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh"):
    handles(_kind)(_activation(_kind))


@handles("gelu")
def gelu(b: Builder, input: View, *, approximate: str = "none") -> View:
    return b.activate(viewed(input), "gelu" if approximate == "none" else "gelu_tanh")


@handles("leaky_relu")
def leaky_relu(b: Builder, input: View, negative_slope: float = 0.01) -> View:
    return b.activate(viewed(input), "leaky_relu", slope=float(negative_slope))


@handles("clamp", "clip")
def clamp(b: Builder, input: View, min: Any = None, max: Any = None) -> View:
    low = -math.inf if min is None else float(constant(min).reshape(()))
    high = math.inf if max is None else float(constant(max).reshape(()))
    if (low, high) == (0, 6):
        return b.activate(viewed(input), "relu6")
    if (low, high) == (0, math.inf):
        return b.activate(viewed(input), "relu")
    return b.activate(viewed(input), "clamp", low=low, high=high)


@handles("hardtanh")
def hardtanh(b: Builder, input: View, min_val: float = -1, max_val: float = 1) -> View:
    return clamp(b, input, min_val, max_val)


@handles("clamp_min")
def clamp_min(b: Builder, input: View, min: Any) -> View:
    return clamp(b, input, min)


@handles("clamp_max")
def clamp_max(b: Builder, input: View, max: Any) -> View:
    return clamp(b, input, None, max)


@handles("prelu")
def prelu(b: Builder, self: View, weight: Any) -> View:
    """relu(x) - weight * relu(-x)"""
    view, slope = viewed(self), constant(weight)
    slope = slope.reshape(-1, *[1] * (len(view.axes) - 2)) if slope.size > 1 else slope
    below = b.activate(b.affine(view, -ONE, ZERO), "relu")
    return b.binary(g.Add, b.activate(view, "relu"), b.affine(below, -slope, ZERO))


@handles("softmax", "_softmax")
def softmax(b: Builder, input: View, dim: int, *_: Any) -> View:
    """Over all channels of a vector; over two halves of the channels it is a sigmoid of their difference."""
    view = viewed(input)
    axis = view.axes[view.position(dim)]
    if len(view.base) == 3 and math.prod(view.base[1:]) == 1:
        view = View(b.flat(view.name), view.base[:1], view.axes)
    if len(view.base) != 1:
        raise ValueError("a softmax over the channels of each pixel")
    if axis == view.channels:
        return b.like(view, g.Softmax)
    if axis != (Piece("C", 2, view.base[0] // 2),):
        raise ValueError("a softmax over some of the channels")
    half = view.base[0] // 2
    swapped = b.select(view.name, (*range(half, 2 * half), *range(half)))
    difference = subtract(b, b.whole(view.name), b.whole(swapped))
    return View(b.activate(difference, "sigmoid").name, view.base, view.axes)


# -- arithmetic -----------------------------------------------------------------------------------------------


@handles("add")
def add(b: Builder, input: Any, other: Any, *, alpha: float = 1) -> View:
    other = other if alpha == 1 else multiply(b, other, alpha)
    if isinstance(input, View) and isinstance(other, View):
        return _binary(b, g.Add, input, other)
    view, number = _constant_last(input, other)
    return b.affine(view, ONE, number)


@handles("sub", "subtract")
def subtract(b: Builder, input: Any, other: Any, *, alpha: float = 1) -> View:
    return add(b, input, multiply(b, other, -alpha))


@handles("rsub")
def subtract_from(b: Builder, input: Any, other: Any, alpha: float = 1) -> View:
    return subtract(b, other, input, alpha=alpha)


@handles("mul", "multiply")
def multiply(b: Builder, input: Any, other: Any) -> Any:
    if isinstance(input, View) and isinstance(other, View):
        return _binary(b, g.Mul, input, other)
    if not isinstance(input, View) and not isinstance(other, View):
        return input * other
    view, number = _constant_last(input, other)
    return b.affine(view, number, ZERO)


@handles("div", "divide", "true_divide")
def divide(b: Builder, input: Any, other: Any, *, rounding_mode: str | None = None) -> View:
    if isinstance(other, View) or rounding_mode is not None:
        raise ValueError("only a division by a constant is supported")
    return b.affine(viewed(input), 1 / constant(other), ZERO)


@handles("neg", "negative")
def negate(b: Builder, input: View) -> View:
    return b.affine(viewed(input), -ONE, ZERO)


@handles("square")
def square(b: Builder, input: View) -> View:
    return b.binary(g.Mul, viewed(input), viewed(input))


@handles("pow")
def power(b: Builder, input: View, exponent: Any) -> View:
    if exponent not in (2, 2.0):
        raise ValueError("only the second power is supported")
    return square(b, input)


def _constant_last(a: Any, b: Any) -> tuple[View, np.ndarray]:
    view, other = (a, b) if isinstance(a, View) else (b, a)
    return viewed(view), constant(other)


def _binary(b: Builder, kind: type[g.Add] | type[g.Mul], left: View, right: View) -> View:
    """An expanded value goes with one that has its full shape."""
    shape = np.broadcast_shapes(shape_of(left), shape_of(right))
    a, c = (View(v.name, v.base, v.axes) for v in (left, right))
    made = b.binary(kind, _spread(b, a, c), _spread(b, c, a))
    if made.shape != shape:
        raise ValueError(f"{shape_of(left)} and {shape_of(right)} do not go together")
    return made


def _spread(b: Builder, view: View, other: View) -> View:
    """A map of one channel, repeated for each of the other's, if the other has no pixels of its own."""
    is_vector = math.prod(other.base[1:]) == 1 and other.base[0] > 1
    if not is_vector or view.base[0] != 1 or math.prod(view.base) == 1 or len(view.axes) != len(other.axes):
        return view
    at = other.axes.index(other.channels) if other.channels in other.axes else -1
    if at < 0 or view.axes[at] != ():
        return view
    return b.with_channels(view, b.select(view.name, (0,) * other.base[0]), at)
