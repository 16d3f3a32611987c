"""What the classifier of a network sees of a task's images: computed once, for every head that is fitted to it."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.files import locked, write_atomic
from ..core.task import Split, Task
from ..engine.program import Program
from ..models.network import Network, check_linear_head
from ..train.data import in_order, on_device
from .crops import Crops, dataset

BATCH = 16
"""Images in a forward pass: of more the activations are too large for the allocator to keep, and the system clears
their memory anew for every layer, a tenth to a quarter of a pass."""

Features = tuple[Tensor, Tensor]
"""What the classifier sees (N, D) float32, and the class indices (N,), in the split's order."""

Forward = Callable[[Tensor], Tensor]


def features(
    network: Network,
    task: Task,
    splits: Sequence[Split],
    cache: Path | None = None,
    crops: Path | None = None,
    workers: int = 0,
    accelerate: bool = True,
) -> tuple[dict[Split, Features], str]:
    """The features of each split in eval mode, from the file SPLIT.safetensors in the folder `cache` if it is there;
    and what they went through.

    If not it is made, by one process while others wait for it; with `accelerate` through the engine, where it can be
    (see `backbone`). `crops` is the folder for decoded images; without it `workers` processes decode them. Raises
    UserError where the head is not linear or the file is damaged.
    """
    check_linear_head(network)
    found = functools.cache(lambda: backbone(network, accelerate))  # made only if a split lacks a file

    def made(split: Split) -> Features:
        images = dataset(task, split, network.lineage.preprocessing, crops)
        batches = images.batches(BATCH) if isinstance(images, Crops) else in_order(images, BATCH, workers)
        return _computed(found()[0], batches, next(network.module.parameters()).device)

    kept = {split: _kept(cache, task, split, made) for split in splits}
    return kept, found()[1] if found.cache_info().currsize else "an earlier run"


def backbone(network: Network, accelerate: bool = True) -> tuple[Forward, str]:
    """What stands before the classifier: images (N, 3, S, S) to what the classifier sees (N, D) float32; and what they
    go through.

    Compiled to the engine, which skips the zeros, where the network is on a CPU and the engine knows its operators;
    else PyTorch. The answers are the same but for the rounding of float32.
    """
    module = _Backbone(network).eval().to(memory_format=torch.channels_last)
    device = next(module.parameters()).device
    if not accelerate or device.type != "cpu":
        return module, "PyTorch"
    size = network.lineage.preprocessing.size
    try:
        return Program.from_module(module, torch.zeros(2, 3, size, size), torch.get_num_threads()), "the engine"
    except UserError as error:
        return module, f"PyTorch: {error}"


class _Backbone(nn.Module):
    """Runs the network and returns what its classifier was given; what comes after that counts for nothing."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module, self.head = network.module, network.head

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self.module.get_submodule(self.head).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self.module(images)
        finally:
            hook.remove()
        return seen[0].float()


def _kept(cache: Path | None, task: Task, split: Split, made: Callable[[Split], Features]) -> Features:
    """From the file, which is made if it is not there."""
    if cache is None:
        return made(split)
    path = cache / f"{split}.safetensors"
    if not path.exists():
        with locked(path.with_suffix(".lock"), wait=True):
            if not path.exists():
                found, targets = made(split)
                write_atomic(path, safetensors.torch.save({"features": found, "targets": targets}))
    return _read(path, list(task.targets(split)))


@torch.inference_mode()
def _seen(forward: Forward, pixels: Tensor) -> Tensor:
    return forward(pixels).cpu()


def _computed(forward: Forward, batches: Iterable[Any], device: torch.device) -> Features:
    seen: list[Tensor] = []
    targets: list[Tensor] = []
    for pixels, wanted in on_device(batches, device):
        seen.append(_seen(forward, pixels))
        targets.append(wanted.cpu())
    return torch.cat(seen), torch.cat(targets)


def _read(path: Path, targets: list[int]) -> Features:
    try:
        stored = safetensors.torch.load(path.read_bytes())
        found = stored["features"], stored["targets"]
    except Exception:  # safetensors raises several kinds
        raise UserError(f"{path} is damaged; delete it to have it made again") from None
    if len(found[0]) != len(targets) or found[1].tolist() != targets:
        raise UserError(f"{path} holds the features of other images; delete it to have it made again")
    return found
