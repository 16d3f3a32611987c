"""A graph while it is being built out of an ONNX model: what its operators write their nodes with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import graph as g
from ..views import (
    View,
    flattened_pixels,
    full,
    order_along,
    refuse_counted,
    shuffled_channels,
    with_axis,
)
from .constants import Budget
from .file import Constant, Op, printable

LARGEST_VALUE = 1 << 28  # numbers in one value for one image; 1 GiB as float32


@dataclass(frozen=True)
class Term:
    """Part of a function that ONNX spells out, not yet worth a node: the mean within a layer norm, the erf in a GELU.

    `of` is what the function is applied to, `number` a constant met on the way.
    """

    kind: str
    of: View
    number: float = 0.0


Value = View | Term | Constant
Inputs = list[Value | None]
Handler = Callable[["Builder", Op, Inputs], "Value | list[View]"]


class Builder:
    """The nodes so far, and their shapes. Node names are made of the ONNX names of the values they make."""

    def __init__(self, batch: int, budget: Budget) -> None:
        self.batch = batch
        self.budget = budget
        self.nodes: dict[str, g.Node] = {}
        self.shapes: dict[str, g.Shape] = {}
        self.taken: Counter[str] = Counter()
        self.op = Op("", "", (), ())  # the one at work

    def add_input(self, name: str, shape: g.Shape) -> str:
        name = self._free(name)
        self._store(name, shape)
        return name

    def emit(self, make: Callable[[str, str], g.Node], *inputs: str) -> str:
        """Appends the node that make(name, source) gives, less its inputs; the name of its value."""
        name = self._free(self.op.outputs[0] if self.op.outputs else self.op.kind)
        node = replace(make(name, printable(self.op.name)), inputs=inputs)
        self._store(name, node.shape(*(self.shapes[i] for i in inputs)))
        self.nodes[name] = node
        return name

    def _free(self, wanted: str) -> str:
        base = name = printable(wanted) or "value"
        while name in self.shapes:
            self.taken[base] += 1
            name = f"{base}.{self.taken[base]}"
        return name

    def _store(self, name: str, shape: g.Shape) -> None:
        if math.prod(shape) > LARGEST_VALUE:
            raise ValueError(f"a value of shape {shape} is larger than is supported")
        self.shapes[name] = shape

    # -- constants as parameters ------------------------------------------------------------------------------

    def floats(self, array: Any) -> g.Array:
        """A parameter of a node: float32, contiguous."""
        with np.errstate(over="ignore"):
            made = np.ascontiguousarray(array, np.float32)
        if made is not array:
            self.budget.take(made.size)
        return made

    def per_channel(self, view: View, constant: Constant) -> g.Array:
        """A constant that is to be broadcast over the view, as one number per channel [C]."""
        refuse_counted(constant)
        if constant.dtype.kind not in "fiu" or constant.ndim > len(view.axes):
            raise ValueError(f"a constant of shape {constant.shape} does not go with a value of {view.shape}")
        if constant.size == 1:
            self.budget.take(view.base[0])
            return np.full(view.base[0], constant.reshape(()), np.float32)
        long = [i for i, size in enumerate(constant.shape) if size != 1]
        axis = view.axes[long[0] - constant.ndim]
        if len(long) != 1 or axis != view.channels or constant.size != view.base[0]:
            raise ValueError(f"a constant of shape {constant.shape} is not one number per channel of {view.shape}")
        return self.floats(constant.reshape(-1))

    # -- views ------------------------------------------------------------------------------------------------

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
        return view.name if len(view.base) == 1 else self.flatten(view.name)

    def flatten(self, name: str) -> str:
        return self.emit(lambda n, s: g.Flatten(n, (), source=s), name)

    def select(self, name: str, channels: tuple[int, ...] | range) -> str:
        if channels == range(self.shapes[name][0]):
            return name
        self.budget.take(8 * len(channels))  # numbers in a tuple are larger than those in an array
        return self.emit(lambda n, s: g.Select(n, (), tuple(channels), source=s), name)

    def tidy(self, view: View) -> View:
        """After a reshape or a transpose: a view whose channels run in order, by a Select or a Flatten if need be."""
        position = shuffled_channels(view)
        pixels = flattened_pixels(view)
        if position is None and pixels is None:
            return view
        self.budget.take(8 * math.prod(view.base))
        if position is not None:
            order = order_along(view, position) // math.prod(view.base[1:])
            name = self.select(view.name, tuple(order.tolist()))
            return self.tidy(View(name, view.base, with_axis(view.axes, position, view.channels)))
        assert pixels is not None
        order = order_along(view, pixels)
        name = self.flatten(view.name)
        if not np.array_equal(order, np.arange(order.size)):
            name = self.select(name, tuple(order.tolist()))
        base = self.shapes[name]
        return View(name, base, with_axis(view.axes, pixels, full("C", base[0])))

    # -- nodes that several operators make --------------------------------------------------------------------

    def activate(self, view: View, activation: g.Activation) -> View:
        made = self.emit(lambda n, s: g.Activate(n, (), activation, source=s), view.name)
        return View(made, view.base, view.axes)

    def affine(self, view: View, scale: Constant, offset: Constant) -> View:
        a, b = self.per_channel(view, scale), self.per_channel(view, offset)
        return View(self.emit(lambda n, s: g.Affine(n, (), a, b, source=s), view.name), view.base, view.axes)

    def binary(self, kind: type[g.Add] | type[g.Mul], a: View, b: View) -> View:
        """a + b or a * b; the smaller of the two is broadcast."""
        if math.prod(a.base) < math.prod(b.base) or len(a.axes) < len(b.axes):
            a, b = b, a
        if len(a.axes) < len(b.axes):
            raise ValueError(f"{a.shape} and {b.shape} do not go together")
        for ours, theirs in zip(reversed(a.axes), reversed(b.axes), strict=False):
            if theirs not in (ours, ()):
                raise ValueError(f"{a.shape} and {b.shape} do not go together")
        if a.axes[0] != b.axes[0] or len(a.axes) != len(b.axes):
            raise ValueError(f"{a.shape} and {b.shape} do not have the batch in the same place")
        return View(self.emit(lambda n, s: kind(n, (), source=s), a.name, b.name), a.base, a.axes)

    def dense(self, view: View, weight: Constant, bias: Constant | None) -> View:
        """x @ weight + bias along the last axis, weight [C_in, C_out]: a Linear, or a 1 x 1 Conv on a feature map."""
        axis = self.channel_axis(view, -1)
        w, b = self.floats(weight.T), None if bias is None else self.floats(bias)
        if len(view.base) == 1 or view.is_vector:
            name = view.name if len(view.base) == 1 else self.vector(view)
            made = self.emit(lambda n, s: g.Linear(n, (), w, b, source=s), name)
        else:
            kernel = w[:, :, None, None]
            made = self.emit(lambda n, s: g.Conv(n, (), kernel, b, source=s), view.name)
        base = self.shapes[made]
        return View(made, base, with_axis(view.axes, axis, full("C", base[0])))

    def uniform_scale(self, view: View) -> tuple[str, float] | None:
        """(x, k) if the view's value is k * x for one number k."""
        node = self.nodes.get(view.name)
        if not isinstance(node, g.Affine) or node.activation != g.IDENTITY or np.any(node.offset):
            return None
        same = bool(np.all(node.scale == node.scale[0]))
        return (node.inputs[0], float(node.scale[0])) if same else None


def numbers(value: Value | None, what: str) -> Constant:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"its {what} must be constant")
    return value


def viewed(value: Value | None) -> View:
    if isinstance(value, View):
        return value
    if isinstance(value, Term):
        raise ValueError(f"a part of a layer norm or GELU ({value.kind}) is used in a way that is not supported")
    raise ValueError("needs a value that depends on the model's input")


def scalar(value: Value | None) -> float | None:
    """The number that a constant of one element holds."""
    is_one = isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu"
    return float(value.reshape(())) if is_one else None  # type: ignore[union-attr]
