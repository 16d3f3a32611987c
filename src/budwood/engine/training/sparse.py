"""Layers whose parameter is the vector of their non-zeros; elsewhere they look like the dense ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..graph import Edges, Pair


def pair(value: Any) -> Pair:
    a, b = (value, value) if isinstance(value, int) else value
    return int(a), int(b)


def same_edges(plane: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Edges:
    """TensorFlow's padding "same": the output is of ceil(size / stride), an odd pixel goes below and to the right."""

    def along(axis: int) -> tuple[int, int]:
        reach = (-(-plane[axis] // stride[axis]) - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        pad = max(reach - plane[axis], 0)
        return pad // 2, pad - pad // 2

    (top, bottom), (left, right) = along(0), along(1)
    return top, bottom, left, right


def is_same(conv: nn.Module) -> bool:
    """Whether this is timm's convolution with TensorFlow's padding."""
    return type(conv).__name__ == "Conv2dSame"


class SparseWeight(nn.Module):
    """A layer whose `weight` is the vector of its non-zeros, in the order in which they stand in the dense weight.

    A state dict holds the dense weight, of `shape`, under the same name.
    """

    index: Tensor
    weight: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, kept: Tensor) -> None:
        super().__init__()
        self.shape = tuple(layer.weight.shape)
        index = kept.flatten().nonzero()[:, 0]
        self.register_buffer("index", index.int(), persistent=False)
        trainable = layer.weight.requires_grad
        self.weight = nn.Parameter(layer.weight.detach().flatten()[index], requires_grad=trainable)
        self.bias = layer.bias

    def dense(self) -> Tensor:
        """The weight with its zeros; gradients flow to the non-zeros."""
        zeros = self.weight.new_zeros(math.prod(self.shape))
        return zeros.index_put((self.index.long(),), self.weight).view(self.shape)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.dense() if keep_vars else self.dense().detach()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        key = f"{prefix}weight"
        given = state_dict.get(key)
        if given is not None:
            if tuple(given.shape) != self.shape:
                errors.append(f"size mismatch for {key}: {tuple(given.shape)} given, {self.shape} wanted")
                return
            kept = given.flatten()[self.index.long()]
            if torch.count_nonzero(given) != torch.count_nonzero(kept):
                errors.append(f"{key}: weights that are not zero where this network's mask has zeros")
                return
            state_dict = {**state_dict, key: kept}
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)


class SparseConv2d(SparseWeight):
    """A convolution of non-zeros.

    Called by itself it computes with PyTorch's dense convolution, in any precision and on any device: this is what the
    engine is held against.
    """

    def __init__(self, conv: nn.Conv2d, kept: Tensor) -> None:
        super().__init__(conv, kept)
        self.kernel_size = (self.shape[2], self.shape[3])
        self.stride, self.dilation, self.groups = pair(conv.stride), pair(conv.dilation), conv.groups
        self.same = is_same(conv)
        self.padding = (0, 0) if self.same else pair(conv.padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            top, bottom, left, right = same_edges(pair(x.shape[2:]), self.kernel_size, self.stride, self.dilation)
            x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.dense(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{self.shape}, {self.weight.numel()} non-zeros, stride={self.stride}, groups={self.groups}"
