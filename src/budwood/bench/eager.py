"""PyTorch as it is: the reference that every other backend has to agree with."""

import copy

import torch
from torch import Tensor, nn

from ..core.registry import backends
from .backend import Backend, Run, torch_run


@backends.register("eager")
class Eager(Backend):
    """Eager mode in channels-last layout, which is the faster one for convolutions on CPUs."""

    def prepare(self, model: nn.Module, example: Tensor, threads: int) -> Run:
        run = torch_run(copy.deepcopy(model).eval().to(memory_format=torch.channels_last))
        run(example)
        return run
