"""SGD and its learning rate, step by step."""

import math

import torch
from torch import nn

from ..core.mask import Mask
from ..core.spec import Recipe


def sgd(decayed: list[nn.Parameter], others: list[nn.Parameter], recipe: Recipe) -> torch.optim.SGD:
    """`others` have no weight decay."""
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=recipe.lr, momentum=recipe.momentum)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, epochs: int | None = None) -> float:
    """At a 0-based step: after a linear warm-up the highest, or along a cosine to zero; times gamma from each milestone
    on. `epochs` of the schedule, where they are not the recipe's."""
    epochs = recipe.epochs if epochs is None else epochs
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    rate = recipe.lr * recipe.gamma ** sum(step // steps_per_epoch >= epoch for epoch in recipe.milestones)
    if recipe.schedule == "constant":
        return rate
    rest = max(1, epochs * steps_per_epoch - warmup)
    return rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / rest))


def forget_revived(optimizer: torch.optim.Optimizer, model: nn.Module, earlier: Mask, now: Mask) -> None:
    """Zero the optimizer's memory of every weight that is kept now and was not before."""
    parameters = dict(model.named_parameters())
    for name, revived in now.revived_since(earlier).items():
        for value in optimizer.state.get(parameters[name], {}).values():
            if isinstance(value, torch.Tensor) and value.shape == revived.shape:
                value.masked_fill_(revived.to(value.device), 0)
