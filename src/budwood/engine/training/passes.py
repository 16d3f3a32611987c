"""Passes of a dense network at a fixed mask through the engine, for a training that keeps the dense weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .module import accelerate
from .sparse import SparseConv2d


class Passes:
    """Calls `model` through the engine: its parameters stay the dense ones, and get the gradients of what `mask` keeps,
    zeros elsewhere; its batch norms follow. What the engine does not know goes through PyTorch.

    `mask`: parameter name -> bool tensor, True = kept; the pruned weights must be zero in every call.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        self.model = model
        self.twin = accelerate(copy.deepcopy(model), mask)
        convs = {n: m for n, m in self.twin.named_modules() if isinstance(m, SparseConv2d)}
        self.kept = {f"{name}.weight": _where(conv) for name, conv in convs.items()}

    def __call__(self, images: Tensor) -> Tensor:
        self.twin.train(self.model.training)
        tensors: dict[str, Tensor] = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, kept in self.kept.items():
            tensors[name] = tensors[name].permute(0, 2, 3, 1).reshape(-1).take(kept)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}  # of weights without zeros
        return functional_call(self.twin, tensors, (images,))  # type: ignore[no-any-return]


def _where(conv: SparseConv2d) -> Tensor:
    """Where the non-zeros stand in a weight in channels-last memory, which is then read without being copied."""
    out, channels, height, width = conv.shape
    places = torch.arange(out * height * width * channels).view(out, height, width, channels)
    return places.permute(0, 3, 1, 2).flatten()[conv.index.long()]
