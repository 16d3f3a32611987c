"""A graph while it is being built out of a PyTorch program: what ATen operators write their nodes with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from .. import graph as g
from ..views import View, flattened_pixels, full, order_along, refuse_counted, shuffled_channels, whole, with_axis

Constant = NDArray[Any]
ONE, ZERO = np.ones(1), np.zeros(1)


@dataclass(frozen=True)
class Expanded(View):
    """A view that is repeated along its axes of size 1, up to the shape `to`; only arithmetic may read it."""

    to: tuple[int, ...] = ()


Handler = Callable[..., Any]
"""(builder, the operator's arguments as in its schema) -> a View, a constant, or a tuple of them as ATen returns.

Arguments are Views where they depend on the model's input; else tensors, numbers and lists. ValueError where this
use of the operator is not supported.
"""

HANDLERS: dict[str, Handler] = {}
"""The name of an ATen operator, without its overload -> what writes its nodes."""


def handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update({name: handler for name in names})
        return handler

    return register


class Builder:
    """The nodes so far, and the shapes of all values. Numbers are kept as `dtype`: float32, or float64 in a test."""

    def __init__(self, batch: int, dtype: DTypeLike = np.float32) -> None:
        self.batch, self.dtype = batch, np.dtype(dtype)
        self.nodes: dict[str, g.Node] = {}
        self.shapes: dict[str, g.Shape] = {}
        self.wanted, self.source = "", ""

    def at(self, name: str, source: str) -> None:
        """What is emitted from now on bears this name and comes from this module."""
        self.wanted, self.source = name, source

    def input(self, name: str, shape: g.Shape) -> View:
        self.shapes[name] = shape
        return self.whole(name)

    def emit(self, kind: type[g.Node], /, *inputs: str, **fields: Any) -> str:
        """Appends a node; the name of its value."""
        name, number = self.wanted, 0
        while name in self.shapes:
            number += 1
            name = f"{self.wanted}.{number}"
        node = kind(name, inputs, source=self.source, **fields)
        self.shapes[name] = node.shape(*(self.shapes[i] for i in inputs))
        self.nodes[name] = node
        return name

    # -- constants as parameters ------------------------------------------------------------------------------

    def floats(self, array: Constant) -> g.Array:
        """A parameter of a node: a copy, contiguous."""
        return np.array(array, self.dtype, order="C")

    def per_channel(self, view: View, constant: Constant) -> g.Array:
        """A constant that is to be broadcast over the view, as one number per channel [C]."""
        refuse_counted(constant)
        if constant.size == 1:
            return np.full(view.base[0], constant.reshape(()), self.dtype)
        long = [i - constant.ndim for i, size in enumerate(constant.shape) if size != 1]
        lies = len(long) == 1 and -long[0] <= len(view.axes) and view.axes[long[0]] == view.channels
        if not lies or constant.size != view.base[0]:
            raise ValueError(f"a constant of shape {constant.shape} is not one number per channel of {view.shape}")
        return self.floats(constant.reshape(-1))

    # -- views ------------------------------------------------------------------------------------------------

    def whole(self, name: str) -> View:
        return whole(name, self.shapes[name], self.batch)

    def channel_axis(self, view: View, axis: int) -> int:
        """The axis, counted from the front, if it is the one along which the channels run; or else ValueError."""
        position = view.position(axis)
        if view.axes[position] != view.channels:
            raise ValueError(f"axis {axis} of {view.shape} does not hold the channels")
        return position

    def image(self, view: View) -> str:
        """The value's name, if the view is [N, C, H, W] of a feature map."""
        if not view.is_image or len(view.base) != 3:
            raise ValueError(f"needs a feature map [N, C, H, W], gets a view {view.shape} of {view.base}")
        return view.name

    def vector(self, view: View) -> str:
        """The name of a value that is [N, C], as the view is; a map of one pixel is flattened for it."""
        if not view.is_vector:
            raise ValueError(f"needs a vector [N, C], gets a view {view.shape} of {view.base}")
        return self.flat(view.name)

    def flat(self, name: str) -> str:
        return name if len(self.shapes[name]) == 1 else self.emit(g.Flatten, name)

    def select(self, name: str, channels: tuple[int, ...] | range) -> str:
        if tuple(channels) == tuple(range(self.shapes[name][0])):
            return name
        return self.emit(g.Select, name, channels=tuple(channels))

    def pick(self, view: View, axis: int, channels: tuple[int, ...] | range) -> View:
        """Some of the channels, which run along this axis."""
        at = self.channel_axis(view, axis)
        return self.with_channels(view, self.select(view.name, channels), at)

    def with_channels(self, view: View, made: str, axis: int) -> View:
        """The view of a value made out of view.name that has other channels, which run along this axis."""
        base = self.shapes[made]
        return View(made, base, with_axis(view.axes, axis, full("C", base[0])))

    def resized(self, view: View, made: str) -> View:
        """The view of a value made out of view.name by changing height and width only."""
        new = self.shapes[made]
        if view.is_image:
            return self.whole(made)
        changed = {full(d, old): full(d, now) for d, old, now in zip("HW", view.base[1:], new[1:], strict=True)}
        if changed.pop((), ()):
            raise ValueError(f"one row or column that grows, in a view {view.shape} of {view.base}")
        axes = (itertools.chain(*(changed.get((piece,), (piece,)) for piece in axis)) for axis in view.axes)
        return View(made, new, tuple(tuple(axis) for axis in axes))

    def tidy(self, view: View) -> View:
        """After a reshape or a transpose: a view whose channels run in order, by a Select or a Flatten if need be."""
        position, pixels = shuffled_channels(view), flattened_pixels(view)
        if position is not None:
            order = order_along(view, position) // math.prod(view.base[1:])
            name = self.select(view.name, tuple(order.tolist()))
            return self.tidy(View(name, view.base, with_axis(view.axes, position, view.channels)))
        if pixels is not None:
            name = self.select(self.flat(view.name), tuple(order_along(view, pixels).tolist()))
            return self.with_channels(view, name, pixels)
        return view

    # -- nodes that several operators make --------------------------------------------------------------------

    def like(self, view: View, kind: type[g.Node], /, **fields: Any) -> View:
        """A node that leaves the shape as it is."""
        return View(self.emit(kind, view.name, **fields), view.base, view.axes)

    def activate(self, view: View, kind: str, **fields: float) -> View:
        return self.like(view, g.Activate, activation=g.Activation(kind, **fields))

    def affine(self, view: View, scale: Constant, offset: Constant) -> View:
        return self.like(view, g.Affine, scale=self.per_channel(view, scale), offset=self.per_channel(view, offset))

    def binary(self, kind: type[g.Add] | type[g.Mul], a: View, b: View) -> View:
        """a + b or a * b; the smaller of the two is broadcast."""
        if math.prod(a.base) < math.prod(b.base):
            a, b = b, a
        fits = len(a.axes) == len(b.axes) and a.axes[0] == b.axes[0]
        if not fits or any(theirs not in (ours, ()) for ours, theirs in zip(a.axes, b.axes, strict=True)):
            raise ValueError(f"values of {a.shape} and {b.shape} do not go together")
        return View(self.emit(kind, a.name, b.name), a.base, a.axes)

    def pointwise(self, view: View, axis: int, weight: Constant, bias: Constant | None = None) -> View:
        """The channels, which run along this axis, times a matrix [C_out, C_in]: a Linear, or a 1 x 1 Conv."""
        at = self.channel_axis(view, axis)
        w, offset = self.floats(weight), None if bias is None else self.floats(bias)
        if len(view.base) == 1 or view.is_vector:
            made = self.emit(g.Linear, self.flat(view.name), weight=w, bias=offset)
        else:
            made = self.emit(g.Conv, view.name, weight=w[:, :, None, None], bias=offset)
        return self.with_channels(view, made, at)


def viewed(value: Any) -> View:
    """ValueError where a constant stands in the place of a value, or a repeated one."""
    if isinstance(value, Expanded):
        raise ValueError("a value that was expanded can only be added or multiplied")
    if not isinstance(value, View):
        raise ValueError("its input must depend on the model's input")
    return value


def constant(value: Any) -> Constant:
    """A parameter or number as an array; ValueError where it depends on the model's input."""
    if isinstance(value, Tensor):
        return np.asarray(value.detach().cpu().double().numpy())
    if isinstance(value, int | float | np.ndarray):
        return np.asarray(value, np.float64)
    raise ValueError("its parameters must not depend on the model's input")


def pair(value: Any) -> g.Pair:
    """A number for both directions, or a list of one or two of them."""
    values = [value] if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])


def positions(view: View, dims: int | Iterable[int] | None) -> list[int]:
    """Axes counted from the front, sorted; all of them where `dims` is None or empty."""
    listed = [dims] if isinstance(dims, int) else list(dims or range(len(view.axes)))
    return sorted({view.position(d) for d in listed})


def shape_of(view: View) -> tuple[int, ...]:
    return view.to if isinstance(view, Expanded) else view.shape
