"""What a backend is: something that runs a network's forward pass, and can be timed."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.checkpoint import Lineage
from ..core.task import Preprocessing
from ..models.export import to_onnx

Run = Callable[[Any], NDArray[np.float32]]
"""A batch (float32 tensor or array [N, 3, H, W]) -> logits [N, classes]."""


class Backend(ABC):
    """Registered with `@backends.register(name)`; made anew for every use."""

    tolerance: ClassVar[float] = 1e-3
    """Largest error against eager mode, as a share of the largest logit: room for float32 sums in another order
    through some hundred layers, and far below what a wrong layer makes. More for coarser numbers than float32."""
    in_reports: ClassVar[bool] = True
    """Whether every report measures it: not what takes long to prepare, or computes in coarser numbers."""

    def available(self) -> str | None:
        """None if it can run here; else the reason why not, in one line that says how to mend it."""
        return None

    @abstractmethod
    def prepare(self, model: nn.Module, example: Tensor, threads: int) -> Run:
        """A callable for batches of the shape of `example`, with all one-time work (compiling) done.

        `model` is left as it is. `threads` sets a backend's own thread pool; PyTorch's is the whole process's
        and is set by whoever measures. May raise anything that the library raises.
        """


def missing(extra: str, *modules: str) -> str | None:
    """The reason if one of these modules is not installed; nothing is imported."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed; pip install 'budwood[{extra}]'" if absent else None


def onnx_bytes(model: nn.Module, example: Tensor) -> bytes:
    """The network as ONNX for images of the example's size, in memory."""
    size = int(example.shape[-1])
    return to_onnx(model, Lineage(architecture="bench", num_classes=1, preprocessing=Preprocessing().at(size)))


def torch_run(forward: Callable[[Tensor], Tensor]) -> Run:
    """A forward pass of PyTorch's as a `Run`: inference mode, channels last."""

    def run(batch: Any) -> NDArray[np.float32]:
        with torch.inference_mode():
            images = torch.as_tensor(batch).contiguous(memory_format=torch.channels_last)
            return forward(images).numpy()

    return run
