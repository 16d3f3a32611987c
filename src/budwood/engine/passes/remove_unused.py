"""Nodes that no output needs, and nodes that do nothing."""

from __future__ import annotations

from ..graph import (
    Activate,
    AdaptivePool,
    Affine,
    Concat,
    Flatten,
    Graph,
    Node,
    Pad,
    Pool,
    Select,
    Shape,
    renamed,
)


def remove_unused(graph: Graph) -> Graph:
    """Drops both. An output that a dropped node made is then an output under the name of that node's input."""
    same_as: dict[str, str] = {}
    kept = []
    for node in graph:
        if any(name in same_as for name in node.inputs):
            node = renamed(node, same_as)
        if _does_nothing(node, graph.shapes[node.inputs[0]]):
            same_as[node.name] = node.inputs[0]
        else:
            kept.append(node)
    outputs = tuple(same_as.get(name, name) for name in graph.outputs)
    needed = set(outputs)
    for node in reversed(kept):
        if node.name in needed:
            needed.update(node.inputs)
    kept = [node for node in kept if node.name in needed]
    return graph if len(kept) == len(graph.nodes) else graph.with_nodes(kept, outputs)


def _does_nothing(node: Node, shape: Shape) -> bool:
    """True if the node's value is its first input, of this shape, to the last bit (but for the sign of a zero)."""
    match node:
        case Activate():
            return node.activation.kind == "identity"
        case Affine():
            return node.activation.kind == "identity" and bool((node.scale == 1).all() and (node.offset == 0).all())
        case Select():
            return node.channels == tuple(range(shape[0]))
        case Concat():
            return len(node.inputs) == 1
        case Flatten():
            return len(shape) == 1
        case Pad():
            return not any(node.padding)
        case Pool():
            return node.kernel == node.stride == (1, 1) and not any(node.padding)
        case AdaptivePool():
            return node.size == shape[1:]
    return False
