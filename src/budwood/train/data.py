"""Batches in an order that depends on seed and epoch alone, so that a run can go on in the middle of one."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..core.errors import UserError


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed out of several numbers; near ones give unrelated seeds."""
    value = 0x9E3779B97F4A7C15
    for part in parts:
        value = (value ^ (part + 1)) * 0xBF58476D1CE4E5B9 % 2**64
        value ^= value >> 29
    return value >> 1


def batch_plan(
    length: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1, *, share: float = 0.5
) -> list[list[int]]:
    """Indices of every batch of one process in one epoch. A last batch of less than `share` of the size is left out:
    its few images would have a whole step, and a tenth of the batch norm statistics that an epoch ends with; and one
    of a single image, which batch norm cannot train on. Every process gets the same number of batches."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    order = torch.randperm(length, generator=generator).tolist()
    order = order[: length - length % world] if length >= world else order * world
    mine = order[rank::world]
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    least = min(batch_size, max(2, batch_size * share))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < least else batches


class _Told(Dataset[Any]):
    """A data set that gives what a user must read in place of a batch: PyTorch would tell it with a traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            return [self.dataset[index] for index in indices]
        except UserError as error:
            return UserError(str(error))


def _collate(samples: Any) -> Any:
    return samples if isinstance(samples, UserError) else default_collate(samples)


class Loader(DataLoader[Any]):
    """Raises UserError where an image cannot be read."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def loader(dataset: Dataset[Any], batches: list[list[int]], workers: int) -> Loader:
    """Batches as planned. Its own generator: the loader must not use up the global one's numbers."""
    return Loader(
        _Told(dataset),
        collate_fn=_collate,
        batch_sampler=batches,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
        persistent_workers=False,
    )


def in_order(dataset: Dataset[Any], batch_size: int, workers: int) -> Loader:
    """Every image once, in order."""
    length = len(dataset)  # type: ignore[arg-type]
    return loader(dataset, [list(range(i, min(i + batch_size, length))) for i in range(0, length, batch_size)], workers)


def on_device(batches: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (N, 3, H, W) float32 channels-last, and class indices (N,)."""
    for images, targets in batches:
        yield images.to(device, memory_format=torch.channels_last), targets.to(device)


def batches_from(
    dataset: Dataset[Any], seed: int, workers: int, device: torch.device
) -> Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]:
    """What `Plan.batches` is: `batches(size, salt)` goes through `dataset` again and again, in orders of their own."""

    def draw(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            planned = batch_plan(len(dataset), size, mixed_seed(seed, salt), epoch)  # type: ignore[arg-type]
            yield from on_device(loader(dataset, planned, workers), device)

    return draw
