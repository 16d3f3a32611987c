"""How a tensor of another graph lies over a value of ours, so that reshapes and transposes need not be carried out.

A value of the graph is [N, C, H, W] or [N, C]. An ONNX tensor that is a reshape or a transpose of it is a *view*:
for each of its axes the pieces of N, C, H and W that run along it, outermost first. Channels last is
((N), (H), (W), (C)); tokens are ((N), (H, W), (C)); the middle of a channel shuffle is ((N), (C / g), (g), (H), (W)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .graph import Shape

MOST_DIMENSIONS = 8
OPEN_BATCH = 422
"""Stands for a batch that is left open, in arithmetic with shapes: hardly another size (two times a prime), and small,
as networks and exporters may make arrays that are as long."""
_MOST_TIMES = 1e5
"""Of the open batch; masks of -1e9 and epsilons of 1e-12 are as good as multiples of anything."""


def refuse_counted(constant: NDArray[np.generic]) -> None:
    """Raise ValueError where a number that is to be added or multiplied is made of the open batch: a multiple of it, or
    one over it. The graph serves any number of images, and would have taken it for theirs."""
    if constant.size != 1 or constant.dtype.kind not in "fiu" or not (number := abs(float(constant.reshape(())))):
        return
    for times in (number / OPEN_BATCH, 1 / (number * OPEN_BATCH)):
        if 0.5 < times < _MOST_TIMES and abs(times - round(times)) < 1e-6 * times:
            raise ValueError("a number that depends on how many images there are is no constant")


class Piece(NamedTuple):
    """`size` steps of `stride` along one axis (N, C, H or W) of the graph's value."""

    axis: str
    size: int
    stride: int = 1


Axis = tuple[Piece, ...]


def full(axis: str, size: int) -> Axis:
    """All of it. Nothing runs along an axis of size 1, other than the batch."""
    return (Piece(axis, size),) if size > 1 or axis == "N" else ()


@dataclass(frozen=True)
class View:
    """The value `name` of the graph, whose shape is `base`, seen with these axes."""

    name: str
    base: Shape
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(_size(axis) for axis in self.axes)

    @property
    def channels(self) -> Axis:
        return full("C", self.base[0])

    @property
    def rows_and_columns(self) -> tuple[Axis, Axis]:
        height, width = self.base[1:] if len(self.base) == 3 else (1, 1)
        return full("H", height), full("W", width)

    @property
    def is_image(self) -> bool:
        return self.axes[1:] == (self.channels, *self.rows_and_columns) and self.starts_with_batch

    @property
    def is_vector(self) -> bool:
        """One number per channel: the graph's value has no more than one pixel, and the axes are N and C."""
        return self.axes[1:] == (self.channels,) and math.prod(self.base[1:]) == 1 and self.starts_with_batch

    @property
    def starts_with_batch(self) -> bool:
        return len(self.axes) > 0 and len(self.axes[0]) == 1 and self.axes[0][0].axis == "N"

    def position(self, axis: int) -> int:
        """The number of an axis that may be counted from the end. ValueError where there is none."""
        if not -len(self.axes) <= axis < len(self.axes):
            raise ValueError(f"there is no axis {axis} in {self.shape}")
        return axis % len(self.axes)


def whole(name: str, base: Shape, batch: int) -> View:
    return View(name, base, tuple(full(axis, size) for axis, size in zip("NCHW", (batch, *base), strict=False)))


def with_axis(axes: tuple[Axis, ...], position: int, *new: Axis) -> tuple[Axis, ...]:
    """The axes with one of them replaced: by another, by several, or by none."""
    return (*axes[:position], *new, *axes[position + 1 :])


def transposed(view: View, order: tuple[int, ...]) -> View:
    if sorted(order) != list(range(len(view.axes))):
        raise ValueError(f"{order} is no order of the axes of {view.shape}")
    return View(view.name, view.base, tuple(view.axes[i] for i in order))


def reshaped(view: View, shape: tuple[int, ...]) -> View:
    """ValueError where `shape` cuts through an axis at no whole number."""
    fits = len(shape) <= MOST_DIMENSIONS and math.prod(shape) == math.prod(view.shape) and min(shape, default=1) >= 1
    if not fits:
        raise ValueError(f"{view.shape} cannot become {shape}")
    pieces = [piece for axis in view.axes for piece in axis]
    axes = [_take(pieces, size) for size in shape]
    if pieces:
        raise ValueError(f"{view.shape} cannot become {shape}: the batch would have to stand elsewhere")
    return View(view.name, view.base, tuple(axes))


def _take(pieces: list[Piece], size: int) -> Axis:
    """Removes from the front of `pieces` as many as make up an axis of `size`, cutting the last if need be."""
    taken: list[Piece] = []
    while size > 1 or (pieces and pieces[0].size == 1 and not taken):
        piece = pieces.pop(0)
        if size % piece.size == 0:
            taken.append(piece)
            size //= piece.size
        elif piece.size % size == 0 and piece.axis != "N":
            inner = piece.size // size
            taken.append(Piece(piece.axis, size, piece.stride * inner))
            pieces.insert(0, Piece(piece.axis, inner, piece.stride))
            size = 1
        else:
            raise ValueError("this reshape mixes axes in a way that is not supported")
    return _merged(taken)


def _merged(pieces: list[Piece]) -> Axis:
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and piece.axis == last.axis != "N" and last.stride == piece.stride * piece.size:
            merged[-1] = Piece(piece.axis, last.size * piece.size, piece.stride)
        else:
            merged.append(piece)
    return tuple(merged)


def shuffled_channels(view: View) -> int | None:
    """The axis along which all channels run in another order than theirs, if there is one."""
    for i, axis in enumerate(view.axes):
        if {piece.axis for piece in axis} == {"C"} and _size(axis) == view.base[0] and axis != view.channels:
            return i
    return None


def flattened_pixels(view: View) -> int | None:
    """The axis along which channels and pixels run together, if one holds them all."""
    for i, axis in enumerate(view.axes):
        letters = {piece.axis for piece in axis}
        if "N" not in letters and len(letters) > 1 and _size(axis) == math.prod(view.base):
            return i
    return None


def order_along(view: View, position: int) -> NDArray[np.int64]:
    """For each step along this axis its number in the graph's value, flattened as Flatten does."""
    height, width = view.base[1:] if len(view.base) == 3 else (1, 1)
    weights = {"C": height * width, "H": width, "W": 1}
    order = np.zeros(1, np.int64)
    for piece in view.axes[position]:
        steps = np.arange(piece.size) * piece.stride * weights[piece.axis]
        order = (order[:, None] + steps).reshape(-1)
    return order


def _size(axis: Axis) -> int:
    return math.prod(piece.size for piece in axis)
