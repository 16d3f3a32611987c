"""A pooling over large windows: along the columns, and then along the rows.

A window of k x k pixels is then k + k taps, and as many phases of its stride, in place of k * k: a plan lists them all.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..graph import Graph, Node, Pool
from .rewrite import fresh

MOST = 64
"""Pixels of a window that is looked at in one go."""


def split_pool(graph: Graph, most: int = MOST) -> Graph:
    nodes: list[Node] = []
    for node in graph:
        nodes += _halves(node, graph) if isinstance(node, Pool) and _is_large(node, most) else [node]
    return graph.with_nodes(nodes) if len(nodes) > len(graph.nodes) else graph


def _is_large(node: Pool, most: int) -> bool:
    return min(node.kernel) > 1 and math.prod(node.kernel) > most


def _halves(node: Pool, graph: Graph) -> list[Node]:
    """The highest of the highest, or the mean of the means: each row of a window counts as many columns as another."""
    top, bottom, left, right = node.padding

    def half(axis: int, padding: tuple[int, int, int, int]) -> Pool:
        kernel, stride, dilation = (
            (pair[0], 1) if axis == 0 else (1, pair[1]) for pair in (node.kernel, node.stride, node.dilation)
        )
        return replace(node, kernel=kernel, stride=stride, dilation=dilation, padding=padding)

    first = replace(half(0, (top, bottom, 0, 0)), name=fresh(f"{node.name}/columns", graph))
    return [first, replace(half(1, (0, 0, left, right)), inputs=(first.name,))]
