"""Passes of a dense network at one mask through the engine, for a training that keeps the dense weights."""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .module import Accelerated, thin_
from .sparse import SparseWeight


class Passes:
    """Calls `model` through the engine: its parameters stay the dense ones, and get the gradients of what `mask` keeps,
    zeros elsewhere; its batch norms follow. A call that the engine does not know goes through PyTorch.

    `mask`: parameter name -> bool tensor, True = kept; the pruned weights must be zero in every call.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        self.model = model
        ours = [*model.parameters(), *model.buffers()]
        twin = copy.deepcopy(model, {id(tensor): tensor for tensor in ours})  # its own modules, the same tensors
        thin_(twin, mask)
        self.twin = Accelerated(twin)
        layers = {n: m for n, m in twin.named_modules() if isinstance(m, SparseWeight)}
        self.kept = {f"{name}.weight": _where(layer) for name, layer in layers.items()}
        self.others = [n for n, p in twin.named_parameters() if not p.is_contiguous()]  # weights without zeros

    @property
    def refusal(self) -> str:
        """Why nothing of the network goes through the engine; empty where something does."""
        return self.twin.refusal

    @property
    def refused(self) -> str:
        """Why the last call went through PyTorch; empty where it went through the engine."""
        return self.twin.refused

    def __call__(self, images: Tensor) -> Tensor:
        self.twin.train(self.model.training)
        ours = dict(self.model.named_parameters())
        tensors = {n: _in_order(ours[n]).take(kept) for n, kept in self.kept.items()}
        tensors |= {n: ours[n].contiguous() for n in self.others}
        return functional_call(self.twin, tensors, (images,))  # type: ignore[no-any-return]


def _in_order(weight: Tensor) -> Tensor:
    """A weight as a vector, a convolution's as it stands in channels-last memory, which is read without a copy."""
    return (weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1)).reshape(-1)


def _where(layer: SparseWeight) -> Tensor:
    """Where the non-zeros stand in that vector."""
    index, taps = layer.index.long(), math.prod(layer.shape[2:])
    if taps == 1:
        return index
    channels = layer.shape[1]
    row = torch.div(index, taps, rounding_mode="floor")
    out = torch.div(row, channels, rounding_mode="floor")
    return (out * taps + index - row * taps) * channels + row - out * channels
