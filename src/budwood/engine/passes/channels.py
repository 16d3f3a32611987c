"""Which channels somebody needs, and which have to be there because a needed one cannot be without them."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ..graph import Add, Concat, Conv, Flatten, Graph, LayerNorm, Linear, Mul, Node, Select, Softmax
from .rewrite import groups_of, taps

Flags = NDArray[np.bool_]


def needed(graph: Graph) -> dict[str, Flags]:
    """Value -> [C]: True where an output depends on the channel, by weights that are not zero."""
    need = {name: np.zeros(shape[0], bool) for name, shape in graph.shapes.items()}
    for name in graph.outputs:
        need[name][:] = True
    for node in reversed(graph.nodes):
        if need[node.name].any():
            _pass_on(node, need)
    return need


def _pass_on(node: Node, need: dict[str, Flags]) -> None:
    """What is needed of the node's inputs for what is needed of it."""
    out, data = need[node.name], need[node.inputs[0]]
    match node:
        case Conv() | Linear():
            reads = (taps(node.weight) & out[:, None]).reshape(groups_of(node), -1, node.weight.shape[1])
            data |= reads.any(1).reshape(-1)
            if len(node.inputs) > 1:
                need[node.inputs[1]] |= out
        case LayerNorm() | Softmax():
            data[:] = True
        case _:
            tie(node, need, back=True)


def held(graph: Graph, need: dict[str, Flags]) -> dict[str, Flags]:
    """Value -> [C]: what is needed, and what the operators' shapes ask for beside it.

    The two sides of a sum must have the same channels, a depthwise convolution as many as its input, a group all of
    its own. Inputs of the graph stay as they are. A value of which nothing is held need not be made at all.
    """
    hold = {name: flags.copy() for name, flags in need.items()}
    for name in graph.inputs:
        hold[name][:] = True
    around: dict[str, dict[str, Node]] = {name: {} for name in hold}
    for node in graph:
        for name in (node.name, *node.inputs):
            around[name][node.name] = node
    waiting = {node.name: node for node in graph}  # again only where something changed: chains may be long
    while waiting:
        _, node = waiting.popitem()
        before = {name: int(hold[name].sum()) for name in (node.name, *node.inputs)}
        tie(node, hold)
        for name, count in before.items():
            if int(hold[name].sum()) != count:
                waiting.update(around[name])
    return hold


def tie(node: Node, flags: dict[str, Flags], back: bool = False) -> None:
    """Sets what must be set together: from the node to its inputs, and unless `back` the other way, too."""
    out, data = flags[node.name], flags[node.inputs[0]]
    match node:
        case Conv(groups=1) | Linear():
            if out.any() and not data.any():
                data[0] = True  # all its weights are zero, but it must read something
        case Conv():
            _same(out.reshape(node.groups, -1), data.reshape(node.groups, -1), back)
        case Concat():
            ends = list(itertools.accumulate(len(flags[name]) for name in node.inputs))
            for name, start, end in zip(node.inputs, [0, *ends], ends, strict=False):
                _same(out[start:end, None], flags[name][:, None], back)
        case Select():
            data[np.array(node.channels)[out]] = True
        case Flatten():
            _same(out.reshape(len(data), -1), data[:, None], back)
        case LayerNorm() | Softmax():
            _same(out[None], data[None], back)
        case Add() | Mul():
            _same(out[:, None], data[:, None], back)
            second = flags[node.inputs[1]]
            if len(second) == len(out):
                _same(out[:, None], second[:, None], back)
            else:
                second[0] |= out.any()
        case _:
            _same(out[:, None], data[:, None], back)
    if isinstance(node, Conv) and len(node.inputs) > 1:
        _same(out[:, None], flags[node.inputs[1]][:, None], back)


def _same(out: Flags, into: Flags, back: bool) -> None:
    """Any in a row of either: the whole row of `into`, and unless `back` of `out`. Both are views."""
    row = into.any(1, keepdims=True) | out.any(1, keepdims=True)
    into |= row
    if not back:
        out |= row
