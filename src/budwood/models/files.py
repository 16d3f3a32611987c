"""Plain weight files of other people's: read without running anything, prefixes and wrappers taken off."""

import functools
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.errors import UserError
from ..core.files import metadata_of, read_bytes

_Unsafe = torch.serialization.pickle.UnpicklingError
"""What torch.load raises for content it will not run."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
SIDE_CLASSIFIERS = ("aux1.", "aux2.", "AuxLogits.")
"""Of GoogLeNet and Inception: used in their training alone."""


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
    return {name: value for name, value in state.items() if not name.startswith(SIDE_CLASSIFIERS)}


class _WithoutMemory(TorchFunctionMode):
    """Parameters are made on the meta device and not initialised, which even there takes most of the time. Not
    everything, as under torch.device("meta"): RegNet computes its widths with tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        changed = args[0] if args else kwargs.get("tensor")
        in_place = func.__name__.endswith("_") and not func.__name__.endswith("__")
        if in_place and isinstance(changed, Tensor) and changed.is_meta:
            return changed
        return func(*args, **kwargs | ({"device": "meta"} if func is torch.empty else {}))


def recognise(state: dict[str, Tensor], where: str) -> str:
    """The torchvision network whose names and shapes these are but for the number of classes; UserError where none
    fits."""
    given = {name: tuple(value.shape) for name, value in state.items()}
    for name in torchvision.models.list_models(module=torchvision.models):
        if "vit" not in name and "swin" not in name and _fits(given, _shapes(name)):
            return f"torchvision:{name}"
    raise UserError(
        f"{where} is not the state_dict of a torchvision network; name its architecture before it: timm:NAME@{where}"
    )


@functools.cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Of a torchvision network with 1000 classes."""
    extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with _WithoutMemory():
        module = torchvision.models.get_model(name, weights=None, **extra)
    return {n: tuple(t.shape) for n, t in module.state_dict().items()}


def _fits(given: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> bool:
    """True if nothing differs but the outputs of one layer that has 1000."""
    if given.keys() != wanted.keys():
        return False
    other = [n for n in wanted if given[n] != wanted[n]]
    layers, outputs = {n.rpartition(".")[0] for n in other}, {given[n][:1] for n in other}
    return len(layers) <= 1 and len(outputs) <= 1 and all((1000, *given[n][1:]) == wanted[n] for n in other)
