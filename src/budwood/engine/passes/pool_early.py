"""The average of a 1x1 convolution is the 1x1 convolution of the average, for a fraction of the work: DenseNet's."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

import numpy as np

from ..graph import Conv, Graph, Node, Pool
from .rewrite import fresh

WORTH = 4
"""Weights per input channel from which on it pays to average the inputs, which mostly are more than the outputs."""


def pool_early(graph: Graph) -> Graph:
    makers = {node.name: node for node in graph}
    users = graph.users()
    moved: dict[str, Conv] = {}  # pool -> the convolution that it is to stand before
    for node in graph:
        conv = makers.get(node.inputs[0])
        if _averages(node) and _pointwise(conv) and len(users[conv.name]) == 1 and conv.name not in graph.outputs:
            moved[node.name] = conv
    if not moved:
        return graph
    dropped = {conv.name for conv in moved.values()}
    nodes: list[Node] = []
    for node in graph:
        if conv := moved.get(node.name):
            early = replace(node, name=fresh(f"{node.name}/early", graph), inputs=conv.inputs)
            nodes += [early, replace(conv, name=node.name, inputs=(early.name,))]
        elif node.name not in dropped:
            nodes.append(node)
    return graph.with_nodes(nodes)


def _averages(node: Node) -> bool:
    """And makes fewer pixels. Padding that counts would thin out the bias."""
    if not isinstance(node, Pool) or node.kind != "average" or node.stride == (1, 1):
        return False
    return not any(node.padding) or not node.count_padding


def _pointwise(conv: Node | None) -> TypeGuard[Conv]:
    return (
        isinstance(conv, Conv)
        and conv.weight.shape[2:] == conv.stride == (1, 1)
        and not any(conv.padding)
        and len(conv.inputs) == 1
        and conv.activation.kind == "identity"
        and np.count_nonzero(conv.weight) > WORTH * conv.weight.shape[1] * conv.groups
    )
