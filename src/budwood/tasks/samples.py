"""The part every task here shares: samples at hand as (source, class index), and splits made from them."""

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from budwood.core.task import Split, Task

from .images import read_rgb

Sample = tuple[Any, int]
"""Where an image comes from (a path, or `Pixels`) and its class index."""


class Pixels(NamedTuple):
    """An image in memory: its name in the data set (train/00000), and uint8 (height, width, 3)."""

    name: str
    data: np.ndarray


class Samples(Dataset[Any]):
    """Samples as (transform(image), class index); `read` makes the RGB image of a source that is not `Pixels`."""

    def __init__(
        self, samples: Sequence[Sample], transform: Callable[[Any], Any], read: Callable[[Any], Any] = read_rgb
    ) -> None:
        self.samples, self.transform, self.read = samples, transform, read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        source, target = self.samples[index]
        image = Image.fromarray(source.data) if isinstance(source, Pixels) else self.read(source)
        return self.transform(image), target


KEPT = 2**29
"""Bytes that `kept` decodes at most: 43,000 images of 64 px, or 900 of 500 x 400."""


def kept(images: Dataset[Any], workers: int) -> Dataset[Any]:
    """The same images, as many of the files among them as there is room for decoded now and not in every epoch.

    Decoding is a third of the work on a small image. Where loader processes do not share their parent's memory (they
    do on Linux up to Python 3.13) they would be sent it all, so nothing is kept. Raises ImageError as `read_rgb` does.
    """
    if not isinstance(images, Samples) or (workers and multiprocessing.get_start_method() != "fork"):
        return images
    room, samples = KEPT, []
    for source, target in images.samples:
        if room > 0 and not isinstance(source, Pixels):
            source = Pixels(str(source), np.asarray(images.read(source)))
            room -= source.data.nbytes
        samples.append((source, target))
    return Samples(samples, images.transform, images.read)


class SampleTask(Task):
    """A task that has only to fill `samples`; sources are `Pixels`, or image files unless `read` is another."""

    root: Path | None = None
    """The folder its files are named from, in a manifest."""
    samples: dict[Split, list[Sample]]
    trainval: list[Sample] | None = None
    """train and val together in their authors' order, where that is not the one after the other."""
    read: Callable[[Any], Any] = staticmethod(read_rgb)

    def targets(self, split: Split) -> list[int]:
        return [target for _, target in self.samples[split]]

    def load(self, split: Split, transform: Callable[[Any], Any]) -> Dataset[Any]:
        return Samples(self.samples[split], transform, self.read)


def hold_out(strata: Sequence[Hashable], fraction: float, seed: int) -> np.ndarray:
    """Which samples to hold out: bool (samples,), `fraction` of them in all and of each stratum to within one.

    Every stratum gives at least one and keeps at least one, so it must have two. Only the order of `strata` and the
    seed matter: raw PCG64 output is the same on every machine and for every numpy.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)
    wanted = [len(found) * fraction for found in members.values()]
    counts = [max(1, int(share)) for share in wanted]
    missing = round(len(strata) * fraction) - sum(counts)
    # What rounding down left over goes to the strata it took most from.
    by_loss = sorted(range(len(wanted)), key=lambda k: counts[k] - wanted[k])
    for k in by_loss[: max(0, missing)]:
        counts[k] += 1
    keys = np.random.PCG64(seed).random_raw(len(strata)) if len(strata) else np.empty(0)
    held = np.zeros(len(strata), dtype=bool)
    for found, count in zip(members.values(), counts, strict=True):
        order = np.argsort(keys[found], kind="stable")
        held[np.asarray(found)[order[:count]]] = True
    return held


def split_three_ways(strata: Sequence[Hashable], seed: int) -> list[Split]:
    """70/15/15: the split of each sample, stratified; every stratum must have three samples, one for each split."""
    splits: np.ndarray = np.full(len(strata), "train", dtype=object)
    test = hold_out(strata, 0.15, seed)
    splits[test] = "test"
    rest = np.flatnonzero(~test)
    val = hold_out([strata[int(k)] for k in rest], 0.15 / 0.85, seed)
    splits[rest[val]] = "val"
    return list(splits)


def few(names: Iterable[Any]) -> str:
    """The first three of some names and how many more there are, for a message of one line."""
    shown = [str(name) for name in names]
    return as_text(", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else ""))


def as_text(name: str) -> str:
    """A name that can be written anywhere: that of a file need not be text."""
    return name.encode("utf-8", "backslashreplace").decode()


def relative(path: Path, root: Path) -> str:
    """A path below root in the same words on every machine."""
    text, base = os.fspath(path), os.path.join(root, "")
    if os.sep == "/" and text.startswith(base):  # ten times as fast, of a hundred thousand
        return text[len(base) :]
    return path.relative_to(root).as_posix()
