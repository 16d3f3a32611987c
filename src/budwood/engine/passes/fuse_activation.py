"""Activations are computed where their argument is made."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Activate, Activation, Add, Affine, Conv, Graph, Linear, Mul, Node
from .rewrite import Rewriter, rewrite

GATED = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
"""x * gate(x) has a name of its own."""


def fuse_activation(graph: Graph) -> Graph:
    return rewrite(graph, _name_gated, _fuse)


def _name_gated(graph: Rewriter, node: Node) -> Node | None:
    if not isinstance(node, Mul) or node.activation.kind != "identity":
        return None
    for x, gated in (node.inputs, node.inputs[::-1]):
        gate = graph.maker(gated)
        if isinstance(gate, Activate) and gate.inputs[0] == x and gate.activation.kind in GATED:
            return Activate(node.name, (x,), Activation(GATED[gate.activation.kind]), source=gate.source)
    return None


def _fuse(graph: Rewriter, node: Node) -> Node | None:
    if not isinstance(node, Activate) or not graph.sole(node.inputs[0]):
        return None
    maker = graph.maker(node.inputs[0])
    if not isinstance(maker, Conv | Linear | Affine | Add | Mul) or maker.activation.kind != "identity":
        return None
    return replace(maker, name=node.name, activation=node.activation)
