"""What a method has done so far, in files of `Plan.scratch`: a run that is broken off goes on from there."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..core.files import write_atomic


def store(path: Path | None, tensors: Mapping[str, Tensor]) -> None:
    """Keep the tensors; nothing without a path."""
    if path is not None:
        write_atomic(path, safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()}))


def stored(path: Path | None) -> dict[str, Tensor] | None:
    """What was kept there; None where there is nothing, or nothing that can be read."""
    if path is None or not path.exists():
        return None
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError):
        return None
