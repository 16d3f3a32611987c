"""What a graph means, said in plain PyTorch: slow, exact, and what everything faster is tested against.

Values are [N, C, H, W] or [N, C], of the dtype and on the device of the input; the weights are cast to them.
"""

from __future__ import annotations

from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from . import graph as g


def interpret(graph: g.Graph, x: Tensor | dict[str, Tensor]) -> list[Tensor]:
    """The graph's outputs for one input, or for a dictionary of them by name; each [N, C, H, W] or [N, C].

    Raises ValueError where names or shapes are not those of the graph.
    """
    values = dict(x) if isinstance(x, dict) else {next(iter(graph.inputs)): x}
    if values.keys() != graph.inputs.keys():
        raise ValueError(f"the graph's inputs are {list(graph.inputs)}, given are {list(values)}")
    for name, value in values.items():
        if tuple(value.shape[1:]) != graph.inputs[name]:
            raise ValueError(f"input {name}: {tuple(value.shape)} is not (N, *{graph.inputs[name]})")
    for node in graph:
        values[node.name] = run(node, *(values[name] for name in node.inputs))
    return [values[name] for name in graph.outputs]


@singledispatch
def run(node: g.Node, *inputs: Tensor) -> Tensor:
    """The value of one node."""
    raise NotImplementedError(f"{node.name}: no meaning is written down for {node.op}")


@run.register
def _(node: g.Conv, x: Tensor, residual: Tensor | None = None) -> Tensor:
    weight = _like(x, node.weight)
    y = F.conv2d(_pad(x, node.padding), weight, None, node.stride, 0, node.dilation, node.groups)
    if node.bias is not None:
        y = y + _like(x, node.bias)[:, None, None]
    if residual is not None:
        y = y + residual
    return activate(y, node.activation)


@run.register
def _(node: g.Linear, x: Tensor) -> Tensor:
    bias = None if node.bias is None else _like(x, node.bias)
    return activate(F.linear(x, _like(x, node.weight), bias), node.activation)


@run.register
def _(node: g.Affine, x: Tensor) -> Tensor:
    return activate(x * _per_channel(x, node.scale) + _per_channel(x, node.offset), node.activation)


@run.register
def _(node: g.Activate, x: Tensor) -> Tensor:
    return activate(x, node.activation)


@run.register
def _(node: g.Add, a: Tensor, b: Tensor) -> Tensor:
    return activate(a + _of_rank(a, b), node.activation)


@run.register
def _(node: g.Mul, a: Tensor, b: Tensor) -> Tensor:
    return activate(a * _of_rank(a, b), node.activation)


@run.register
def _(node: g.Concat, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, dim=1)


@run.register
def _(node: g.Select, x: Tensor) -> Tensor:
    return x[:, list(node.channels)]


@run.register
def _(node: g.Pool, x: Tensor) -> Tensor:
    """The padding is made explicit, and as much is added or cut off at the end as the last window needs."""
    _, rows, columns = node.shape(tuple(x.shape[1:]))
    kernel, dilation = node.kernel, node.dilation
    needed = [
        (out - 1) * stride + d * (k - 1) + 1
        for out, stride, k, d in zip((rows, columns), node.stride, kernel, dilation, strict=True)
    ]
    top, bottom, left, right = node.padding
    height, width = x.shape[2:]
    reach = (top, needed[0] - top - height, left, needed[1] - left - width)
    if node.kind == "max":
        return F.max_pool2d(_pad(x, reach, -torch.inf), kernel, node.stride, 0, dilation)
    # An average divides by the pixels of the window that lie in the image, or in the image and its padding; what
    # rounding up (`ceil`) adds beyond counts in neither.
    if node.count_padding:
        counted = _pad(
            x.new_ones(1, 1, height + top + bottom, width + left + right), (0, reach[1] - bottom, 0, reach[3] - right)
        )
    else:
        counted = _pad(x.new_ones(1, 1, height, width), reach)
    return _window_sums(_pad(x, reach), node) / _window_sums(counted, node)


@run.register
def _(node: g.AdaptivePool, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, node.size)


@run.register
def _(node: g.Pad, x: Tensor) -> Tensor:
    return _pad(x, node.padding, node.value)


@run.register
def _(node: g.Flatten, x: Tensor) -> Tensor:
    return x.flatten(1)


@run.register
def _(node: g.LayerNorm, x: Tensor) -> Tensor:
    scale, offset = _like(x, node.scale), _like(x, node.offset)
    return F.layer_norm(x.movedim(1, -1), scale.shape, scale, offset, node.eps).movedim(-1, 1)


@run.register
def _(node: g.Softmax, x: Tensor) -> Tensor:
    return torch.softmax(x, dim=1)


def activate(x: Tensor, activation: g.Activation) -> Tensor:
    """The activation of every element; NaN stays NaN."""
    match activation.kind:
        case "identity":
            return x
        case "relu":
            return x.clamp(min=0)
        case "relu6":
            return x.clamp(0, 6)
        case "leaky_relu":
            return F.leaky_relu(x, activation.slope)
        case "hardswish":
            return x * (x + 3).clamp(0, 6) / 6
        case "hardsigmoid":
            return (x + 3).clamp(0, 6) / 6
        case "silu":
            return F.silu(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "tanh":
            return torch.tanh(x)
        case "clamp":
            return x.clamp(activation.low, activation.high)
    raise NotImplementedError(f"no meaning is written down for the activation {activation.kind}")


def _like(x: Tensor, array: g.Array) -> Tensor:
    return torch.tensor(array, dtype=x.dtype, device=x.device)


def _per_channel(x: Tensor, array: g.Array) -> Tensor:
    return _like(x, array).reshape(-1, *[1] * (x.ndim - 2))


def _of_rank(a: Tensor, b: Tensor) -> Tensor:
    """`b` with as many dimensions as `a`: [N, C] <-> [N, C, 1, 1]."""
    if a.ndim == b.ndim:
        return b
    return b[:, :, None, None] if a.ndim == 4 else b.flatten(1)


def _pad(x: Tensor, edges: g.Edges, value: float = 0.0) -> Tensor:
    """Padding that is below zero cuts off."""
    top, bottom, left, right = edges
    return F.pad(x, (left, right, top, bottom), value=value)


def _window_sums(x: Tensor, node: g.Pool) -> Tensor:
    channels = x.shape[1]
    ones = x.new_ones(channels, 1, *node.kernel)
    return F.conv2d(x, ones, None, node.stride, 0, node.dilation, channels)
