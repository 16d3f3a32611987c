"""Slices, splits and shuffles of channels go into the weights of the convolutions around them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from ..graph import Activate, AdaptivePool, Affine, Array, Concat, Conv, Graph, Linear, Node, Pad, Pool, Select
from .rewrite import Rewriter, fresh, groups_of, rewrite

LEAST_SHARE = 0.25
"""A slice of fewer of the channels stays: as zero columns it would blow up the weights of who reads it."""


def fold_select(graph: Graph) -> Graph:
    """First those that meet become one, then each goes back into what makes its input or forward into its readers.

    The number of non-zero weights never grows. Forward, weights of channels that were not picked become zeros.
    """
    return _forward(rewrite(graph, _compose, _resolve, _into_rows))


# -- Select of Select, of Concat, of a convolution ------------------------------------------------------------


def _compose(graph: Rewriter, node: Node) -> Node | None:
    inner = graph.maker(node.inputs[0])
    if isinstance(node, Select) and isinstance(inner, Select):
        return replace(node, inputs=inner.inputs, channels=tuple(inner.channels[c] for c in node.channels))
    return None


def _resolve(graph: Rewriter, node: Node) -> Node | None:
    """Select of one part of a Concat; and a Concat of nothing but Selects of one value, as a shuffle may be spelt."""
    if isinstance(node, Select) and isinstance(concat := graph.maker(node.inputs[0]), Concat):
        ends = list(itertools.accumulate(graph.shapes[name][0] for name in concat.inputs))
        part = int(np.searchsorted(ends, min(node.channels), side="right"))
        start = ends[part - 1] if part else 0
        if max(node.channels) < ends[part]:
            return replace(node, inputs=(concat.inputs[part],), channels=tuple(c - start for c in node.channels))
    if isinstance(node, Concat):
        parts = [maker for name in node.inputs if isinstance(maker := graph.maker(name), Select)]
        if len(parts) == len(node.inputs) and len({part.inputs for part in parts}) == 1:
            channels = tuple(c for part in parts for c in part.channels)
            return Select(node.name, parts[0].inputs, channels, source=node.source)
    return None


def _into_rows(graph: Rewriter, node: Node) -> Node | None:
    """The convolution makes the picked channels only, in their order; repeated ones would be computed twice."""
    if not isinstance(node, Select) or not graph.sole(node.inputs[0]) or len(set(node.channels)) < len(node.channels):
        return None
    maker = graph.maker(node.inputs[0])
    if not isinstance(maker, Conv | Linear) or groups_of(maker) > 1 or len(maker.inputs) > 1:
        return None
    rows = list(node.channels)
    bias = None if maker.bias is None else maker.bias[rows]
    return replace(maker, name=node.name, weight=maker.weight[rows], bias=bias)


# -- forward --------------------------------------------------------------------------------------------------


def _forward(graph: Graph) -> Graph:
    """Walks the graph with the Selects that dissolve taken away: `picked` says what of which value a name meant."""
    dissolving = _dissolving(graph)
    if not dissolving:
        return graph
    picked: dict[str, tuple[str, tuple[int, ...]]] = {}
    nodes: list[Node] = []
    for node in graph:
        if node.name in dissolving and isinstance(node, Select):
            picked[node.name] = (node.inputs[0], node.channels)
        elif node.inputs[0] not in picked:
            nodes.append(node)
        else:
            source, channels = picked[node.inputs[0]]
            count = graph.shapes[source][0] if source in graph.shapes else len(channels)
            if isinstance(node, Conv | Linear) and groups_of(node) == 1:
                weight = _spread(node.weight, channels, count)
                nodes.append(replace(node, inputs=(source, *node.inputs[1:]), weight=weight))
            else:  # computes its channels in the order of the source, and means them in the order picked
                nodes.append(
                    replace(_reordered(node, channels), name=fresh(f"{node.name}/unordered", graph), inputs=(source,))
                )
                picked[node.name] = (nodes[-1].name, channels)
    return graph.with_nodes(nodes)


def _dissolving(graph: Graph) -> set[str]:
    """Selects whose every reader takes them in, and what they pass through on the way there."""
    users = graph.users()
    takes_any: dict[str, bool] = {}
    takes_order: dict[str, bool] = {}
    dissolving: set[str] = set()
    for node in reversed(graph.nodes):
        name = node.name
        readers = [(user, user.inputs[1:].count(name) == 0) for user in users[name]]
        inside = name not in graph.outputs and len(readers) > 0
        takes_any[name] = inside and all(_mixes(user) and data for user, data in readers)
        takes_order[name] = inside and all(
            (_mixes(user) or (_by_channel(user, graph) and takes_order[user.name])) and data for user, data in readers
        )
        if isinstance(node, Select):
            count = graph.shapes[node.inputs[0]][0]
            orders = sorted(node.channels) == list(range(count))
            slices = len(set(node.channels)) == len(node.channels) >= LEAST_SHARE * count
            if (orders and takes_order[name]) or (slices and takes_any[name]):
                dissolving.add(name)
    return dissolving


def _mixes(node: Node) -> bool:
    """Reads all channels for each of its own, so their order is that of the columns of its weight."""
    return isinstance(node, Conv | Linear) and groups_of(node) == 1


def _by_channel(node: Node, graph: Graph) -> bool:
    """Makes each channel of the one with the same number."""
    if isinstance(node, Conv):
        return len(node.inputs) == 1 and node.groups == graph.shapes[node.inputs[0]][0] == len(node.weight)
    return isinstance(node, Affine | Activate | Pool | AdaptivePool | Pad)


def _spread(weight: Array, channels: tuple[int, ...], count: int) -> Array:
    """Column i moves to column channels[i] of `count`."""
    made = np.zeros((len(weight), count, *weight.shape[2:]), weight.dtype)
    made[:, list(channels)] = weight
    return made


def _reordered(node: Node, channels: tuple[int, ...]) -> Node:
    """What stood at i stands at channels[i]: `channels` is a permutation."""
    order = np.argsort(channels)
    match node:
        case Conv():
            bias = None if node.bias is None else node.bias[order]
            return replace(node, weight=node.weight[order], bias=bias)
        case Affine():
            return replace(node, scale=node.scale[order], offset=node.offset[order])
    return node
