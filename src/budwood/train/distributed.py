"""Several processes under torchrun. Without it every function here is the identity of one process."""

import os
from datetime import timedelta
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
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"  # for --device cpu there, too
        # The others wait while the first process evaluates, which may take longer than PyTorch's half an hour.
        dist.init_process_group(backend, timeout=timedelta(days=7))


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


def gathered(value: Any) -> list[Any]:
    """Every process's value, everywhere."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def meet() -> None:
    """Go on when every process has come here."""
    if world() > 1:
        dist.barrier()


def mask_from_first(mask: Mask) -> Mask:
    """Rank 0's mask, everywhere."""
    if world() == 1:
        return mask
    return Mask(from_first({name: mask[name] for name in mask}))


def agree(mask: Mask) -> None:
    """Raise UserError where the processes hold different masks."""
    if world() == 1:
        return
    if len(set(gathered(mask.digest()))) > 1:
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


@torch.no_grad()
def average_(parameters: list[nn.Parameter]) -> None:
    """Average the gradients of parameters that go through no wrapped module."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world() > 1 and gradients:
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        for gradient, mean in zip(gradients, together.div_(world()).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
