"""Random small graphs of the engine: every kind of node, pruned weights, dead channels, branches, residuals.

`random_graph(seed)` gives one; `graphs()` is a Hypothesis strategy for the same, which shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.graph import (
    ACTIVATIONS,
    IDENTITY,
    Activate,
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Array,
    Concat,
    Conv,
    Edges,
    Flatten,
    Graph,
    GraphError,
    LayerNorm,
    Linear,
    Mul,
    Node,
    Pad,
    Pool,
    Select,
    Shape,
    Softmax,
)

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Choose = Callable[[Sequence[Any]], Any]
"""Picks one of several; the simplest stands first."""


def random_graph(seed: int, steps: int = 12) -> Graph:
    """A valid graph of about `steps` motifs, the same for the same seed."""
    random = np.random.default_rng(seed)
    return _Builder(lambda options: options[int(random.integers(len(options)))], random).build(steps)


def graphs(steps: int = 8) -> SearchStrategy[Graph]:
    """Graphs of up to `steps` motifs, as a Hypothesis strategy."""
    from hypothesis import strategies as st

    @st.composite
    def draw_graph(draw: st.DrawFn) -> Graph:
        random = np.random.default_rng(draw(st.integers(0, 2**16)))
        count = draw(st.integers(1, steps))
        return _Builder(lambda options: draw(st.sampled_from(options)), random).build(count)

    return draw_graph()


class _Builder:
    """A graph as far as it is built. Structure comes from `choose`, numbers from `random`."""

    def __init__(self, choose: Choose, random: np.random.Generator) -> None:
        self.choose, self.random = choose, random
        channels, size = choose((4, 1, 3, 6)), choose(((5, 5), (1, 1), (6, 9), (8, 7)))
        self.inputs: dict[str, Shape] = {"x": (channels, *size)}
        if choose((False, False, False, True)):
            self.inputs["y"] = choose(((channels,), (3, *size)))
        self.shapes = dict(self.inputs)
        self.nodes: list[Node] = []

    def build(self, steps: int) -> Graph:
        motifs = [self.conv, self.unary, self.binary, self.residual, self.excite, self.shuffle, self.dense_block]
        motifs += [self.unary, self.unary, self.swish, self.residual]
        for _ in range(steps):
            self.choose(motifs)(self.choose(list(self.shapes)[-4:][::-1]))
        if self.choose((True, False)):
            self.vector(list(self.shapes)[-1])
        outputs = [list(self.shapes)[-1]]
        if self.choose((False, False, True)):
            outputs.append(self.choose(list(self.shapes)))
        return Graph(self.inputs, tuple(self.nodes), tuple(outputs))

    def add(self, node: Node) -> str:
        """The node's name if it fits where it stands; else its first input, as if it had not been."""
        node = replace(node, name=f"v{len(self.nodes)}", source=f"{node.op.lower()}.{len(self.nodes)}")
        try:
            made = node.shape(*(self.shapes[name] for name in node.inputs))
        except GraphError:
            return node.inputs[0]
        if max(made) > 64:
            return node.inputs[0]
        self.shapes[node.name] = made
        self.nodes.append(node)
        return node.name

    # -- numbers ------------------------------------------------------------------------------------------

    def weights(self, *shape: int) -> Array:
        """Dense, or pruned; some rows and columns without a weight, rarely all."""
        values = self.random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        density, dead = self.choose(((1.0, 0.0), (0.3, 0.0), (0.6, 0.4), (1.0, 0.3), (0.0, 1.0)))
        values *= self.random.random(shape) < density
        values[self.random.random(shape[0]) < dead] = 0
        values[:, self.random.random(shape[1]) < dead] = 0
        return values.astype(np.float32)

    def numbers(self, count: int) -> Array:
        values = self.random.standard_normal(count) * (self.random.random(count) < self.choose((1.0, 0.7)))
        return values.astype(np.float32)

    def bias(self, count: int) -> Array | None:
        return self.numbers(count) if self.choose((True, False)) else None

    def activation(self) -> Activation:
        kind = self.choose(("identity", "identity", "relu", *ACTIVATIONS))
        if kind == "clamp":
            return Activation("clamp", low=self.choose((-0.5, 0.0)), high=self.choose((0.75, np.inf)))
        return Activation(kind, slope=self.choose((0.01, 0.2)))

    def edges(self) -> Edges:
        return self.choose(((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 2)))

    # -- motifs: each takes the name of a value and may leave the graph as it is ------------------------------

    def conv(self, name: str, activation: Activation | None = None) -> str:
        shape = self.shapes[name]
        if len(shape) == 1:
            return self.linear(name)
        channels = shape[0]
        groups = self.choose([g for g in (1, 1, channels, 2, 3) if channels % g == 0])
        out = self.choose((channels, 2 * groups, groups, 6 * groups))
        kernel = self.choose(((1, 1), (3, 3), (1, 3), (2, 2)))
        if self.choose((False, False, False, True)):
            name = self.add(Pad("", (name,), self.edges()))
        made = self.add(
            Conv(
                "",
                (name,),
                self.weights(out, channels // groups, *kernel),
                self.bias(out),
                stride=self.choose(((1, 1), (1, 1), (2, 2), (1, 2))),
                padding=(kernel[0] // 2,) * 2 + (kernel[1] // 2,) * 2 if self.choose((True, False)) else self.edges(),
                dilation=self.choose(((1, 1), (1, 1), (2, 1))),
                groups=groups,
                activation=self.choose((IDENTITY, IDENTITY, self.activation())) if activation is None else activation,
            )
        )
        return self.norm(made) if self.choose((True, False)) else made

    def linear(self, name: str) -> str:
        count = self.shapes[name][0]
        out = self.choose((count, 5, 1))
        made = self.add(Linear("", (name,), self.weights(out, count), self.bias(out), self.activation()))
        return self.norm(made) if self.choose((False, True)) else made

    def norm(self, name: str) -> str:
        """What batch norm is in evaluation, and often an activation."""
        count = self.shapes[name][0]
        name = self.add(Affine("", (name,), self.numbers(count), self.numbers(count)))
        return self.add(Activate("", (name,), self.activation()))

    def unary(self, name: str) -> str:
        channels = self.shapes[name][0]
        everything = tuple(range(channels))
        kernel = self.choose(((2, 2), (3, 3), (1, 2)))
        edges = self.choose(((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0)))
        options: list[Node] = [
            Affine("", (name,), self.numbers(channels), self.numbers(channels), self.activation()),
            Activate("", (name,), self.activation()),
            Pool("", (name,), "max", kernel, self.choose(((2, 2), (1, 1))), edges, ceil=self.choose((False, True))),
            Pool(
                "",
                (name,),
                "average",
                kernel,
                self.choose(((2, 2), (1, 1))),
                edges,
                ceil=self.choose((False, True)),
                count_padding=self.choose((True, False)),
            ),
            AdaptivePool("", (name,), self.choose(((1, 1), (2, 3), (12, 11)))),
            Pad("", (name,), self.edges(), self.choose((0.0, 1.5))),
            Select("", (name,), self.choose((everything, everything[:2], everything[1::2]))),
            Select("", (name,), tuple(int(c) for c in self.random.permutation(channels))),
            Select("", (name,), tuple(int(c) for c in self.random.integers(0, channels, 3))),
            LayerNorm("", (name,), self.numbers(channels), self.numbers(channels), eps=0.1),
            Concat("", (name,)),
        ]
        fitting = [node for node in options if not (isinstance(node, Select) and not node.channels)]
        return self.add(self.choose(fitting))

    def binary(self, name: str) -> str:
        """Any two values that go together."""
        other = self.choose(list(self.shapes)[::-1])
        kind = self.choose((Add, Mul, Concat))
        if kind is Concat:
            return self.add(Concat("", (name, other, name)[: self.choose((2, 3))]))
        return self.add(kind("", (name, other), self.activation()))

    def residual(self, name: str) -> str:
        """act(x + f(x)), added by a node or as Conv has it built in; the short cut sometimes a convolution, too."""
        if len(self.shapes[name]) == 1:
            return self.add(Add("", (name, self.linear(name)), self.activation()))
        made = self.same(self.same(name)) if self.choose((True, False)) else self.same(name)
        short = self.choose((name, name, self.same(name)))
        if self.choose((False, False, True)):
            channels = self.shapes[name][0]
            weight = self.weights(channels, channels, 1, 1)
            return self.add(Conv("", (made, short), weight, self.bias(channels), activation=self.activation()))
        added = self.add(Add("", self.choose(((short, made), (made, short)))))
        return self.add(Activate("", (added,), self.activation()))

    def same(self, name: str) -> str:
        """A convolution that keeps the shape, and often a norm."""
        channels = self.shapes[name][0]
        groups = self.choose((1, channels))
        size = self.choose((1, 3))
        weight = self.weights(channels, channels // groups, size, size)
        made = self.add(Conv("", (name,), weight, self.bias(channels), padding=(size // 2,) * 4, groups=groups))
        return self.add(Affine("", (made,), self.numbers(channels), self.numbers(channels))) if size == 3 else made

    def excite(self, name: str) -> str:
        """Squeeze and excite, of maps or of vectors."""
        shape = self.shapes[name]
        if len(shape) == 1:
            return self.add(Mul("", (name, self.linear(name))))
        gate = self.add(AdaptivePool("", (name,)))
        if self.choose((True, False)):
            gate = self.add(Flatten("", (gate,)))
            gate = self.add(Linear("", (gate,), self.weights(2, shape[0]), self.bias(2), Activation("relu")))
            weight = self.weights(shape[0], 2)
            gate = self.add(Linear("", (gate,), weight, self.bias(shape[0]), Activation("sigmoid")))
        else:
            weight = self.weights(shape[0], shape[0], 1, 1)
            gate = self.add(Conv("", (gate,), weight, self.bias(shape[0]), activation=Activation("hardsigmoid")))
        return self.add(Mul("", (name, gate)))

    def shuffle(self, name: str) -> str:
        """ShuffleNet: shuffle, halve, work on one half, join."""
        channels = self.shapes[name][0]
        if channels % 2:
            return name
        order = [c for pair in zip(range(channels // 2), range(channels // 2, channels), strict=True) for c in pair]
        shuffled = self.add(Select("", (name,), tuple(order)))
        if self.choose((False, True)):
            return self.conv(shuffled)
        left = self.add(Select("", (shuffled,), tuple(range(channels // 2))))
        right = self.add(Select("", (shuffled,), tuple(range(channels // 2, channels))))
        return self.add(Concat("", (left, self.conv(right))))

    def dense_block(self, name: str) -> str:
        """DenseNet: norm, activation and convolution over everything so far, joined to it."""
        shape = self.shapes[name]
        if len(shape) == 1:
            return name
        for _ in range(2):
            normed = self.norm(name)
            count = self.shapes[normed][0]
            grown = self.add(Conv("", (normed,), self.weights(3, count, 3, 3), padding=(1, 1, 1, 1)))
            name = self.add(Concat("", (name, grown)))
        return name

    def swish(self, name: str) -> str:
        gate = self.add(Activate("", (name,), Activation(self.choose(("sigmoid", "hardsigmoid")))))
        return self.add(Mul("", self.choose(((name, gate), (gate, name)))))

    def vector(self, name: str) -> str:
        """The end of a classifier."""
        if len(self.shapes[name]) == 3:
            name = self.add(self.choose((AdaptivePool("", (name,)), Activate("", (name,)))))
        flat = self.linear(self.add(Flatten("", (name,)))) if len(self.shapes[name]) == 3 else self.linear(name)
        return self.add(Softmax("", (flat,))) if len(self.shapes[flat]) == 1 and self.choose((False, True)) else flat
