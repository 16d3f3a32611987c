"""The sum at the end of a residual block is computed by the convolution that makes one of its sides."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Add, Conv, Graph, Node
from .rewrite import Rewriter, rewrite


def fuse_residual(graph: Graph) -> Graph:
    """act(conv(x) + bias + residual), where nobody else reads the convolution and it has no activation of its own.

    Where both sides could, the later one does: the other is finished by then, and nothing has to live longer.
    """
    return rewrite(graph, _fuse)


def _fuse(graph: Rewriter, node: Node) -> Node | None:
    if not isinstance(node, Add) or graph.shapes[node.inputs[0]] != graph.shapes[node.inputs[1]]:
        return None
    later, earlier = sorted(node.inputs, key=lambda name: graph.place[name], reverse=True)
    for made, residual in ((later, earlier), (earlier, later)):
        conv = graph.maker(made)
        if isinstance(conv, Conv) and len(conv.inputs) == 1 and conv.activation.kind == "identity" and graph.sole(made):
            return replace(conv, name=node.name, inputs=(conv.inputs[0], residual), activation=node.activation)
    return None
