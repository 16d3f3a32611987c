"""SGD and its learning rate, step by step."""

import math

import torch
from torch import nn

from ..core.mask import Mask
from ..core.spec import Recipe


def sgd(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """At a 0-based step. Cosine: to zero over the whole training, after a linear warm-up. Step: a tenth after every
    `step_epochs`, from the epoch after it on, as the study's code does (with 50: from the 0-based epochs 51, 101)."""
    epoch = step // steps_per_epoch
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** (max(epoch - 1, 0) // recipe.step_epochs)
    rest = max(1, recipe.epochs * steps_per_epoch - warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / rest))


def forget_revived(optimizer: torch.optim.Optimizer, model: nn.Module, earlier: Mask, now: Mask) -> None:
    """Zero the optimizer's memory of every weight that is kept now and was not before."""
    parameters = dict(model.named_parameters())
    for name, revived in now.revived_since(earlier).items():
        for value in optimizer.state.get(parameters[name], {}).values():
            if isinstance(value, torch.Tensor) and value.shape == revived.shape:
                value.masked_fill_(revived.to(value.device), 0)
