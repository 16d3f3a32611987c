"""What the passes share: rules that replace one node at a time, and arithmetic on weights that minds their zeros."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..graph import Array, Conv, Graph, Linear, Node

TINY = np.finfo(np.float32).tiny


class Rewriter:
    """A graph while rules rewrite it; every question is answered by a dictionary.

    A node is only ever replaced by one of its own name, at its own place. So a name means the same numbers before
    and after, what a rule reads through stands early enough, and the graph is built and checked once, at the end.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes = {node.name: node for node in graph}
        self._readers: dict[str, Counter[str]] = {name: Counter() for name in graph.shapes}
        for node in graph:
            for name in node.inputs:
                self._readers[name][node.name] += 1
        self.shapes = graph.shapes
        self.place = {name: place for place, name in enumerate(graph.shapes)}
        self.outputs = frozenset(graph.outputs)
        self._changed = False

    def maker(self, name: str) -> Node | None:
        """The node that makes this value; None for an input of the graph."""
        return self._nodes.get(name)

    def readers(self, name: str) -> Iterator[Node]:
        return (self._nodes[reader] for reader in self._readers[name])

    def sole(self, name: str) -> bool:
        """True if the value is read once and is no output: who reads it may swallow the node that makes it."""
        return self._readers[name].total() == 1 and name not in self.outputs

    def put(self, node: Node) -> None:
        """Replaces the node of this name. Nodes that nobody reads any more go."""
        self._changed = True
        for name in node.inputs:
            self._readers[name][node.name] += 1
        old = self._nodes[node.name]
        self._nodes[node.name] = node
        gone = [old]
        while gone:
            reader = gone.pop()
            for name in reader.inputs:
                counts = self._readers[name]
                counts[reader.name] -= 1
                if not counts[reader.name]:
                    del counts[reader.name]
                if not counts and name in self._nodes and name not in self.outputs:
                    gone.append(self._nodes.pop(name))

    def apply(self, rule: Rule) -> None:
        """Asks the rule about every node in order, and again about what it answers."""
        for name in list(self._nodes):
            while (node := self._nodes.get(name)) and (new := rule(self, node)):
                self.put(new)

    def graph(self) -> Graph:
        """The very graph that was given, where nothing was replaced."""
        return self._graph.with_nodes(self._nodes.values()) if self._changed else self._graph


Rule = Callable[[Rewriter, Node], Node | None]
"""What a node is to be replaced by, under the same name; None to leave it."""


def rewrite(graph: Graph, *rules: Rule) -> Graph:
    rewriter = Rewriter(graph)
    for rule in rules:
        rewriter.apply(rule)
    return rewriter.graph()


def fresh(name: str, graph: Graph) -> str:
    """A name like this one that no value of the graph has."""
    while name in graph.shapes:
        name += "'"
    return name


# -- weights --------------------------------------------------------------------------------------------------


def groups_of(node: Conv | Linear) -> int:
    return node.groups if isinstance(node, Conv) else 1


def scaled(weight: Array, factor: Array) -> Array | None:
    """weight * factor (float32, broadcast), rounded once, with the mask kept: a zero stays a zero and a weight stays
    non-zero unless its factor is zero. None where a finite product would overflow. `factor` must be finite.
    """
    with np.errstate(all="ignore"):
        made = weight * factor  # a product of two float32 in float32 is the float64 product, rounded
        if not _finite(made) and _finite(weight):
            return None
        vanished = (made == 0) & (weight != 0)
        if vanished.any():
            vanished &= np.broadcast_to(factor != 0, made.shape)
            made[vanished] = np.copysign(TINY, (np.sign(weight) * np.sign(factor))[vanished])
    return made


def rounded(values: NDArray[np.float64], like: Array) -> Array:
    """To the type of `like`, float32 but in tests; beyond its range infinite."""
    with np.errstate(over="ignore"):
        return values.astype(like.dtype)


def bias_of(node: Conv | Linear) -> NDArray[np.float64]:
    """[C_out], zeros where there is none."""
    return np.zeros(len(node.weight)) if node.bias is None else node.bias.astype(np.float64)


def taps(weight: Array) -> NDArray[np.bool_]:
    """[C_out, C_in / groups]: where a kernel has any weight that is not zero."""
    flat = (weight != 0).reshape(*weight.shape[:2], -1)
    found = flat[:, :, 0].copy()
    for place in range(1, flat.shape[2]):  # NumPy is five times as slow over a short last axis
        found |= flat[:, :, place]
    return found


def per_weight(values: NDArray, node: Conv | Linear) -> NDArray:
    """Numbers per input channel [C_in] -> the shape [C_out or 1, C_in / groups, 1, 1] that goes with the weight."""
    groups, (rows, columns) = groups_of(node), node.weight.shape[:2]
    spread = values.reshape(groups, columns)
    if groups > 1:
        spread = np.repeat(spread, rows // groups, axis=0)
    return spread.reshape(*spread.shape, *[1] * (node.weight.ndim - 2))


def _finite(values: Array) -> bool:
    """Of all of them; the sum of squares would overflow, the extremes do not."""
    return bool(np.isfinite(values.max()) and np.isfinite(values.min()))
