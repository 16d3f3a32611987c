"""A convolution whose output only a depthwise one reads, on a large plane: some channels at a time, through both.

What lies between the two is larger than the second-level cache in the first blocks of mobile networks; a part of its
channels is not, and is read while it is still there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from ..graph import Array, Concat, Conv, Graph, Node
from .rewrite import fresh

MOST = 2**19
"""Numbers of an image between the two; 2 MB."""


def split_wide(graph: Graph, most: int = MOST) -> Graph:
    makers = {node.name: node for node in graph}
    users = graph.users()
    pairs: dict[str, Conv] = {}  # depthwise convolution -> the one before it
    for node in graph:
        maker = makers.get(node.inputs[0])
        if not _plain(maker) or not _depthwise(node) or _numbers(graph, maker) <= most:
            continue
        if len(users[maker.name]) == 1 and maker.name not in graph.outputs:
            pairs[node.name] = maker
    if not pairs:
        return graph
    dropped = {maker.name for maker in pairs.values()}
    nodes: list[Node] = []
    for node in graph:
        if maker := pairs.get(node.name):
            assert isinstance(node, Conv)
            nodes += _parts(graph, maker, node, most)
        elif node.name not in dropped:
            nodes.append(node)
    return graph.with_nodes(nodes)


def _depthwise(node: Node) -> TypeGuard[Conv]:
    """One with an output for each of its inputs, and no residual."""
    return isinstance(node, Conv) and node.is_depthwise and len(node.weight) == node.groups and len(node.inputs) == 1


def _plain(node: Node | None) -> TypeGuard[Conv]:
    return isinstance(node, Conv) and node.groups == 1 and len(node.inputs) == 1


def _numbers(graph: Graph, node: Node) -> int:
    return math.prod(graph.shapes[node.name])


def _parts(graph: Graph, maker: Conv, reader: Conv, most: int) -> list[Node]:
    channels = len(maker.weight)
    count = min(-(-_numbers(graph, maker) // most), channels)
    nodes: list[Node] = []
    for number in range(count):
        some = slice(channels * number // count, channels * (number + 1) // count)
        first = replace(_some(maker, some), name=fresh(f"{maker.name}/{number}", graph))
        second = replace(
            _some(reader, some),
            name=fresh(f"{reader.name}/{number}", graph),
            inputs=(first.name,),
            groups=some.stop - some.start,
        )
        nodes += [first, second]
    return [*nodes, Concat(reader.name, tuple(n.name for n in nodes[1::2]), source=reader.source)]


def _some(node: Conv, rows: slice) -> Conv:
    def cut(array: Array | None) -> Array | None:
        return None if array is None else np.ascontiguousarray(array[rows])

    return replace(node, weight=np.ascontiguousarray(node.weight[rows]), bias=cut(node.bias))
