"""Random zeros in a network, so that times can be compared without a pruned checkpoint."""

import copy
from collections.abc import Mapping

import torch
from torch import nn


def with_random_zeros(model: nn.Module, sparsity: float | Mapping[str, float], seed: int = 0) -> nn.Module:
    """A copy with this share of zeros in every convolution but the first (the stem) and depthwise ones; or with the
    shares of the weights that `sparsity` names.

    What is left of a layer is scaled by 1 / sqrt(1 - sparsity), so that activations keep their size and a wrong
    answer is still noticed. The same seed gives the same zeros.
    """
    copied = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    shares = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(_thick(copied), sparsity)
    with torch.no_grad():
        for name, share in shares.items():
            flat = copied.get_parameter(name).view(-1)
            gone = torch.randperm(flat.numel(), generator=random)[: round(share * flat.numel())]
            flat[gone] = 0
            flat /= max(1 - share, 1e-3) ** 0.5
    return copied


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Weight's name -> layer, in the model's order; without those whose weight is made from other parameters."""
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    return {f"{name}.weight".lstrip("."): m for name, m in layers if isinstance(m.weight, nn.Parameter)}


def _thick(model: nn.Module) -> list[str]:
    """The weights of all convolutions but the first and depthwise ones."""
    layers = list(convolutions(model).items())[1:]
    return [name for name, layer in layers if layer.groups == 1 or layer.groups < layer.in_channels]
