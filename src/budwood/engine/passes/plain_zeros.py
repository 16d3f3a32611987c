"""-0.0 becomes 0.0 in weights: a mask multiplied in leaves half of its zeros negative, and a zero is no weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Conv, Graph, Linear, Node


def plain_zeros(graph: Graph) -> Graph:
    nodes = tuple(_plain(node) for node in graph)
    return graph if all(a is b for a, b in zip(nodes, graph.nodes, strict=True)) else graph.with_nodes(nodes)


def _plain(node: Node) -> Node:
    if isinstance(node, Conv | Linear) and np.any((node.weight == 0) & np.signbit(node.weight)):
        return replace(node, weight=node.weight + 0.0)
    return node
