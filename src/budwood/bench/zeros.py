"""Random zeros in a network, so that times can be compared without a pruned checkpoint."""

import copy

import torch
from torch import nn


def with_random_zeros(model: nn.Module, sparsity: float, seed: int = 0) -> nn.Module:
    """A copy with this share of zeros in every convolution but the first (the stem) and depthwise ones.

    What is left of a layer is scaled by 1 / sqrt(1 - sparsity), so that activations keep their size and a wrong
    answer is still noticed. The same seed gives the same zeros.
    """
    copied = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    convolutions = [m for m in copied.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for layer in convolutions[1:]:
            if layer.groups == layer.in_channels and layer.groups > 1:
                continue
            flat = layer.weight.view(-1)
            gone = torch.randperm(flat.numel(), generator=random)[: round(sparsity * flat.numel())]
            flat[gone] = 0
            flat /= (1 - sparsity) ** 0.5
    return copied
