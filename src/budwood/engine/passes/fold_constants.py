"""A channel that is the same number for every image goes into the biases of who reads it.

A pruned network makes such channels: all their weights are zero, so nothing is left but an activated bias.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Activate, Add, Affine, Array, Conv, Graph, Linear, Mul, Node
from .constants import Numbers, constants, contribution, usable
from .rewrite import Rewriter, bias_of, groups_of, per_weight, rewrite, rounded, taps


def fold_constants(graph: Graph) -> Graph:
    """Only where it is exact, image borders included. What nobody reads after this, remove_dead_channels removes."""
    known = constants(graph)
    if all(np.isnan(values).all() for values in known.values()):
        return graph

    like = next((node.weight for node in graph if isinstance(node, Conv | Linear)), np.ones(1, np.float32))

    def fold(_: Rewriter, node: Node) -> Node | None:
        match node:
            case Conv() | Linear() if isinstance(node, Conv) and len(node.inputs) > 1 and not node.weight.any():
                return _without_weights(node)
            case Conv() | Linear():
                return _into_bias(node, known[node.inputs[0]])
            case Add() | Mul():
                return _into_affine(node, graph, known, like)
        return None

    return rewrite(graph, fold)


def _into_bias(node: Conv | Linear, known: Numbers) -> Node | None:
    """The columns of constant channels become zeros: what they added is in the bias."""
    channels = usable(node, known)
    if not channels.any():
        return None
    columns = per_weight(channels, node)
    if not (taps(node.weight) & columns.reshape(-1, node.weight.shape[1])).any():
        return None
    added = contribution(node, known)
    weight = node.weight.copy()
    if groups_of(node) == 1:
        weight[:, channels] = 0
    else:
        np.copyto(weight, 0, where=columns)
    bias = rounded(bias_of(node) + added, weight) if added.any() else node.bias
    return replace(node, weight=weight, bias=bias)


def _without_weights(node: Conv) -> Node:
    """A residual block pruned away: only the short cut is left."""
    residual = node.inputs[1:]
    if node.bias is None or not node.bias.any():
        return Activate(node.name, residual, node.activation, source=node.source)
    ones = np.ones_like(node.bias)
    return Affine(node.name, residual, ones, node.bias, node.activation, source=node.source)


def _into_affine(node: Add | Mul, graph: Graph, known: dict[str, Numbers], like: Array) -> Node | None:
    """One side constant in every channel, the other of the shape of the result."""
    for moving, fixed in (node.inputs, node.inputs[::-1]):
        values = rounded(known[fixed], like)
        if graph.shapes[moving] == graph.shapes[node.name] and np.isfinite(values).all():
            values = np.broadcast_to(values, graph.shapes[moving][:1]).copy()
            same = np.zeros_like(values) if isinstance(node, Mul) else np.ones_like(values)
            scale, offset = (values, same) if isinstance(node, Mul) else (same, values)
            return Affine(node.name, (moving,), scale, offset, node.activation, source=node.source)
    return None
