"""Budwood prunes ImageNet networks, transfers them to other image tasks with the mask held, and runs them fast.

    from budwood import Checkpoint, Mask, full, linear, open_network
    program = budwood.compile("checkpoint.safetensors")

Nothing heavy is imported before it is used.
"""

import importlib
from typing import Any

_FACE = {
    "Checkpoint": "core.checkpoint",
    "Mask": "core.mask",
    "Program": "engine.program",
    "Pruner": "core.pruner",
    "Result": "core.result",
    "RunSpec": "core.spec",
    "Recipe": "core.spec",
    "Task": "core.task",
    "UserError": "core.errors",
    "accelerate": "engine.training.module",
    "compile": "compiling",
    "load_program": "engine.saved",
    "Network": "models.network",
    "open_network": "models.network",
    "export": "models.export",
    "Runner": "study.run",
    "full": "transfer.full",
    "linear": "transfer.linear",
}
__all__ = list(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'budwood' has no attribute {name!r}")
    return getattr(importlib.import_module(f"budwood.{_FACE[name]}"), name)
