"""Several processes under torchrun. Without it every function here is the identity of one process."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..core.errors import UserError
from ..core.mask import Mask


def join() -> None:
    """Join the process group that torchrun's environment names; nothing without torchrun."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap(model: nn.Module) -> nn.Module:
    """Gradients averaged over the processes, buffers as rank 0 has them."""
    return DistributedDataParallel(model) if world() > 1 else model


def unwrapped(name: str) -> str:
    """A parameter's name as the wrapped module knows it."""
    return f"module.{name}" if world() > 1 else name


def from_first(value: Any) -> Any:
    """Rank 0's value, everywhere."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mask_from_first(mask: Mask) -> Mask:
    """Rank 0's mask, everywhere."""
    if world() == 1:
        return mask
    return Mask(from_first({name: mask[name] for name in mask}))


def agree(mask: Mask) -> None:
    """Raise UserError where the processes hold different masks."""
    if world() == 1:
        return
    digests: list[Any] = [None] * world()
    dist.all_gather_object(digests, mask.digest())
    if len(set(digests)) > 1:
        raise UserError("the processes hold different masks: the method's update depends on more than the gradients")


@torch.no_grad()
def weights_from_first_(model: nn.Module) -> None:
    """Rank 0's weights, everywhere: what a method computed for itself may differ in the last bits."""
    if world() > 1:
        for parameter in model.parameters():
            dist.broadcast(parameter, src=0)


@torch.no_grad()
def statistics_from_first_(model: nn.Module) -> None:
    """Rank 0's buffers, everywhere. Between two forward passes every process has batch norm statistics of its own."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def average_(parameters: list[nn.Parameter]) -> None:
    """Average the gradients of parameters that the wrapped module does not have (a method's own)."""
    for parameter in parameters:
        if world() > 1 and parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(world())
