"""What the tasks made of torchvision's data sets share: where they lie, how they are fetched, what is checked."""

import hashlib
import os
import socket
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from budwood.core.errors import UserError
from budwood.core.files import digest_of
from budwood.core.task import SPLITS, Split

from .samples import Sample, SampleTask, few, hold_out, relative

HELD_OUT = 0.1
OFFICIAL: dict[Split, dict[str, Any]] = {split: {"split": split} for split in SPLITS}
STALLED = 60.0
"""Seconds without a byte after which a download has failed."""
_BROKEN = (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error)
"""What reading half a data set, or half an archive, comes to."""


class TorchvisionTask(SampleTask):
    """A data set as torchvision lays it out below `root` ($BUDWOOD_DATA, else ~/.cache/budwood/data).

    What is absent is downloaded, unless `download` is False. Where the authors give no val split a tenth of train,
    stratified by the split's own `seed`, is held out. Raises UserError where the data is absent, incomplete, or has
    not the counts its authors state.
    """

    dataset: ClassVar[Any]
    """torchvision's class."""
    parts: ClassVar[dict[Split, dict[str, Any]]] = OFFICIAL
    """What to ask that class for, for each split the authors give."""
    place: ClassVar[str]
    """Its folder below the root: where that exists, torchvision takes the data to be there."""

    def __init__(self, root: Path | None = None, seed: int = 0, *, download: bool = True) -> None:
        self.root = Path(root) if root is not None else _data_root()
        self.notes = []
        opened = self._opened(download)
        self.classes = tuple(opened["train"].classes)
        self.samples = {split: self.pairs(part) for split, part in opened.items()}
        if "val" not in self.samples:
            self._hold_out_val(seed)
        self.samples = {split: self.samples[split] for split in SPLITS}
        self._digest = digest_of([[split, *row] for split in SPLITS for row in self._rows(split)])
        self._check_counts()

    @staticmethod
    def pairs(part: Any) -> list[Sample]:
        """(source, class index) of each sample of torchvision's data set."""
        return [(Path(path), int(label)) for path, label in zip(part._image_files, part._labels, strict=True)]

    def digest(self) -> str:
        return self._digest

    @property
    def folder(self) -> Path:
        return self.root / self.place

    def _opened(self, download: bool) -> dict[Split, Any]:
        try:
            return self._parts(download=False)
        except RuntimeError:  # torchvision's word for data that is not there
            if not download:
                raise UserError(f"{self.name} is not in {self.folder}; unpack {self.source} there") from None
        except _BROKEN as error:
            raise UserError(f"{self.name} is incomplete ({error}); {self._again()}") from None
        try:
            with _timeout(STALLED):
                return self._parts(download=True)
        except (RuntimeError, *_BROKEN) as error:
            raise UserError(
                f"{self.name} could not be downloaded ({error}); go online and try again,"
                f" or fetch it from {self.source} by hand and unpack it as {self.folder}"
            ) from None

    def _parts(self, download: bool) -> dict[Split, Any]:
        return {split: self.dataset(self.root, download=download, **how) for split, how in self.parts.items()}

    def _again(self) -> str:
        return f"remove {self.folder} and open the task again, which downloads it from {self.source}"

    def _hold_out_val(self, seed: int) -> None:
        train = self.samples["train"]
        held = hold_out([target for _, target in train], HELD_OUT, seed)
        self.samples["val"] = [sample for sample, out in zip(train, held, strict=True) if out]
        self.samples["train"] = [sample for sample, out in zip(train, held, strict=True) if not out]
        self.notes.append(f"{held.sum()} of {len(train)} train images held out as val, stratified, seed {seed}")

    def _rows(self, split: Split) -> Iterable[list[Any]]:
        """What the digest is of: name and size of a file (its content would take minutes), or digest of pixels."""
        missing, rows = [], []
        for source, target in self.samples[split]:
            if not isinstance(source, Path):
                rows.append([hashlib.sha256(source.tobytes()).hexdigest(), target])
                continue
            try:
                rows.append([relative(source, self.root), source.stat().st_size, target])
            except OSError:
                missing.append(relative(source, self.root))
        if missing:
            raise UserError(f"{self.name} lacks {len(missing)} {split} images: {few(missing)}; {self._again()}")
        return rows

    def _check_counts(self) -> None:
        here = {"classes": len(self.classes), **self.sizes}
        stated = {"classes": self.declared_classes, **(self.declared_sizes or {})}
        if here != stated:
            raise UserError(f"{self.name} in {self.folder} has {here}, its authors state {stated}; {self._again()}")


def _data_root() -> Path:
    return Path(os.environ.get("BUDWOOD_DATA") or Path.home() / ".cache" / "budwood" / "data")


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """torchvision sets none, and a firewall that swallows packets would hang it for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
