"""The region of a network as one function for PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...core.errors import UserError
from .plan import TrainingPlan

Keys = tuple[tuple[str, str], ...]  # (module, what)


def through(
    plan: TrainingPlan,
    x: Tensor,
    parameters: Mapping[tuple[str, str], Tensor],
    running: Mapping[tuple[str, str], Tensor],
    statistics: Mapping[str, Tensor],
) -> Tensor:
    """The features [N, ...] of images [N, C, H, W]; the images get a gradient where the plan has it.

    `running`: mean and variance of the norms that do not take the batch's. `statistics` [2, channels] are filled with
    mean and biased variance of the batch, for the others.
    """
    outputs: list[Any] = [None] * len(plan.outputs)
    for name, made in statistics.items():
        outputs[plan.output_of[name, "statistics"]] = made.numpy()
    inputs = _inputs(plan, running)
    inputs[0] = x.detach().contiguous().numpy()
    made = _Through.apply(plan, tuple(parameters), inputs, outputs, x, *parameters.values())
    assert isinstance(made, Tensor)
    return made


def _inputs(plan: TrainingPlan, tensors: Mapping[tuple[str, str], Tensor]) -> list[Any]:
    inputs: list[Any] = [None] * len(plan.inputs)
    for key, tensor in tensors.items():
        inputs[plan.input_of[key]] = tensor.detach().reshape(-1).numpy()
    return inputs


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, plan: TrainingPlan, keys: Keys, inputs: list[Any], outputs: list[Any], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        for key, tensor in zip(keys, parameters, strict=True):
            inputs[plan.input_of[key]] = tensor.detach().reshape(-1).numpy()
        features = torch.empty((plan.images, *plan.features))
        outputs[0] = features.numpy().reshape(-1)
        arena = plan.take()
        plan.forward(arena, inputs, outputs, torch.get_num_threads())
        if plan.gradients:
            ctx.plan, ctx.keys, ctx.arena, ctx.size = plan, keys, arena, x.shape
            ctx.save_for_backward(*parameters)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.arena is None:
            raise UserError("this forward pass has had its backward pass: call the network again")
        plan: TrainingPlan = ctx.plan
        arena, ctx.arena = ctx.arena, None
        given = dict(zip(ctx.keys, ctx.saved_tensors, strict=True))
        inputs = _inputs(plan, given)
        inputs[1] = gradient.float().contiguous().numpy()
        found = {key: torch.empty(plan.outputs[plan.output_of[key]][2]) for key in given}
        outputs: list[Any] = [None] * len(plan.outputs)
        for key, made in found.items():
            outputs[plan.output_of[key]] = made.numpy()
        to_image = torch.empty(ctx.size) if plan.to_image else None
        if to_image is not None:
            outputs[plan.output_of["", "image"]] = to_image.view(-1).numpy()
        plan.backward(arena, inputs, outputs, torch.get_num_threads())
        gradients = [_shaped(plan, key, made, given[key]) for key, made in found.items()]
        wanted = ctx.needs_input_grad[5:]
        return (None, None, None, None, to_image, *(g if w else None for g, w in zip(gradients, wanted, strict=True)))


def _shaped(plan: TrainingPlan, key: tuple[str, str], made: Tensor, like: Tensor) -> Tensor:
    """A depthwise convolution's gradient is of all its weights, of which some may be pruned."""
    index = plan.kept.get(key[0])
    return (made if index is None else made[index]).view_as(like)


@torch.no_grad()
def update_running(norm: nn.Module, statistics: Tensor, count: int) -> None:
    """Running mean and variance as torch.nn.BatchNorm2d keeps them, from the batch's mean and biased variance."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked is not None
    assert norm.running_mean is not None and norm.running_var is not None
    norm.num_batches_tracked += 1
    factor = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(statistics[0], factor)
    norm.running_var.lerp_(statistics[1] * (count / max(count - 1, 1)), factor)
