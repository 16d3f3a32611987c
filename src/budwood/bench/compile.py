"""PyTorch with `torch.compile`, in inductor's C++."""

import copy
import os
import shutil
import sys

import torch
from torch import Tensor, nn

from ..core.registry import backends
from .backend import Backend, Run, torch_run


@backends.register("compile")
class Compile(Backend):
    """`fullgraph`, because a graph break or a spent compile limit would silently time eager mode instead."""

    in_reports = False

    def available(self) -> str | None:
        default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        compiler = os.environ.get("CXX", default)
        if shutil.which(compiler) is None:
            return f"torch.compile needs the C++ compiler {compiler}, which is not installed; or set CXX to another"
        return None

    def prepare(self, model: nn.Module, example: Tensor, threads: int) -> Run:
        copied = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)
        run = torch_run(torch.compile(copied, fullgraph=True, dynamic=False))
        run(example)
        return run
