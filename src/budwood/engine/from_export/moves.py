"""ATen's operators that only move numbers, or tell sizes: reshapes, transposes, slices, concatenations.

A function's arguments are those of the operator's schema; see build.Handler.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch

from .. import graph as g
from ..views import Piece, View, reshaped, transposed, with_axis
from .build import Builder, Expanded, constant, handles, positions, shape_of, viewed
from .windows import cut, space_to_depth


@handles(
    "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "lift_fresh", "_to_copy", "to", "type_as", "positive"
)
def identity(b: Builder, input: View, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> View:
    """Between floating-point types nothing is done: the engine computes in float32."""
    types = [dtype, *(a for a in args if isinstance(a, torch.dtype))]
    if any(t is not None and not t.is_floating_point for t in types):
        raise ValueError("only casts to floating-point numbers are supported")
    return viewed(input)


@handles("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(b: Builder, input: View, p: float = 0.5, train: bool = False) -> View:
    if train and p:
        raise ValueError("dropout in training mode")
    return viewed(input)


@handles("view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy")
def reshape(b: Builder, input: View, shape: list[int]) -> View:
    view = viewed(input)
    total, known = math.prod(view.shape), math.prod(n for n in shape if n != -1)
    found = reshaped(view, tuple(n if n != -1 else total // max(known, 1) for n in shape))
    return b.tidy(_without_blocks(b, found))


def _without_blocks(b: Builder, view: View) -> View:
    """Where rows and columns within a block of pixels have become channels: a strided convolution makes them."""
    if len(view.axes) != 4 or len(view.base) != 3 or any(len(axis) != 1 for axis in view.axes[2:]):
        return view
    (rows,), (columns,) = view.axes[2:]
    block = (rows.stride, columns.stride)
    inner = Counter({"C": view.base[0], "H": block[0], "W": block[1]})
    for piece in view.axes[1]:
        inner[piece.axis] /= piece.size  # type: ignore[assignment]
    if (rows.axis, columns.axis) != ("H", "W") or block == (1, 1) or set(inner.values()) != {1}:
        return view
    made = space_to_depth(b, b.whole(view.name), block)
    strides = {"C": block[0] * block[1], "H": block[1], "W": 1}
    channels = (Piece("C", p.size, p.stride * strides[p.axis]) for p in view.axes[1])
    return View(made.name, made.base, (made.axes[0], tuple(channels), *made.axes[2:]))


@handles("flatten")
def flatten(b: Builder, input: View, start_dim: int = 0, end_dim: int = -1) -> View:
    view = viewed(input)
    first, last = view.position(start_dim), view.position(end_dim)
    middle = math.prod(view.shape[first : last + 1])
    return reshape(b, view, [*view.shape[:first], middle, *view.shape[last + 1 :]])


@handles("unflatten")
def unflatten(b: Builder, input: View, dim: int, sizes: list[int]) -> View:
    view = viewed(input)
    axis = view.position(dim)
    known = math.prod(n for n in sizes if n != -1)
    filled = [n if n != -1 else view.shape[axis] // known for n in sizes]
    return reshape(b, view, [*view.shape[:axis], *filled, *view.shape[axis + 1 :]])


@handles("permute", "permute_copy")
def permute(b: Builder, input: View, dims: list[int]) -> View:
    view = viewed(input)
    return b.tidy(transposed(view, tuple(view.position(d) for d in dims)))


@handles("transpose", "swapaxes", "transpose_copy")
def transpose(b: Builder, input: View, dim0: int, dim1: int) -> View:
    view = viewed(input)
    order = list(range(len(view.axes)))
    i, j = view.position(dim0), view.position(dim1)
    order[i], order[j] = j, i
    return permute(b, view, order)


@handles("t", "numpy_T")
def matrix_transpose(b: Builder, input: View) -> View:
    return transpose(b, input, 0, 1)


@handles("squeeze", "squeeze_copy")
def squeeze(b: Builder, input: View, dim: Any = None) -> View:
    view = viewed(input)
    axes = [i for i in positions(view, dim) if view.shape[i] == 1]
    if any(view.axes[i] for i in axes):
        raise ValueError("the batch would be squeezed away")
    return View(view.name, view.base, tuple(a for i, a in enumerate(view.axes) if i not in axes))


@handles("unsqueeze", "unsqueeze_copy")
def unsqueeze(b: Builder, input: View, dim: int) -> View:
    view = viewed(input)
    at = dim % (len(view.axes) + 1)
    return View(view.name, view.base, (*view.axes[:at], (), *view.axes[at:]))


@handles("expand", "expand_copy")
def expand(b: Builder, input: View, size: list[int], *, implicit: bool = False) -> View:
    view = viewed(input)
    if len(size) != len(view.axes):
        raise ValueError(f"{view.shape} cannot be expanded to {tuple(size)}")
    shape = tuple(old if new == -1 else new for old, new in zip(view.shape, size, strict=True))
    return view if shape == view.shape else Expanded(view.name, view.base, view.axes, shape)


@handles("expand_as")
def expand_as(b: Builder, input: View, other: View) -> View:
    return expand(b, input, list(shape_of(viewed(other))))


@handles("cat", "concat", "concatenate")
def concat(b: Builder, tensors: list[View], dim: int = 0) -> View:
    views = [viewed(v) for v in tensors]
    axis = b.channel_axis(views[0], dim)
    rest = with_axis(views[0].axes, axis)
    for view in views:
        if b.channel_axis(view, axis) != axis or with_axis(view.axes, axis) != rest:
            raise ValueError("its inputs differ along another axis than the channels")
    return b.with_channels(views[0], _joined(b, views), axis)


@handles("stack")
def stack(b: Builder, tensors: list[View], dim: int = 0) -> View:
    """Along a new axis: the number of the tensor is the outer part of the channels."""
    views = [viewed(v) for v in tensors]
    first, parts = views[0], len(views)
    if any(v.axes != first.axes for v in views):
        raise ValueError("its inputs lie differently in memory")
    if first.channels == ():
        return concat(b, [unsqueeze(b, v, dim) for v in views], dim)
    made = _joined(b, views)
    at = dim % (len(first.axes) + 1)
    outer = (Piece("C", parts, first.base[0]),) if parts > 1 else ()
    return View(made, b.shapes[made], (*first.axes[:at], outer, *first.axes[at:]))


def _joined(b: Builder, views: list[View]) -> str:
    names = [v.name for v in views]
    if any(len(v.base) == 1 for v in views):
        names = [b.flat(name) for name in names]
    return names[0] if len(names) == 1 else b.emit(g.Concat, *names)


@handles("split", "split_with_sizes", "split_copy", "split_with_sizes_copy")
def split(b: Builder, input: View, split_size: int | list[int], dim: int = 0) -> list[View]:
    view = viewed(input)
    axis = view.position(dim)
    total = view.shape[axis]
    starts = (
        range(0, total, split_size)
        if isinstance(split_size, int)
        else [sum(split_size[:i]) for i in range(len(split_size))]
    )
    ends = [*starts[1:], total]
    return [_part(b, view, axis, range(s, e)) for s, e in zip(starts, ends, strict=True)]


@handles("chunk")
def chunk(b: Builder, input: View, chunks: int, dim: int = 0) -> list[View]:
    size = viewed(input).shape[viewed(input).position(dim)]
    return split(b, input, -(-size // chunks), dim)


@handles("unbind", "unbind_copy")
def unbind(b: Builder, input: View, dim: int = 0) -> list[View]:
    view = viewed(input)
    return [select(b, view, dim, i) for i in range(view.shape[view.position(dim)])]


EVERYTHING = 2**31 - 1
"""The end of a slice from here on means all: exporters write the largest number that they have."""


@handles("slice", "slice_copy")
def slice_(b: Builder, input: View, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> View:
    view = viewed(input)
    axis = view.position(dim)
    whole = not start and step == 1 and (end is None or end >= EVERYTHING)
    if not whole and any(piece.axis == "N" for piece in view.axes[axis]):
        raise ValueError("some of the images of a batch")
    return _part(b, view, axis, range(view.shape[axis])[slice(start, end, step)])


@handles("narrow")
def narrow(b: Builder, input: View, dim: int, start: int, length: int) -> View:
    return slice_(b, input, dim, start, start + length)


@handles("select", "select_copy")
def select(b: Builder, input: View, dim: int, index: int) -> View:
    view = viewed(input)
    axis = view.position(dim)
    index %= view.shape[axis]
    kept = _part(b, view, axis, range(index, index + 1))
    return View(kept.name, kept.base, with_axis(kept.axes, axis))


@handles("index_select")
def index_select(b: Builder, input: View, dim: int, index: Any) -> View:
    view, numbers = viewed(input), constant(index).astype(np.int64)
    axis = view.position(dim)
    return b.pick(view, axis, tuple((numbers % view.shape[axis]).reshape(-1).tolist()))


@handles("index")
def index(b: Builder, input: View, indices: list[Any]) -> View:
    """Along one axis, by a vector of numbers."""
    given = [(i, k) for i, k in enumerate(indices) if k is not None]
    if len(given) != 1 or isinstance(given[0][1], View) or given[0][1].ndim != 1 or given[0][1].dtype == torch.bool:
        raise ValueError("only an index by one vector of whole numbers is supported")
    return index_select(b, input, *given[0])


@handles("flip")
def flip(b: Builder, input: View, dims: list[int]) -> View:
    view = viewed(input)
    for axis in positions(view, dims):
        view = b.pick(view, axis, tuple(range(view.shape[axis]))[::-1])
    return view


def _part(b: Builder, view: View, axis: int, kept: range) -> View:
    """Along the channels, the height or the width; or along an axis that a part of the channels forms."""
    pieces = view.axes[axis]
    if kept == range(view.shape[axis]):
        return view
    if len(pieces) != 1 or pieces[0].axis != "C" or pieces == view.channels:
        return cut(b, view, axis, kept)
    (piece,) = pieces
    every = np.arange(view.base[0])
    position = every // piece.stride % piece.size
    channels = every[np.isin(position, list(kept))]
    if kept.step < 0:
        raise ValueError("a slice that runs backwards")
    made = b.select(view.name, tuple(channels.tolist()))
    shrink = len(kept) / piece.size
    axes = [
        tuple(
            p._replace(stride=round(p.stride * shrink)) if p.axis == "C" and p.stride > piece.stride else p for p in a
        )
        for a in view.axes
    ]
    axes[axis] = (piece._replace(size=len(kept)),) if len(kept) > 1 else ()
    return View(made, b.shapes[made], tuple(axes))


# -- sizes and constants --------------------------------------------------------------------------------------


@handles("sym_size")
def sym_size(b: Builder, input: View, dim: int | None = None) -> Any:
    shape = shape_of(input)
    return shape if dim is None else shape[dim]


@handles("zeros_like", "new_zeros")
def zeros_like(b: Builder, input: View, size: Any = None, **_: Any) -> torch.Tensor:
    return torch.zeros(size if size is not None else shape_of(input))


@handles("ones_like", "new_ones")
def ones_like(b: Builder, input: View, size: Any = None, **_: Any) -> torch.Tensor:
    return torch.ones(size if size is not None else shape_of(input))


@handles("_assert_tensor_metadata")
def nothing(b: Builder, *_: Any, **__: Any) -> None:
    return None
