"""Networks that were never trained: their batch norm has no statistics yet."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.pruner import Plan
from .gradients import batches_of


def with_statistics(model: nn.Module, plan: Plan, size: int, salt: int, count: int = 8) -> nn.Module:
    """`model`, or a copy of it whose untouched batch norm has the statistics of `count` batches of `size` images.

    Without them a fresh network in evaluation mode is no network to measure: the activations of a ResNet-50 double
    with each of its blocks, those of an EfficientNet-B0 vanish (logits of 1e-14).
    """
    if not any(_untouched(module) for module in model.modules()):
        return model
    settled = copy.deepcopy(model).eval()
    for module in settled.modules():
        if _untouched(module):
            module.train()
            module.momentum = None  # type: ignore[assignment]  # the plain mean over all batches
    batches = batches_of(plan, size, salt)
    try:
        with torch.no_grad():
            for _ in range(count):
                settled(next(batches)[0])
    except ValueError:  # PyTorch's, of one image where a map is one pixel
        if size > 1:
            raise
        return with_statistics(model, plan, 2, salt, count)
    return settled.eval()


def _untouched(module: nn.Module) -> bool:
    """Batch norm as it was made: mean 0, variance 1. (The count of batches is missing in old checkpoints.)"""
    if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
        return False
    return not bool(module.running_mean.any()) and bool((module.running_var == 1).all())
