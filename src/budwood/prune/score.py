"""How much a weight matters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def magnitude(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Parameter name -> |w|."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().abs() for name in names}


def largest_pruned(weights: Iterable[Tensor], sparsity: float) -> float:
    """The |w| up to which weights would go if all together were pruned by size now; one of them at least."""
    sizes = torch.cat([weight.detach().abs().flatten().float() for weight in weights])
    return float(sizes.kthvalue(min(max(1, round(sparsity * len(sizes))), len(sizes))).values)
