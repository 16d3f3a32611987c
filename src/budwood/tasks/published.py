"""What the published data sets share: where they lie and how, what is checked, what val is made of."""

import hashlib
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from budwood.core.errors import UserError
from budwood.core.files import digest_of
from budwood.core.task import SPLITS, Split

from .readers import Layout, Parts
from .samples import Pixels, Sample, SampleTask, few, hold_out, relative

TWO_WAYS: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
THREE_WAYS: dict[str, dict[str, Any]] = {split: {"split": split} for split in SPLITS}
STALLED = 60.0
"""Seconds without a byte after which a download has failed."""


class PublishedTask(SampleTask):
    """A data set somewhere below `root` ($BUDWOOD_DATA, else ~/.cache/budwood/data), in one of its `layouts`.

    `root` is its own folder or the one that holds it. What is absent is downloaded where that is possible, unless
    `download` is False. Where val is not told from train, as many images as `declared_sizes` says are held out,
    stratified by the split's own `seed`. Raises UserError where the data is absent, incomplete, or has not the
    counts its authors state.
    """

    layouts: ClassVar[tuple[Layout, ...]]
    place: ClassVar[str]
    """Its folder below the root, as torchvision or the authors' archive lays it; of a/b, b alone will do."""
    also: ClassVar[tuple[str, ...]] = ()
    """What else people call that folder."""
    dataset: ClassVar[Any] = None
    """torchvision's class, which downloads it; None where there is nothing to download from."""
    parts: ClassVar[dict[str, dict[str, Any]]] = TWO_WAYS
    """What to ask that class for, for each split the authors give."""
    may_be_incomplete: ClassVar[bool] = False
    incomplete: str = ""
    """What is missing, in words, where that is allowed."""

    def __init__(self, root: Path | None = None, seed: int = 0, *, download: bool = True) -> None:
        self.root: Path = Path(root) if root is not None else _data_root()
        self.home = self.root / self.place
        self.folder, layout = self._located(download)
        parts = self._read(layout)
        self.classes, self.samples, self.trainval = parts.classes, parts.samples, parts.trainval
        self.notes = [f"layout: {layout}", *parts.notes]
        if self.may_be_incomplete:
            self.samples = {split: [s for s in part if _size(s[0])] for split, part in self.samples.items()}
        if "val" not in self.samples:
            self._hold_out_val(seed)
        self.samples = {split: self.samples[split] for split in SPLITS}
        self._check_counts()
        self._digest = digest_of([[split, *row] for split in SPLITS for row in self._rows(split)])

    @staticmethod
    def pairs(part: Any) -> list[Sample]:
        """(source, class index) of each sample of torchvision's data set."""
        return [(Path(path), int(label)) for path, label in zip(part._image_files, part._labels, strict=True)]

    def fetch(self) -> None:
        """Download it to its place below the root. torchvision compares the archive with the authors' checksum."""
        self.dataset(self.root, download=True)

    def digest(self) -> str:
        return self._digest

    @property
    def mend(self) -> str:
        """What to do about data that is not as it should be."""
        return f"mend it, or get it again from {self.source}"

    def _places(self) -> list[Path]:
        """Where to look, the likeliest first."""
        steps = Path(self.place).parts
        tails = [Path(*steps[k:]) for k in range(len(steps) + 1)]
        bases = [self.root / name for name in ("", steps[0], self.name, *self.also)]
        return [base / tail for base in bases for tail in tails]

    def _located(self, download: bool) -> tuple[Path, Layout]:
        """The folder it lies in, and how."""
        if found := self._fitting():
            return found
        begun = self._begun()
        if begun and (begun[0] != self.home or not download or self.dataset is None):
            folder, lacking = begun
            raise UserError(f"{self.name} in {folder} is incomplete: it has no {few(lacking)}; {self.mend}")
        if not download or self.dataset is None:
            raise UserError(
                f"{self.name} is not in {self.home}{'' if self.dataset else ' and cannot be downloaded'};"
                f" get it from {self.source} and lay it there as {' or '.join(map(str, self.layouts))}"
            )
        self._download(begun[1] if begun else [])
        if found := self._fitting():
            return found
        lacking = self.layouts[0].lacks(self.home)
        raise UserError(f"{self.name} in {self.home} is incomplete: it has no {few(lacking)}; {self.mend}")

    def _fitting(self) -> tuple[Path, Layout] | None:
        choices = ((folder, layout) for folder in self._places() for layout in self.layouts)
        return next(((folder, layout) for folder, layout in choices if not layout.lacks(folder)), None)

    def _begun(self) -> tuple[Path, list[str]] | None:
        """A folder where some of a layout is there, and what it lacks."""
        choices = ((folder, layout, layout.lacks(folder)) for folder in self._places() for layout in self.layouts)
        partly = [(folder, lacking) for folder, layout, lacking in choices if len(lacking) < len(layout.marks)]
        return min(partly, key=lambda pair: len(pair[1]), default=None)

    def _download(self, lacking: list[str]) -> None:
        try:
            with _patience(), _undone_on_failure(self.root, self.home):
                self.fetch()
        except Exception as error:  # whatever a network, an archive or half a data set comes to
            begun = f"in {self.home} is incomplete, it has no {few(lacking)}, and " if lacking else ""
            raise UserError(
                f"{self.name} {begun}could not be downloaded ({_line(error)}); {'remove it, ' if lacking else ''}go"
                f" online and try again, or fetch it from {self.source} by hand and unpack it as {self.home}"
            ) from None

    def _read(self, layout: Layout) -> Parts:
        try:
            parts = layout.read(self, self.folder)
        except UserError:
            raise
        except Exception as error:  # half a data set fails in as many ways as there are readers
            raise UserError(f"{self.name} in {self.folder} is incomplete ({_line(error)}); {self.mend}") from None
        strange = {k for part in parts.samples.values() for _, k in part} - set(range(len(parts.classes)))
        if strange:
            raise UserError(f"{self.name} in {self.folder} has labels beyond its classes; {self.mend}")
        return parts

    def _hold_out_val(self, seed: int) -> None:
        train, stated = self.samples["train"], self.declared_sizes or {}
        counts = Counter(target for _, target in train)
        thin = [label for k, label in enumerate(self.classes) if counts[k] < 2]
        if thin:
            raise UserError(f"{self.name} in {self.folder} has not two train images of {few(thin)}; {self.mend}")
        held = hold_out([target for _, target in train], stated["val"] / (stated["train"] + stated["val"]), seed)
        self.trainval = train
        self.samples["val"] = [sample for sample, out in zip(train, held, strict=True) if out]
        self.samples["train"] = [sample for sample, out in zip(train, held, strict=True) if not out]
        self.notes.append(f"{held.sum()} of {len(train)} train images held out as val, stratified, seed {seed}")
        if "val" in self.parts:
            self.notes.append("the authors' own val cannot be told from train in this layout")

    def _rows(self, split: Split) -> Iterable[list[Any]]:
        """What the digest is of: name and size of a file (its content would take minutes), or digest of pixels."""
        missing, rows = [], []
        for source, target in self.samples[split]:
            if isinstance(source, Pixels):
                rows.append([hashlib.sha256(source.data.tobytes()).hexdigest(), target])
            elif size := _size(source):
                rows.append([f"{self.place}/{relative(source, self.folder)}", size, target])
            else:
                missing.append(relative(source, self.folder))
        if missing:
            raise UserError(
                f"{self.name} in {self.folder} lacks {len(missing)} {split} images, or they are empty:"
                f" {few(missing)}; {self.mend}"
            )
        return rows

    def _check_counts(self) -> None:
        here = {"classes": len(self.classes), **self.sizes}
        stated = {"classes": self.declared_classes or 0, **(self.declared_sizes or {})}
        if here == stated:
            return
        if not self.may_be_incomplete or here["classes"] != stated["classes"]:
            raise UserError(f"{self.name} in {self.folder} has {here}, its authors state {stated}; {self.mend}")
        pairs = {"train": [n["train"] + n["val"] for n in (here, stated)], "test": [here["test"], stated["test"]]}
        self.incomplete = "; ".join(
            f"{count:,} {split} images for the study's {full:,}" + f", {full - count:,} missing" * (count < full)
            for split, (count, full) in pairs.items()
        )
        self.notes.append(self.incomplete)


def _size(source: Any) -> int:
    """Bytes of a file, 0 where it is none."""
    try:
        return os.stat(source).st_size
    except OSError:
        return 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _data_root() -> Path:
    return Path(os.environ.get("BUDWOOD_DATA") or Path.home() / ".cache" / "budwood" / "data")


@contextmanager
def _patience() -> Iterator[None]:
    """torchvision sets no time limit, and a firewall that swallows packets would hang it for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _undone_on_failure(root: Path, home: Path) -> Iterator[None]:
    """Of a download to `home` that fails, or is stopped, nothing stays but what was there before it: half of it would
    be taken for the data. Beside `home` only empty folders go, since other downloads may be at work below `root`."""
    wanted = [path for path in (*reversed(home.parents), home) if path != root and path.is_relative_to(root)]
    made = next((path for path in wanted if not path.exists()), None)
    before = {root, *root.iterdir()} if root.exists() else set()
    try:
        yield
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        for path in sorted({root, *root.glob("*")} - before, reverse=True):
            with suppress(OSError):
                path.rmdir()
        raise
