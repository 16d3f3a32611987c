"""The graph that is trained: the engine's, with convolutions and batch norms whose numbers come with every call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..graph import Conv, Edges, Node, Pair, Shape
from .sparse import same_edges

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which weights of a convolution [out, in / groups, kh, kw] there are; `index`: their flat places, None for all."""

    shape: tuple[int, int, int, int]
    groups: int
    index: NDArray[np.int32] | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        return self.size if self.index is None else len(self.index)

    @property
    def density(self) -> float:
        return self.count / self.size

    @property
    def channels(self) -> int:
        """Of the input."""
        return self.shape[1] * self.groups

    @property
    def is_depthwise(self) -> bool:
        return self.shape[1] == 1 and self.groups > 1

    @property
    def taps(self) -> int:
        return self.shape[2] * self.shape[3]

    def entries(self) -> tuple[Ints, Ints, Ints]:
        """Output channel, input channel and tap of each weight, in their order."""
        flat = np.arange(self.size) if self.index is None else self.index.astype(np.int64)
        row = flat // self.taps  # a remainder takes far longer
        out = row // self.shape[1]
        return out, row + (out // (self.shape[0] // self.groups) - out) * self.shape[1], flat - row * self.taps


@dataclass(frozen=True, eq=False)
class Convolve(Node):
    """A convolution without a bias. `padding` None: TensorFlow's "same"."""

    pattern: Pattern
    stride: Pair
    padding: Edges | None
    dilation: Pair

    def edges(self, source: Shape) -> Edges:
        kernel = self.pattern.shape[2:]
        return self.padding or same_edges((source[1], source[2]), (kernel[0], kernel[1]), self.stride, self.dilation)

    def shape(self, *inputs: Shape) -> Shape:
        none = np.broadcast_to(np.float32(0), self.pattern.shape)  # of no memory
        dense = Conv(
            self.name,
            self.inputs,
            none,
            stride=self.stride,
            padding=self.edges(inputs[0]),
            dilation=self.dilation,
            groups=self.pattern.groups,
        )
        return dense.shape(*inputs)


@dataclass(frozen=True, eq=False)
class Norm(Node):
    """Batch norm, then plus a residual (the second input), clamped to `low` and `high`: ReLU, ReLU6 or neither."""

    low: float
    high: float
    eps: float
    arity: ClassVar[tuple[int, int]] = (1, 2)

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0]

    @cached_property
    def clamps(self) -> bool:
        return self.low > -math.inf
