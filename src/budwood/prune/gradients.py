"""Gradients of the loss on images drawn for that alone: without a trace in the network, its statistics or its .grad."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import UserError
from ..core.pruner import Batches, Plan
from ..models.network import evaluating


def batches_of(plan: Plan, size: int, salt: int) -> Batches:
    """`plan.batches`, or a UserError where the method is given no images."""
    if plan.batches is None:
        raise UserError("this method looks at images: give --calibration IMAGES, or --data to train on as well")
    return plan.batches(size, salt)


def targets_for(model: nn.Module, images: Tensor, targets: Tensor, labelled: bool, random: torch.Generator) -> Tensor:
    """The classes (N,) that the loss asks for: the labels, or, where these mean nothing, classes drawn from the
    network's own answers. With these the mean of the squared gradients is the Fisher matrix proper."""
    if labelled:
        return targets
    with torch.no_grad():
        answers = model(images).float().softmax(1).cpu()
    return torch.multinomial(answers, 1, generator=random).flatten().to(images.device)


def gradients(
    model: nn.Module, names: list[str], plan: Plan, count: int, size: int, salt: int
) -> Iterator[list[Tensor]]:
    """`count` times the gradients of the mean cross entropy over a batch of `size` images, one tensor per name.

    In evaluation mode: batch norm uses its running statistics, dropout does nothing. `salt` picks other images and
    other drawn classes.
    """
    parameters = dict(model.named_parameters())
    wanted = [parameters[name] for name in names]
    random = plan.random(salt)
    batches = batches_of(plan, size, salt)
    with evaluating(model):
        for _ in range(count):
            images, labels = next(batches)
            targets = targets_for(model, images, labels, plan.labelled, random)
            with torch.enable_grad():  # not around the yield: a stream that is given up would leave it as it was here
                loss = F.cross_entropy(model(images).float(), targets)
                found = [g.detach() for g in torch.autograd.grad(loss, wanted, materialize_grads=True)]
            yield found
