"""The parts of an ONNX model that depend on no input, above all its arithmetic with shapes, worked out in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..views import MOST_DIMENSIONS
from .file import Constant, Op

# TensorProto.DataType -> what we hold it as: every floating-point type as float32
DTYPES: dict[int, Any] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float32,
    11: np.float32,
    16: np.float32,
}


class Budget:
    """Numbers that may still be made, so that a small file cannot ask for a large memory."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("the constants of the model grow far beyond what is in the file")


def integers(array: Constant) -> tuple[int, ...]:
    """A list of axes, sizes, ...: a vector or a single number. ValueError where it is none."""
    if array.ndim > 1 or array.dtype.kind not in "iu" or array.size > 1 << 16:
        raise ValueError("a list of whole numbers is wanted here")
    return tuple(int(v) for v in array.reshape(-1))


def axes_of(op: Op, inputs: list[Any], default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The axes of Squeeze, Unsqueeze, ReduceMean, ...: the second input, or in older opsets an attribute."""
    if len(inputs) > 1 and inputs[1] is not None:
        if not isinstance(inputs[1], np.ndarray):
            raise ValueError("its axes must be constant")
        return integers(inputs[1])
    return op.integers("axes", default)


def target_shape(op: Op, now: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """What Reshape's second input comes to: 0 keeps an axis, -1 is whatever is left."""
    if len(wanted) > MOST_DIMENSIONS:
        raise ValueError(f"{len(wanted)} dimensions")
    keeps = op.integer("allowzero", 0) == 0
    shape = [now[i] if keeps and size == 0 and i < len(now) else size for i, size in enumerate(wanted)]
    if shape.count(-1) == 1:
        known = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(now) // known if known > 0 else 0
    if math.prod(shape) != math.prod(now) or min(shape, default=0) < 0:
        raise ValueError(f"{now} cannot become {wanted}")
    return tuple(shape)


def chosen(op: Op, inputs: list[Any], shape: tuple[int, ...]) -> dict[int, range]:
    """Slice: axis -> the numbers that it keeps."""
    given = [integers(x) if isinstance(x, np.ndarray) else None for x in inputs[1:]]
    starts, ends = given[0], given[1]
    if (
        starts is None
        or ends is None
        or any(x is not None and g is None for x, g in zip(inputs[1:], given, strict=True))
    ):
        raise ValueError("its bounds must be constant")
    axes = given[2] if len(given) > 2 and given[2] is not None else tuple(range(len(starts)))
    steps = given[3] if len(given) > 3 and given[3] is not None else (1,) * len(starts)
    kept = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"there is no axis {axis} in {shape}")
        kept[axis % len(shape)] = range(shape[axis])[slice(start, end, step)]
    return kept


def split_sizes(op: Op, inputs: list[Any], size: int) -> tuple[int, ...]:
    """Split: how many go to each output."""
    if len(inputs) > 1 and inputs[1] is not None:
        if not isinstance(inputs[1], np.ndarray):
            raise ValueError("its sizes must be constant")
        sizes = integers(inputs[1])
    else:
        each = -(-size // len(op.outputs))
        sizes = tuple(min(each, size - i * each) for i in range(len(op.outputs)))
    if len(sizes) != len(op.outputs) or sum(sizes) != size or min(sizes) < 1:
        raise ValueError(f"{size} cannot be split into {sizes}")
    return sizes


def fold(op: Op, inputs: list[Constant | None], budget: Budget) -> list[Constant]:
    """What the node makes out of constants. ValueError where it cannot, KeyError where its type is not known."""
    with np.errstate(all="ignore"):
        if op.kind in ELEMENTWISE:
            given = [x for x in inputs if x is not None]
            budget.take(math.prod(np.broadcast_shapes(*(x.shape for x in given))))
            made = ELEMENTWISE[op.kind](*given)
        else:
            made = FOLDS[op.kind](op, inputs, budget)
    return [np.asarray(m) for m in made] if isinstance(made, list) else [np.asarray(made)]


def _divide(a: Constant, b: Constant) -> Constant:
    if a.dtype.kind == "f":
        return a / b
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))  # towards zero


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Ceil": np.ceil,
    "Div": _divide,
    "Equal": np.equal,
    "Floor": np.floor,
    "Greater": np.greater,
    "Less": np.less,
    "Max": lambda *xs: np.maximum.reduce(np.broadcast_arrays(*xs)),
    "Min": lambda *xs: np.minimum.reduce(np.broadcast_arrays(*xs)),
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": np.power,
    "Reciprocal": np.reciprocal,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Where": np.where,
}


def _constant(op: Op, inputs: list[Any], budget: Budget) -> Any:
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if name in op.attributes:
            return np.asarray(op.attributes[name], dtype)
    for name in ("value_int", "value_ints"):
        if name in op.attributes:
            return np.asarray(op.attributes[name], np.int64)
    if not isinstance(op.attributes.get("value"), np.ndarray):
        raise ValueError("a constant of a kind that is not supported")
    return op.attributes["value"]


def _constant_of_shape(op: Op, inputs: list[Any], budget: Budget) -> Any:
    shape = _limited(integers(inputs[0]), budget)
    value = op.attributes.get("value", np.zeros(1, np.float32))
    return np.full(shape, np.asarray(value).reshape(()))


def _limited(shape: tuple[int, ...], budget: Budget) -> tuple[int, ...]:
    if len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0:
        raise ValueError(f"the shape {shape}")
    budget.take(math.prod(shape))
    return shape


def _gather(op: Op, inputs: list[Any], budget: Budget) -> Any:
    data, index = inputs
    axis = op.integer("axis", 0)
    if not -data.ndim <= axis < data.ndim or index.dtype.kind not in "iu":
        raise ValueError("its axis or its indices are wrong")
    _limited((*data.shape[:axis], *index.shape, *data.shape[axis % data.ndim + 1 :]), budget)
    return np.take(data, index, axis)


def _concat(op: Op, inputs: list[Any], budget: Budget) -> Any:
    budget.take(sum(x.size for x in inputs))
    return np.concatenate(inputs, op.integer("axis", 0))


def _slice(op: Op, inputs: list[Any], budget: Budget) -> Any:
    data = inputs[0]
    for axis, kept in chosen(op, inputs, data.shape).items():
        budget.take(data.size)
        data = np.take(data, np.asarray(kept, np.int64), axis)
    return data


def _split(op: Op, inputs: list[Any], budget: Budget) -> Any:
    axis = op.integer("axis", 0)
    sizes = split_sizes(op, inputs, inputs[0].shape[axis])
    return np.split(inputs[0], np.cumsum(sizes)[:-1], axis)


def _squeeze(op: Op, inputs: list[Any], budget: Budget) -> Any:
    axes = axes_of(op, inputs)
    return np.squeeze(inputs[0], axes or None)


def _unsqueeze(op: Op, inputs: list[Any], budget: Budget) -> Any:
    axes = axes_of(op, inputs)
    if inputs[0].ndim + len(axes) > MOST_DIMENSIONS:
        raise ValueError("too many dimensions")
    return np.expand_dims(inputs[0], axes)


def _flatten(op: Op, inputs: list[Any], budget: Budget) -> Any:
    shape, axis = inputs[0].shape, op.integer("axis", 1)
    return inputs[0].reshape(math.prod(shape[:axis]), -1)


def _transpose(op: Op, inputs: list[Any], budget: Budget) -> Any:
    return np.transpose(inputs[0], op.integers("perm") or None)


def _cast(op: Op, inputs: list[Any], budget: Budget) -> Any:
    dtype = DTYPES.get(op.integer("to", 0))
    if dtype is None:
        raise ValueError("a cast to a type that is not supported")
    budget.take(inputs[0].size)
    return inputs[0].astype(dtype)


def _range(op: Op, inputs: list[Any], budget: Budget) -> Any:
    start, limit, step = (x.reshape(()) for x in inputs)
    count = math.ceil((limit.item() - start.item()) / step.item()) if step.item() else 0
    _limited((max(count, 0),), budget)
    return start + step * np.arange(max(count, 0), dtype=start.dtype)


def _expand(op: Op, inputs: list[Any], budget: Budget) -> Any:
    shape = integers(inputs[1])
    if len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0:
        raise ValueError(f"the shape {shape}")
    return np.broadcast_to(inputs[0], _limited(np.broadcast_shapes(inputs[0].shape, shape), budget)).copy()


def _clip(op: Op, inputs: list[Any], budget: Budget) -> Any:
    budget.take(inputs[0].size)
    bounds = [x.reshape(()) if x is not None else None for x in (*inputs[1:3], None, None)[:2]]
    return inputs[0] if bounds == [None, None] else np.clip(inputs[0], *bounds)


def _batch_norm(op: Op, inputs: list[Any], budget: Budget) -> Any:
    """Of weights, by their own mean and variance or by given ones: how weight standardization is exported."""
    x, scale, offset, mean, var = inputs
    across = tuple(i for i in range(x.ndim) if i != 1)
    budget.take(4 * x.size)
    if op.integer("training_mode", 0):
        mean, var = x.mean(across, np.float64), x.astype(np.float64).var(across)
    shape = [-1 if i == 1 else 1 for i in range(x.ndim)]
    factor = scale / np.sqrt(var + op.number("epsilon", 1e-5))
    made = x * factor.reshape(shape) + (offset - mean * factor).reshape(shape)
    if made.shape != x.shape:
        raise ValueError("its parameters are not one number per channel")
    return made.astype(np.float32)


def _reduce(function: Callable[..., Any]) -> Callable[[Op, list[Any], Budget], Any]:
    def reduced(op: Op, inputs: list[Any], budget: Budget) -> Any:
        axes = axes_of(op, inputs)
        if not axes and op.integer("noop_with_empty_axes", 0):
            return inputs[0]
        return function(inputs[0], axis=axes or None, keepdims=op.integer("keepdims", 1) == 1)

    return reduced


FOLDS: dict[str, Callable[[Op, list[Any], Budget], Any]] = {
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda op, inputs, budget: inputs[0],
    "Range": _range,
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": lambda op, inputs, budget: inputs[0].reshape(target_shape(op, inputs[0].shape, integers(inputs[1]))),
    "Shape": lambda op, inputs, budget: np.array(shape_asked(op, inputs[0].shape), np.int64),
    "Size": lambda op, inputs, budget: np.array(inputs[0].size, np.int64),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def shape_asked(op: Op, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape: all of it, or from `start` to `end`."""
    return shape[op.integer("start", 0) : op.integer("end", len(shape))]


FOLDABLE = FOLDS.keys() | ELEMENTWISE.keys()
