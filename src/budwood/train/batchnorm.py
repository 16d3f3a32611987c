"""Batch norm statistics made anew after weights were taken out at once: without it accuracy collapses."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..core.modes import evaluating
from .data import batch_plan, loader, on_device


@torch.no_grad()
def recalibrate(
    model: nn.Module, images: Dataset[Any], count: int = 1000, batch_size: int = 64, workers: int = 0
) -> int:
    """Set running means and variances to the average over up to `count` images; weights stay. No labels are used.

    Returns the images used; 0 where the network has no batch norm.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
    plan = batch_plan(len(images), batch_size, seed=0, epoch=0)  # type: ignore[arg-type]
    plan = plan[: max(1, count // batch_size)]
    device = next(model.parameters()).device
    with evaluating(model):
        for norm in norms:
            norm.train()
        for batch, _ in on_device(loader(images, plan, workers), device):
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return sum(len(indices) for indices in plan)
