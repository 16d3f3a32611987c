"""Batch norm, layer scale and constant factors go into the weights beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Affine, Conv, Graph, Linear, Node
from .rewrite import Rewriter, bias_of, groups_of, per_weight, rewrite, rounded, scaled


def fold_affine(graph: Graph) -> Graph:
    """Into the node before it where nobody else reads that; else into those behind it, where that is exact.

    A scale that is not finite (broken statistics) stays: folded, 0 * infinity would make weights of zeros.
    """
    return rewrite(graph, _into_maker, _into_reader)


def _into_maker(graph: Rewriter, node: Node) -> Node | None:
    if not isinstance(node, Affine) or not graph.sole(node.inputs[0]) or not np.isfinite(node.scale).all():
        return None
    maker = graph.maker(node.inputs[0])
    if not isinstance(maker, Conv | Linear | Affine) or maker.activation.kind != "identity" or len(maker.inputs) > 1:
        return None
    return _merged(maker, node) if isinstance(maker, Affine) else _after(maker, node)


def _merged(first: Affine, second: Affine) -> Affine | None:
    scale = scaled(first.scale, second.scale)
    if scale is None or not np.isfinite(first.scale).all():
        return None
    offset = rounded(first.offset.astype(np.float64) * second.scale + second.offset, first.offset)
    return replace(first, name=second.name, scale=scale, offset=offset, activation=second.activation)


def _after(maker: Conv | Linear, node: Affine) -> Node | None:
    weight = scaled(maker.weight, node.scale.reshape(-1, *[1] * (maker.weight.ndim - 1)))
    if weight is None:
        return None
    bias = node.offset if maker.bias is None else rounded(bias_of(maker) * node.scale + node.offset, weight)
    kept = bias if maker.bias is not None or bias.any() else None
    return replace(maker, name=node.name, weight=weight, bias=kept, activation=node.activation)


def _into_reader(graph: Rewriter, node: Node) -> Node | None:
    """Only if every reader can take it: an affine that stays for one would be computed, and kept, all the same."""
    affine = graph.maker(node.inputs[0])
    if not isinstance(node, Conv | Linear) or not isinstance(affine, Affine) or affine.name in graph.outputs:
        return None
    if affine.activation.kind != "identity" or not all(_exact(affine, reader) for reader in graph.readers(affine.name)):
        return None
    return _before(affine, node)


def _exact(affine: Affine, reader: Node) -> bool:
    """Padding is zeros after the affine; folded, the border would get its offset too."""
    if not isinstance(reader, Conv | Linear) or affine.name in reader.inputs[1:]:
        return False
    borders = any(reader.padding) if isinstance(reader, Conv) else False
    return bool(np.isfinite(affine.scale).all() and np.isfinite(affine.offset).all()) and not (
        borders and affine.offset.any()
    )


def _before(affine: Affine, node: Conv | Linear) -> Node | None:
    weight = scaled(node.weight, per_weight(affine.scale, node))
    if weight is None:
        return None
    bias = node.bias
    if affine.offset.any():
        groups, (rows, columns) = groups_of(node), node.weight.shape[:2]
        sums = node.weight.reshape(rows, columns, -1).sum(2, dtype=np.float64).reshape(groups, rows // groups, columns)
        bias = rounded(bias_of(node) + (sums @ affine.offset.reshape(groups, columns, 1)).reshape(rows), weight)
    return replace(node, inputs=(affine.inputs[0], *node.inputs[1:]), weight=weight, bias=bias)
