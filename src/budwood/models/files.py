"""Weight files of other people's: read without running anything, prefixes, wrappers and known layouts taken off."""

import functools
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.errors import UserError
from ..core.files import metadata_of, read_bytes
from .published import Contents, bundle, deep_compression, npz, plain, sparseml
from .published.contents import IMAGENET

_Unsafe = torch.serialization.pickle.UnpicklingError
"""What torch.load raises for content it will not run."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
SIDE_CLASSIFIERS = ("aux1.", "aux2.", "AuxLogits.")
"""Of GoogLeNet and Inception: used in their training alone."""
COUNTED = "num_batches_tracked"
COUNTERS = ("n_averaged",)
"""Of an averaged model, beside its weights."""
SEEN_BESIDE_WEIGHTS = (
    "argparse.Namespace",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "optimization.lr_schedulers.CosineLR",
    "optimization.lr_schedulers.StageExponentialLR",
    "optimization.sgd.SGD",
    *(f"torch.optim.{name}" for name in ("adam.Adam", "adamw.AdamW", "rmsprop.RMSprop", "sgd.SGD")),
    *(
        f"torch.optim.lr_scheduler.{name}"
        for name in ("CosineAnnealingLR", "ExponentialLR", "LambdaLR", "MultiStepLR", "OneCycleLR", "StepLR")
    ),
)
"""What published checkpoints name beside their weights (AC/DC's the classes of optimiser and schedule, and its learning
rates as NumPy numbers). Each is read as an empty stand-in: nothing of that name is imported or called."""


def read(path: Path) -> Contents:
    """The tensors of a .pth (read with weights_only=True), .safetensors or .npz file, of TensorFlow's .index file with
    the data beside it, or of Deep Compression's .net file, and what its layout tells.

    Raises UserError where the file is missing, damaged, or holds anything but tensors.
    """
    data = bytes_of(path)
    if metadata_of(data) is not None:
        try:
            return _understood(safetensors.torch.load(data), path)
        except UserError:
            raise
        except Exception as error:  # safetensors raises several kinds for broken offsets and lengths
            raise UserError(f"{path} is a damaged safetensors file ({error}); make or copy it again") from None
    if deep_compression.fits(data, path):
        return deep_compression.read(data, str(path))
    if npz.fits(data):
        return _understood(npz.read(data, str(path)), path)
    if bundle.fits(data):
        return _understood(bundle.read(data, path), path)
    if ".data-0" in path.name or path.suffix == ".meta":
        raise UserError(f"{path} belongs to a checkpoint of TensorFlow's; name the .index file beside it")
    del data
    return _understood(_load(path), path)


def bytes_of(path: Path) -> bytes:
    """What is in a file; of TensorFlow's, which has none of its name, the message says which to name."""
    if not path.exists() and (index := Path(f"{path}{bundle.SUFFIX}")).exists():
        raise UserError(f"no file at {path}; of a checkpoint of TensorFlow's name {index}")
    return read_bytes(path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, as `read` understands it; what its masks prune is zero."""
    found = read(path)
    state = dict(found.state)
    for name, kept in found.kept.items():
        state[name] = state[name].masked_fill(~kept, 0)
    return state


class _StandIn:
    """In the place of a class or function that a file names, and of what it would make."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _load(path: Path) -> Any:
    names = (name.rpartition(".") for name in SEEN_BESIDE_WEIGHTS)
    stand_ins: list[Any] = [type(name, (_StandIn,), {"__module__": module}) for module, _, name in names]
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # PyTorch packs nothing: packed, it could be a thousand times its size
                if sum(info.file_size for info in file.infolist()) > path.stat().st_size:
                    raise ValueError("it claims more than it holds")
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _Unsafe as error:
        named = re.search(r"(?:GLOBAL|class|global) ([\w.]+\.\w+)", str(error))
        raise UserError(
            f"{path} holds more than plain tensors{f' ({named[1]})' if named else ''} or is damaged, and running what "
            "is in it is not safe; save model.state_dict() alone"
        ) from None
    except Exception:  # torch.load raises many kinds for what is not its own file
        raise UserError(f"{path} is not a readable .pth or .safetensors file; make or copy it again") from None


def _understood(content: Any, path: Path) -> Contents:
    beside: dict[str, Any] = {}
    key = ""
    wrappers = [key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
    if wrappers:
        # An average of weights that were pruned while it ran is small and not zero; SparseML has the mask in the zeros.
        key = "state_dict" if "recipe" in content and "state_dict" in wrappers else wrappers[0]
        beside = {name: value for name, value in content.items() if isinstance(name, str) and name != key}
        content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no state_dict; save model.state_dict()")
    state = {n: v for n, v in content.items() if isinstance(n, str) and isinstance(v, Tensor) and n not in COUNTERS}
    if not state:
        raise UserError(f"{path} holds no tensors; save model.state_dict()")
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise UserError(f"{path} holds {name!r} sparse, quantised or without values; save it as a plain tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path} is damaged ({name!r} claims more values than it stores); make or copy it again")
        if value.numel() == 0:  # another side of it may be of any size
            raise UserError(f"{path} holds {name!r} without a value in it; make or copy it again")
    wrapped = Contents(state, str(path), beside)
    if "model_config" in beside or "recipe" in beside:  # AC/DC's and the study's files, SparseML's
        wrapped = replace(wrapped, preprocessing=IMAGENET, method=sparseml.method_of(beside.get("recipe")))
    if others := ", ".join(other for other in wrappers if other != key):
        wrapped = wrapped.noted(f"{key} was read; the file also holds {others}")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith(SIDE_CLASSIFIERS)}
    if not any(name.endswith(COUNTED) for name in state):  # PyTorch has counted batches since its version 0.4.1
        means = [name.removesuffix("running_mean") for name in state if name.endswith(".running_mean")]
        state |= {f"{name}{COUNTED}": torch.tensor(0) for name in means}
    return plain(replace(wrapped, state=state, stored=wrapped))


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
