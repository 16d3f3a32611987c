"""Decoded images kept on disk: what evaluation cuts out of each, for every network that is shown images of that shape.

A file holds uint8 (N, size, size, 3) as .npy and is read as a memory map, so it takes N * size**2 * 3 bytes of disk
(150 kB an image at 224 pixels) and hardly any memory. Mean and deviation are applied afterwards: networks that differ
in nothing else share it. Any of these files may be deleted; it is made again when it is next needed.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap, write_array_header_1_0
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..core.errors import UserError
from ..core.files import locked
from ..core.spec import COMPONENT_VERSIONS
from ..core.task import Preprocessing, Split, Task
from ..tasks.images import transforms

MARGIN = 2 * 2**30
"""Bytes of disk that stay free: crops that would take of them are not kept."""
CHUNK = 64
"""Images that are decoded before they are written."""


class Crops(Dataset[Any]):
    """One split as evaluation sees it, as (float32 (3, size, size), class index).

    `pixels` is uint8 (N, size, size, 3). An index may be a list of them, which gives (B, 3, size, size), channels last.
    """

    def __init__(self, pixels: np.ndarray, targets: Sequence[int], preprocessing: Preprocessing) -> None:
        self.pixels, self.targets = pixels, torch.tensor(targets)
        self.normalise = _halves(preprocessing)[1]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.array(self.pixels[index]))
        return self.normalise(pixels.movedim(-1, -3)), self.targets[index]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order; faster than a loader, which takes them one by one."""
        for start in range(0, len(self), size):
            yield self[list(range(start, min(start + size, len(self))))]


def dataset(task: Task, split: Split, preprocessing: Preprocessing, folder: Path | None) -> Dataset[Any]:
    """What `task.load(split, transforms(preprocessing, train=False))` is, to the bit, from a file below `folder`.

    The file is made if it is missing or damaged, by one process while others wait for it. There is none without a
    folder, or where the disk is nearly full. Raises UserError where an image or the file cannot be read or written.
    """
    plain = task.load(split, transforms(preprocessing, train=False))
    if folder is None:
        return plain
    targets, size = list(task.targets(split)), preprocessing.size
    shape, version = (len(targets), size, size, 3), COMPONENT_VERSIONS["transforms"]
    how = f"{preprocessing.resize}-{size}-{preprocessing.interpolation}-v{version}"
    path = folder / f"{task.digest()[:16]}-{split}-{how}.npy"
    if (pixels := _read(path, shape)) is None:
        with locked(path.with_suffix(".lock"), wait=True):
            if (pixels := _read(path, shape)) is None:
                if shutil.disk_usage(folder).free < np.prod(shape) + MARGIN:
                    return plain
                _write(path, shape, decoded(task.load(split, _halves(preprocessing)[0])))
                pixels = _read(path, shape)
    assert pixels is not None
    return Crops(pixels, targets, preprocessing)


def decoded(images: Dataset[Any]) -> Iterator[np.ndarray]:
    """The images of (PIL image, target) as uint8 (up to CHUNK, height, width, 3), in order.

    Pillow lets go of Python's lock while it decodes and resizes, so as many threads do it as PyTorch would take.
    """
    length = len(images)  # type: ignore[arg-type]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, length, CHUNK):
            part = range(start, min(start + CHUNK, length))
            yield np.stack(list(pool.map(lambda i: np.asarray(images[i][0]), part)))


def _halves(preprocessing: Preprocessing) -> tuple[v2.Compose, Callable[[Tensor], Tensor]]:
    """The evaluation transform in two: from image to crop, and from uint8 (..., 3, size, size) to a network's input."""
    *crop, _, normalise = transforms(preprocessing, train=False).transforms
    return v2.Compose(crop), normalise


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The stored array; None where there is none, or not one of this shape."""
    try:
        found = open_memmap(path, mode="r")
    except Exception:  # numpy raises several kinds
        return None
    return found if found.shape == shape and found.dtype == np.uint8 else None


def _write(path: Path, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> None:
    """Write an array part by part, as `core.files.write_atomic` would; only the holder of the lock calls this."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for pixels in parts:
                file.write(pixels.data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free space or choose another place") from None
    finally:
        part.unlink(missing_ok=True)
