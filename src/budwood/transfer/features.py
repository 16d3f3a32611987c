"""What the classifier of a network sees of a task's images: computed once, for every head that is fitted to it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.files import locked, write_atomic
from ..core.task import Split, Task
from ..models.network import Network, check_linear_head
from ..train.data import in_order, on_device
from .crops import Crops, dataset

BATCH = 16
"""Images in a forward pass: of more the activations are too large for the allocator to keep, and the system clears
their memory anew for every layer, a tenth to a quarter of a pass."""

Features = tuple[Tensor, Tensor]
"""What the classifier sees (N, D) float32, and the class indices (N,), in the split's order."""


def features(
    network: Network,
    task: Task,
    split: Split,
    cache: Path | None = None,
    crops: Path | None = None,
    workers: int = 0,
) -> Features:
    """The features of a split in eval mode, from the file SPLIT.safetensors in the folder `cache` if it is there.

    If not it is made, by one process while others wait for it. `crops` is the folder for decoded images; without it
    `workers` processes decode them. Raises UserError where the head is not linear or the file is damaged.
    """
    if cache is None:
        return _computed(network, task, split, crops, workers)
    path = cache / f"{split}.safetensors"
    if not path.exists():
        with locked(path.with_suffix(".lock"), wait=True):
            if not path.exists():
                made = _computed(network, task, split, crops, workers)
                write_atomic(path, safetensors.torch.save({"features": made[0], "targets": made[1]}))
    return _read(path, list(task.targets(split)))


def _computed(network: Network, task: Task, split: Split, crops: Path | None, workers: int) -> Features:
    check_linear_head(network)
    module = network.module.eval().to(memory_format=torch.channels_last)
    images = dataset(task, split, network.lineage.preprocessing, crops)
    batches: Iterable[Any] = images.batches(BATCH) if isinstance(images, Crops) else in_order(images, BATCH, workers)
    seen: list[Tensor] = []
    targets: list[Tensor] = []
    classifier = module.get_submodule(network.head)
    hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        with torch.inference_mode():
            for pixels, wanted in on_device(batches, next(module.parameters()).device):
                module(pixels)
                targets.append(wanted.cpu())
    finally:
        hook.remove()
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
