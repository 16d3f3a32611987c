"""Out of Budwood: dense weights for plain torchvision or timm, and ONNX with zeros, classes and preprocessing in it."""

import contextlib
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from ..core.checkpoint import Lineage
from ..core.errors import UserError
from ..core.files import write_atomic
from ..core.modes import evaluating
from ..engine.from_onnx.file import with_properties
from .network import Network


def export(network: Network, path: Path) -> None:
    """Write `path` by its suffix: .pth or .safetensors (a dense state_dict), or .onnx.

    Raises UserError for another suffix or a missing library.
    """
    state = {name: t.detach().cpu().contiguous().clone() for name, t in network.module.state_dict().items()}
    if path.suffix in (".pth", ".pt"):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())
    elif path.suffix == ".safetensors":
        metadata = {"format": "pt", "lineage": network.lineage.model_dump_json()}
        write_atomic(path, safetensors.torch.save(state, metadata=metadata))
    elif path.suffix == ".onnx":
        write_atomic(path, to_onnx(network.module, network.lineage))
    else:
        raise UserError(f"cannot export to {path.name}: end its name in .pth, .safetensors or .onnx")


def to_onnx(module: nn.Module, lineage: Lineage) -> bytes:
    """The network in eval mode as an ONNX model: input `images` (batch, 3, size, size), output `logits`."""
    # torch.onnx needs them, and says so only deep inside.
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("onnx and onnxscript are not installed; pip install 'budwood[onnx]'")
    size = lineage.preprocessing.size
    with evaluating(module), tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")
        with _quiet():
            torch.onnx.export(
                module,
                (torch.zeros(2, 3, size, size),),
                file,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
            )
        data = Path(file).read_bytes()
    properties = {
        "classes": json.dumps(lineage.classes),
        "preprocessing": lineage.preprocessing.model_dump_json(),
        "architecture": lineage.architecture,
        "method": lineage.method,
        "task": lineage.task or "",
    }
    return with_properties(data, properties)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress lines and deprecation warnings, which say nothing to a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
