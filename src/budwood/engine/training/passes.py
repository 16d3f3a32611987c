"""Passes of a dense network at a fixed mask through the engine, for a training that keeps the dense weights."""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .module import accelerate
from .sparse import SparseWeight


class Passes:
    """Calls `model` through the engine: its parameters stay the dense ones, and get the gradients of what `mask` keeps,
    zeros elsewhere; its batch norms follow. What the engine does not know goes through PyTorch.

    `mask`: parameter name -> bool tensor, True = kept; the pruned weights must be zero in every call.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        self.model = model
        self.twin = accelerate(copy.deepcopy(model), mask)
        layers = {n: m for n, m in self.twin.named_modules() if isinstance(m, SparseWeight)}
        self.kept = {f"{name}.weight": _where(layer) for name, layer in layers.items()}

    def __call__(self, images: Tensor) -> Tensor:
        self.twin.train(self.model.training)
        tensors: dict[str, Tensor] = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, kept in self.kept.items():
            tensors[name] = _in_order(tensors[name]).take(kept)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}  # of weights without zeros
        return functional_call(self.twin, tensors, (images,))  # type: ignore[no-any-return]


def _in_order(weight: Tensor) -> Tensor:
    """A weight as a vector, a convolution's as it stands in channels-last memory, which is read without a copy."""
    return (weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1)).reshape(-1)


def _where(layer: SparseWeight) -> Tensor:
    """Where the non-zeros stand in that vector."""
    dense = torch.arange(math.prod(layer.shape)).view(layer.shape)
    places = torch.empty(dense.numel(), dtype=torch.int64)
    places[_in_order(dense)] = torch.arange(dense.numel())
    return places[layer.index.long()]
