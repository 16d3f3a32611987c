"""A training's whole state as one safetensors file, so that a killed run goes on exactly."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ..core.errors import UserError
from ..core.files import metadata_of, write_atomic


def save_state(path: Path, groups: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
    """Write groups of named tensors, and JSON facts, atomically."""
    tensors = {
        f"{g}:{name}": t.detach().cpu().contiguous().clone() for g, ts in groups.items() for name, t in ts.items()
    }
    write_atomic(path, safetensors.torch.save(tensors, metadata={"facts": json.dumps(facts)}))


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_state` wrote; UserError where the file is damaged."""
    data = path.read_bytes()
    try:
        facts = json.loads((metadata_of(data) or {})["facts"])
        tensors = safetensors.torch.load(data)
    except Exception:  # safetensors and json raise several kinds
        raise UserError(f"{path} is damaged; delete it to start this run again") from None
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition(":")
        groups.setdefault(group, {})[name] = tensor
    return groups, facts
