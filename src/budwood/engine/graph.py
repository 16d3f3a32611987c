"""The graph that the engine works on: small, typed, of images and vectors only. It needs NumPy, not PyTorch.

A value is a feature map [N, C, H, W] or a vector [N, C]; the batch N is left open everywhere, so a shape here is
(C, H, W) or (C,). Every node makes one value and bears its name. Nodes stand in an order in which they can run.
Importers bring a network into this form, passes turn one graph into another, the planner runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Shape = tuple[int, ...]  # (C, H, W) or (C,)
Pair = tuple[int, int]  # vertical, horizontal
Edges = tuple[int, int, int, int]  # top, bottom, left, right


class GraphError(ValueError):
    """A graph that cannot be: the message names the node and what does not fit."""


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)


# What an activation's `kind` may be. `slope` is leaky ReLU's; `low` and `high` are clamp's.
ACTIVATIONS = (
    "identity",
    "relu",
    "relu6",
    "leaky_relu",
    "hardswish",
    "hardsigmoid",
    "silu",
    "sigmoid",
    "gelu",
    "gelu_tanh",
    "tanh",
    "clamp",
)


@dataclass(frozen=True)
class Activation:
    """An elementwise function. As in PyTorch, NaN stays NaN in every one of them."""

    kind: str = "identity"
    slope: float = 0.01
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        _need(self.kind in ACTIVATIONS, f"unknown activation {self.kind!r}")


IDENTITY = Activation()


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. `inputs` are names of values; `source` says where it stood (module path), for messages."""

    name: str
    inputs: tuple[str, ...]
    source: str = field(default="", kw_only=True)
    arity: ClassVar[tuple[int, int]] = (1, 1)  # fewest and most inputs

    def shape(self, *inputs: Shape) -> Shape:
        """The shape of the value made, batch left out. GraphError where the inputs do not fit."""
        raise NotImplementedError

    @property
    def op(self) -> str:
        return type(self).__name__

    def _image(self, shape: Shape) -> tuple[int, int, int]:
        _need(len(shape) == 3, f"{self.name} ({self.op}): needs a feature map, gets a value of shape {shape}")
        return shape[0], shape[1], shape[2]


def _window(size: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil: bool = False) -> int:
    room = size + before + after - dilation * (kernel - 1) - 1
    if not ceil:
        return room // stride + 1
    out = -(-room // stride) + 1
    # As in PyTorch: the last window must begin inside the image or its leading padding.
    return out - 1 if (out - 1) * stride >= size + before else out


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """Convolution, then optionally + `bias`, + a residual (the second input, of the output's shape), activation.

    weight [C_out, C_in / groups, kh, kw]; bias [C_out] or None. act(conv(x) + bias + residual).
    """

    weight: Array
    bias: Array | None = None
    stride: Pair = (1, 1)
    padding: Edges = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    activation: Activation = IDENTITY
    arity: ClassVar[tuple[int, int]] = (1, 2)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel alone."""
        return self.weight.shape[1] == 1

    def shape(self, *inputs: Shape) -> Shape:
        channels, height, width = self._image(inputs[0])
        _need(self.weight.ndim == 4, f"{self.name} (Conv): the weight must have 4 dimensions")
        out, per_group, kh, kw = self.weight.shape
        _need(self.groups >= 1 and out % self.groups == 0, f"{self.name} (Conv): {self.groups} groups, {out} outputs")
        _need(
            per_group * self.groups == channels,
            f"{self.name} (Conv): the weight wants {per_group * self.groups} channels, the input has {channels}",
        )
        _need(min(kh, kw, *self.stride, *self.dilation) >= 1, f"{self.name} (Conv): sizes must be 1 or more")
        _need(min(self.padding) >= 0, f"{self.name} (Conv): padding must not be negative")
        _need(self.bias is None or self.bias.shape == (out,), f"{self.name} (Conv): the bias must be [{out}]")
        top, bottom, left, right = self.padding
        rows = _window(height, kh, self.stride[0], top, bottom, self.dilation[0])
        columns = _window(width, kw, self.stride[1], left, right, self.dilation[1])
        _need(rows >= 1 and columns >= 1, f"{self.name} (Conv): the kernel is larger than the image")
        made = (out, rows, columns)
        _need(len(inputs) < 2 or inputs[1] == made, f"{self.name} (Conv): the residual must be of shape {made}")
        return made


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """x @ weight.T + bias over the channels of a vector [N, C]; weight [C_out, C_in]; then the activation."""

    weight: Array
    bias: Array | None = None
    activation: Activation = IDENTITY

    def shape(self, *inputs: Shape) -> Shape:
        _need(len(inputs[0]) == 1, f"{self.name} (Linear): needs a vector, gets a value of shape {inputs[0]}")
        _need(self.weight.ndim == 2, f"{self.name} (Linear): the weight must have 2 dimensions")
        out, channels = self.weight.shape
        _need(channels == inputs[0][0], f"{self.name} (Linear): the weight wants {channels} inputs, not {inputs[0][0]}")
        _need(self.bias is None or self.bias.shape == (out,), f"{self.name} (Linear): the bias must be [{out}]")
        return (out,)


@dataclass(frozen=True, eq=False)
class Affine(Node):
    """x * scale + shift, a number each per channel [C]: batch norm in evaluation, layer scale, a constant factor.

    Works on feature maps and on vectors.
    """

    scale: Array
    offset: Array
    activation: Activation = IDENTITY

    def shape(self, *inputs: Shape) -> Shape:
        wanted = inputs[0][:1]
        _need(
            self.scale.shape == wanted and self.offset.shape == wanted,
            f"{self.name} (Affine): scale and offset must be [{wanted[0]}]",
        )
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Activate(Node):
    activation: Activation = IDENTITY

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0]


def _broadcast(node: Node, a: Shape, b: Shape) -> Shape:
    """The second may be of the first's shape, or one number per channel: (C,) or (C, 1, 1); or one map (1, H, W)."""
    fits = b == a or (b[0] == a[0] and (len(b) == 1 or b[1:] == (1, 1))) or (len(a) == 3 and b == (1, *a[1:]))
    _need(fits, f"{node.name} ({node.op}): shapes {a} and {b} do not go together")
    return a


@dataclass(frozen=True, eq=False)
class Add(Node):
    """a + b, then the activation; b may be broadcast (see Mul)."""

    activation: Activation = IDENTITY
    arity: ClassVar[tuple[int, int]] = (2, 2)

    def shape(self, *inputs: Shape) -> Shape:
        return _broadcast(self, *inputs)


@dataclass(frozen=True, eq=False)
class Mul(Node):
    """a * b, then the activation; b may be one number per channel and image, (C,) or (C, 1, 1): squeeze-excite."""

    activation: Activation = IDENTITY
    arity: ClassVar[tuple[int, int]] = (2, 2)

    def shape(self, *inputs: Shape) -> Shape:
        return _broadcast(self, *inputs)


@dataclass(frozen=True, eq=False)
class Concat(Node):
    """Along the channels."""

    arity: ClassVar[tuple[int, int]] = (1, 1 << 16)

    def shape(self, *inputs: Shape) -> Shape:
        _need(len({s[1:] for s in inputs}) == 1, f"{self.name} (Concat): sizes differ: {inputs}")
        return (sum(s[0] for s in inputs), *inputs[0][1:])


@dataclass(frozen=True, eq=False)
class Select(Node):
    """Channels picked by number, in this order: a slice, a split, a channel shuffle."""

    channels: tuple[int, ...]

    def shape(self, *inputs: Shape) -> Shape:
        count = inputs[0][0]
        _need(
            len(self.channels) > 0 and min(self.channels) >= 0 and max(self.channels) < count,
            f"{self.name} (Select): channels outside 0 to {count - 1}",
        )
        return (len(self.channels), *inputs[0][1:])


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Max or average over windows. Padding counts as -infinity (max), or as zeros if `count_padding` (average)."""

    kind: str  # "max" | "average"
    kernel: Pair
    stride: Pair
    padding: Edges = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    ceil: bool = False
    count_padding: bool = True

    def shape(self, *inputs: Shape) -> Shape:
        channels, height, width = self._image(inputs[0])
        _need(self.kind in ("max", "average"), f"{self.name} (Pool): unknown kind {self.kind!r}")
        _need(min(*self.kernel, *self.stride, *self.dilation) >= 1, f"{self.name} (Pool): sizes must be 1 or more")
        top, bottom, left, right = self.padding
        _need(
            min(self.padding) >= 0
            and max(top, bottom) < self.dilation[0] * self.kernel[0]
            and max(left, right) < self.dilation[1] * self.kernel[1],
            f"{self.name} (Pool): padding must be smaller than the window",
        )
        rows = _window(height, self.kernel[0], self.stride[0], top, bottom, self.dilation[0], self.ceil)
        columns = _window(width, self.kernel[1], self.stride[1], left, right, self.dilation[1], self.ceil)
        _need(rows >= 1 and columns >= 1, f"{self.name} (Pool): the window is larger than the image")
        return (channels, rows, columns)


@dataclass(frozen=True, eq=False)
class AdaptivePool(Node):
    """Average over a grid of `size` cells with PyTorch's cell borders; (1, 1) is the global average."""

    size: Pair = (1, 1)

    def shape(self, *inputs: Shape) -> Shape:
        channels, _, _ = self._image(inputs[0])
        _need(min(self.size) >= 1, f"{self.name} (AdaptivePool): sizes must be 1 or more")
        return (channels, *self.size)


@dataclass(frozen=True, eq=False)
class Pad(Node):
    """Zeros, or `value`, around a feature map."""

    padding: Edges
    value: float = 0.0

    def shape(self, *inputs: Shape) -> Shape:
        channels, height, width = self._image(inputs[0])
        _need(min(self.padding) >= 0, f"{self.name} (Pad): padding must not be negative")
        top, bottom, left, right = self.padding
        return (channels, height + top + bottom, width + left + right)


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """A feature map [N, C, H, W] to a vector [N, C * H * W], in PyTorch's order; a vector stays as it is."""

    def shape(self, *inputs: Shape) -> Shape:
        return (math.prod(inputs[0]),)


@dataclass(frozen=True, eq=False)
class LayerNorm(Node):
    """Over the channels of each pixel (or of a vector), then * scale + shift per channel."""

    scale: Array
    offset: Array
    eps: float = 1e-5

    def shape(self, *inputs: Shape) -> Shape:
        wanted = inputs[0][:1]
        _need(self.scale.shape == wanted and self.offset.shape == wanted, f"{self.name} (LayerNorm): wants {wanted}")
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Softmax(Node):
    """Over the channels of a vector."""

    def shape(self, *inputs: Shape) -> Shape:
        _need(len(inputs[0]) == 1, f"{self.name} (Softmax): needs a vector")
        return inputs[0]


@dataclass(frozen=True)
class Graph:
    """`inputs`: name -> shape, batch left out. Checked on construction; `shapes` holds every value's shape."""

    inputs: dict[str, Shape]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, Shape] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shapes: dict[str, Shape] = {}
        for name, shape in self.inputs.items():
            _need(len(shape) in (1, 3) and min(shape) >= 1, f"input {name}: {shape} is no (C, H, W) or (C,)")
            shapes[name] = tuple(shape)
        for node in self.nodes:
            fewest, most = node.arity
            _need(fewest <= len(node.inputs) <= most, f"{node.name} ({node.op}): {len(node.inputs)} inputs")
            for name in node.inputs:
                _need(name in shapes, f"{node.name} ({node.op}): its input {name!r} is made by no node before it")
            _need(node.name not in shapes, f"two values are called {node.name!r}")
            shapes[node.name] = node.shape(*(shapes[name] for name in node.inputs))
        for name in self.outputs:
            _need(name in shapes, f"the output {name!r} is made by no node")
        _need(len(self.inputs) > 0 and len(self.outputs) > 0, "a graph needs an input and an output")
        object.__setattr__(self, "shapes", shapes)

    def node(self, name: str) -> Node | None:
        """The node that makes this value; None for an input."""
        return next((n for n in self.nodes if n.name == name), None)

    def users(self) -> dict[str, list[Node]]:
        """Value -> the nodes that read it, in order."""
        found: dict[str, list[Node]] = {name: [] for name in self.shapes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    def with_nodes(self, nodes: Iterable[Node], outputs: Iterable[str] | None = None) -> Graph:
        return Graph(self.inputs, tuple(nodes), self.outputs if outputs is None else tuple(outputs))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)


def renamed(node: Node, names: dict[str, str]) -> Node:
    """The node with its inputs looked up in `names` where they stand there."""
    return replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
