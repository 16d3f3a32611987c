"""Channels that nobody reads are not made: in pruned networks, those whose readers' weights are all zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Affine, Array, Concat, Conv, Graph, Linear, Node, Select
from .channels import Flags, held, needed
from .rewrite import groups_of


def remove_dead_channels(graph: Graph) -> Graph:
    """Through chains of convolutions, norms, activations, pools, sums and joins, back to what makes the channel.

    A channel that stays only for another's sake (see channels.py) has its weights set to zero: it costs a fill.
    """
    need = needed(graph)
    hold = held(graph, need)
    nodes = [_cut(node, need, hold) for node in graph if hold[node.name].any()]
    same = len(nodes) == len(graph.nodes) and all(a is b for a, b in zip(nodes, graph.nodes, strict=True))
    return graph if same else graph.with_nodes(nodes)


def _cut(node: Node, need: dict[str, Flags], hold: dict[str, Flags]) -> Node:
    """The node with the channels that are held, of itself and of its inputs; itself if that is all of them."""
    out, data = hold[node.name], hold[node.inputs[0]]
    if isinstance(node, Conv | Linear):
        return _cut_weights(node, need[node.name], out, data)
    if out.all() and all(hold[name].all() for name in node.inputs):
        return node
    match node:
        case Affine():
            return replace(node, scale=node.scale[out], offset=node.offset[out])
        case Select():
            place = np.cumsum(data) - 1
            return replace(node, channels=tuple(int(c) for c in place[np.array(node.channels)[out]]))
        case Concat():
            return replace(node, inputs=tuple(name for name in node.inputs if hold[name].any()))
    return node


def _cut_weights(node: Conv | Linear, need: Flags, out: Flags, data: Flags) -> Node:
    """Rows and columns that are held, and zeros in the rows that are held only."""
    idle = ~need[out]
    weight = node.weight if out.all() else node.weight[out]
    if groups_of(node) == 1 and not data.all():
        weight = weight[:, data]
    bias = node.bias if node.bias is None or out.all() else node.bias[out]
    weight = _zeroed(weight, idle)
    bias = None if bias is None else _zeroed(bias, idle)
    if weight is node.weight and bias is node.bias:
        return node
    if isinstance(node, Conv) and node.groups > 1:
        groups = int(data.reshape(node.groups, -1).any(1).sum())
        return replace(node, weight=weight, bias=bias, groups=groups)
    return replace(node, weight=weight, bias=bias)


def _zeroed(values: Array, rows: Flags) -> Array:
    """The same array where these rows are zeros already."""
    if not values[rows].any():
        return values
    values = values.copy()
    values[rows] = 0
    return values
