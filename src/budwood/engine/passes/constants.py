"""Which channels are one number, whatever the image: those that a pruned network makes of zeros only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..graph import (
    Activate,
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    Graph,
    Linear,
    Mul,
    Node,
    Pad,
    Pool,
    Select,
)
from .rewrite import bias_of, groups_of, per_weight, taps

Numbers = NDArray[np.float64]


def constants(graph: Graph) -> dict[str, Numbers]:
    """Value -> [C]: the number that the channel holds at every pixel; NaN where it is not known to be one.

    A row of zeros, a scale of zero and a product with zero count as constant, though of infinity or NaN they would
    make NaN. That is the one way in which a pruned network may differ from the dense one with zeros.
    """
    known = {name: np.full(shape[0], np.nan) for name, shape in graph.inputs.items()}
    for node in graph:
        with np.errstate(all="ignore"):
            made = _of(node, graph, known)
        made[~np.isfinite(made)] = np.nan
        known[node.name] = made
    return known


def usable(node: Conv | Linear, known: Numbers) -> NDArray[np.bool_]:
    """[C_in]: constants that can go into the bias. Padding puts zeros beside the number, so it has to be zero."""
    if isinstance(node, Conv) and any(node.padding):
        return known == 0
    return np.isfinite(known)


def contribution(node: Conv | Linear, known: Numbers) -> Numbers:
    """[C_out]: what the usable constants add to each output."""
    here = np.where(usable(node, known), known, 0.0)
    columns = np.flatnonzero(here)
    if not len(columns):
        return np.zeros(len(node.weight))
    if groups_of(node) == 1:  # the usual case, where weights are many and constants few
        return node.weight[:, columns].reshape(len(node.weight), len(columns), -1).sum(2, np.float64) @ here[columns]
    return (node.weight * per_weight(here, node)).sum(axis=tuple(range(1, node.weight.ndim)))


def _of(node: Node, graph: Graph, known: dict[str, Numbers]) -> Numbers:
    count = graph.shapes[node.name][0]
    first = known[node.inputs[0]]
    match node:
        case Conv() | Linear():
            return _of_rows(node, known)
        case Affine():
            held = np.where(node.scale == 0, node.offset, first * node.scale + node.offset)
            return activated(held, node.activation)
        case Activate():
            return activated(first.copy(), node.activation)
        case Add() | Mul():
            return _of_pair(node, graph, known)
        case Concat():
            return np.concatenate([known[name] for name in node.inputs])
        case Select():
            return first[list(node.channels)]
        case Flatten():
            return np.repeat(first, count // len(first))
        case AdaptivePool():
            return first.copy()
        case Pad():
            return first.copy() if not any(node.padding) else np.where(first == node.value, first, np.nan)
        case Pool():
            return _of_pool(node, first)
    return np.full(count, np.nan)  # LayerNorm and Softmax mix the channels


def _of_rows(node: Conv | Linear, known: dict[str, Numbers]) -> Numbers:
    """A row is constant if all it reads is."""
    first = known[node.inputs[0]]
    moving = ~usable(node, first)
    reads = taps(node.weight) & per_weight(moving, node).reshape(-1, node.weight.shape[1])
    value = bias_of(node) + contribution(node, first)
    if len(node.inputs) > 1:
        value = value + known[node.inputs[1]]
    return activated(np.where(reads.any(1), np.nan, value), node.activation)


def _of_pair(node: Add | Mul, graph: Graph, known: dict[str, Numbers]) -> Numbers:
    a, b = (known[name] for name in node.inputs)
    if len(b) != len(a):  # one map for all channels
        b = np.full(len(a), b[0])
    if isinstance(node, Add):
        return activated(a + b, node.activation)
    return activated(np.where((a == 0) | (b == 0), 0.0, a * b), node.activation)


def _of_pool(node: Pool, first: Numbers) -> Numbers:
    """A window of equal numbers has their maximum and average, as long as it holds one and no other."""
    if not any(node.padding):
        return first.copy()
    if node.kind == "average" and node.count_padding:
        return np.where(first == 0, 0.0, np.nan)
    # With gaps between its taps, a window could fall into the padding altogether.
    return first.copy() if node.dilation == (1, 1) else np.full_like(first, np.nan)


def activated(x: Numbers, activation: Activation) -> Numbers:
    """The activation of every number; NaN stays NaN."""
    match activation.kind:
        case "relu":
            return np.maximum(x, 0)
        case "relu6":
            return np.clip(x, 0, 6)
        case "clamp":
            return np.clip(x, activation.low, activation.high)
        case "leaky_relu":
            return np.where(x < 0, x * activation.slope, x)
        case "hardsigmoid":
            return np.clip(x + 3, 0, 6) / 6
        case "hardswish":
            return x * np.clip(x + 3, 0, 6) / 6
        case "sigmoid":
            return 1 / (1 + np.exp(-x))
        case "silu":
            return x / (1 + np.exp(-x))
        case "tanh":
            return np.tanh(x)
        case "gelu":
            return x * np.array([math.erfc(-v / math.sqrt(2)) for v in x]) / 2
        case "gelu_tanh":
            return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        case "identity":
            return x
    raise NotImplementedError(f"no meaning is written down for the activation {activation.kind}")
