"""Plain weight files of other people's: read without running anything, prefixes and wrappers taken off."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from ..core.checkpoint import metadata_of, read_bytes
from ..core.errors import UserError

_Unsafe = torch.serialization.pickle.UnpicklingError
"""What torch.load raises for content it will not run."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state_dict in a .pth (read with weights_only=True) or .safetensors file.

    Raises UserError where the file is missing, damaged, or holds anything but tensors.
    """
    data = read_bytes(path)
    if metadata_of(data) is not None:
        try:
            return _unwrapped(safetensors.torch.load(data), path)
        except UserError:
            raise
        except Exception as error:  # safetensors raises several kinds for broken offsets and lengths
            raise UserError(f"{path} is a damaged safetensors file ({error}); make or copy it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _Unsafe:
        raise UserError(
            f"{path} holds more than plain tensors (or is damaged), and running what is in it is not safe; "
            "save model.state_dict() alone"
        ) from None
    except Exception:  # torch.load raises many kinds for what is not its own file
        raise UserError(f"{path} is not a readable .pth or .safetensors file; make or copy it again") from None
    return _unwrapped(content, path)


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no state_dict; save model.state_dict()")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path} holds no tensors; save model.state_dict()")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def classes_of(state: dict[str, Tensor]) -> int:
    """Classes of a classifier, from the last weight with at least two dimensions."""
    weights = [value for value in state.values() if value.ndim >= 2]
    if not weights:
        raise UserError("these weights hold no convolution and no linear layer")
    return int(weights[-1].shape[0])


def recognise(state: dict[str, Tensor], where: str) -> str:
    """The torchvision network whose names and shapes these are; UserError where none fits."""
    given = {name: tuple(value.shape) for name, value in state.items()}
    classes = classes_of(state)
    for name in torchvision.models.list_models(module=torchvision.models):
        if "vit" in name or "swin" in name or "maxvit" in name:
            continue
        with torch.device("meta"):
            extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
            module = torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)
        if given == {n: tuple(t.shape) for n, t in module.state_dict().items()}:
            return f"torchvision:{name}"
    raise UserError(
        f"{where} is not the state_dict of a torchvision network; name its architecture before it: timm:NAME@{where}"
    )
