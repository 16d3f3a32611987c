"""Gradients of the loss on images drawn for that alone: without a trace in the network, its statistics or its .grad."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import UserError
from ..core.modes import evaluating
from ..core.pruner import Batches, Plan


def batches_of(plan: Plan, size: int, salt: int) -> Batches:
    """`plan.batches`, or a UserError where the method is given no images."""
    if plan.batches is None:
        raise UserError("this method looks at images: give --calibration IMAGES, or --data to train on as well")
    return plan.batches(size, salt)


def answered(output: Tensor, labels: Tensor, labelled: bool) -> Tensor:
    """The classes (N,) that a loss asks for: the labels, or, where these mean nothing, the network's own answers.

    Its best ones: under classes drawn from what it gives them, gradients have a mean of zero.
    """
    return labels if labelled else output.detach().argmax(1)


def drawn(answers: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Classes (N,) and factors (N,) for their losses, with which the gradients have the outer products of the Fisher
    matrix proper: the expectation of g g^T over classes as probable as the network's `answers` (N, C) say.

    Drawn just so, a sure network has hardly any gradient for most images, and a large one for a few by chance. Here a
    class c comes in proportion to p_c |p - e_c|, its part in the matrix (as far as the logits tell), and its gradient
    is multiplied by the root of p_c over that. The sign, by chance too, keeps the gradients of a batch from adding up:
    under p their mean is zero.
    """
    p = answers.double()
    lengths = (p.square().sum(1, keepdim=True) - 2 * p + 1).clamp_min(1e-12).sqrt()
    q = p * lengths
    q /= q.sum(1, keepdim=True)
    classes = torch.multinomial(q, 1, generator=random)
    signs = 1 - 2 * torch.randint(2, (len(p),), generator=random)
    return classes.flatten(), (signs * (p.gather(1, classes) / q.gather(1, classes)).sqrt().flatten()).float()


def gradients(
    model: nn.Module, names: list[str], plan: Plan, count: int, size: int, salt: int, *, fisher: bool
) -> Iterator[tuple[list[Tensor], int]]:
    """`count` times the gradients of the mean cross entropy over a batch of `size` images, one tensor per name, and how
    many images these were: the last of an epoch are fewer.

    Where the labels mean nothing, `fisher` has losses drawn for the outer products of the gradients (`drawn`); without
    it, for their sum, the network's own answers stand in (`answered`). In evaluation mode: batch norm uses its running
    statistics, dropout does nothing. `salt` picks other images and other drawn classes.
    """
    parameters = dict(model.named_parameters())
    wanted = [parameters[name] for name in names]
    random = plan.random(salt)
    batches = batches_of(plan, size, salt)
    with evaluating(model):
        for _ in range(count):
            images, labels = next(batches)
            with torch.enable_grad():  # not around the yield: a stream that is given up would leave it as it was here
                output = model(images).float()
                if fisher and not plan.labelled:
                    classes, factors = drawn(output.detach().softmax(1).cpu(), random)
                    losses = F.cross_entropy(output, classes.to(output.device), reduction="none")
                    loss = (losses * factors.to(output.device)).mean()
                else:
                    loss = F.cross_entropy(output, answered(output, labels, plan.labelled))
                found = [g.detach() for g in torch.autograd.grad(loss, wanted, materialize_grads=True)]
            yield found, len(images)
