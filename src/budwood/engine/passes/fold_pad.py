"""Padding that stands by itself goes into the convolution or pool behind it."""

from __future__ import annotations

import math
from dataclasses import replace

from ..graph import Conv, Edges, Graph, GraphError, Node, Pad, Pool
from .rewrite import Rewriter, rewrite


def fold_pad(graph: Graph) -> Graph:
    return rewrite(graph, _fold)


def _fold(graph: Rewriter, node: Node) -> Node | None:
    pad = graph.maker(node.inputs[0])
    if not isinstance(node, Conv | Pool | Pad) or not isinstance(pad, Pad) or not _same_border(node, pad.value):
        return None
    new = replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), padding=_sum(node.padding, pad.padding))
    if isinstance(new, Pool):
        new = replace(new, count_padding=True)  # a zero that was part of the image counted
    return new if _fits(new, graph) else None


def _same_border(node: Conv | Pool | Pad, value: float) -> bool:
    """True if what the node itself sees beyond the border is this value."""
    match node:
        case Conv():
            return value == 0
        case Pad():
            return value == node.value
        case Pool(kind="average"):
            # Padding that is not counted differs from zeros that are; rounding up asks where the image ends.
            return value == 0 and not node.ceil and (node.count_padding or not any(node.padding))
        case Pool():
            return value == -math.inf and not node.ceil


def _fits(node: Conv | Pool | Pad, graph: Rewriter) -> bool:
    """A pool's padding has to stay smaller than its window."""
    try:
        node.shape(*(graph.shapes[name] for name in node.inputs))
    except GraphError:
        return False
    return True


def _sum(a: Edges, b: Edges) -> Edges:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])
