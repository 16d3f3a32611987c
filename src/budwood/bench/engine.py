"""Budwood's own engine, which skips the zeros."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.registry import backends
from ..engine import native
from ..engine.program import Program
from .backend import Backend, Run


@backends.register("engine")
class Engine(Backend):
    def available(self) -> str | None:
        try:
            native.instruction_set()
        except UserError as error:
            return str(error)
        return None

    def prepare(self, model: nn.Module, example: Tensor, threads: int) -> Run:
        program = Program.from_module(model, example, threads)

        def run(batch: Any) -> NDArray[np.float32]:
            answers: NDArray[np.float32] = program(np.ascontiguousarray(batch, np.float32))
            return answers

        run(example)
        return run
