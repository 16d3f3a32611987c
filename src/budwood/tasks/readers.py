"""The ways in which a published data set lies on disk, and what reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from budwood.core.errors import UserError
from budwood.core.task import SPLITS, Split

from .layout import find
from .samples import Pixels, Sample, few, relative

if TYPE_CHECKING:
    from .published import PublishedTask


@dataclass
class Parts:
    """What a layout holds. `trainval`: train and val together, where their order is known to be another."""

    classes: tuple[str, ...]
    samples: dict[Split, list[Sample]]
    trainval: list[Sample] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies in its folder: whose it is, what is there, and what makes samples of it.

    A mark is a path below the folder, or several of which one is enough: "test/|valid/", with the slash of a folder.
    """

    whose: str
    marks: tuple[str, ...]
    read: Callable[[PublishedTask, Path], Parts]

    def lacks(self, folder: Path) -> list[str]:
        """The marks that are not below `folder`."""
        return [mark.split("|")[0] for mark in self.marks if one_of(folder, mark) is None]

    def __str__(self) -> str:
        return f"{self.whose} ({', '.join(mark.split('|')[0] for mark in self.marks)})"


def one_of(folder: Path, mark: str) -> Path | None:
    """The first path of a mark that is there, if any."""
    for name in mark.split("|"):
        path = folder / name
        if path.is_dir() if name.endswith("/") else path.is_file():
            return path
    return None


def by_class_folders(task: PublishedTask, folder: Path) -> Parts:
    """train/ and test/ of class folders (val/ or valid/ is test where there is no test/), in sorted order."""
    found = find(folder)
    if found.empty:
        raise UserError(f"{task.name} in {folder} has no image in {few(found.empty)}; {task.mend}")
    classes = tuple(sorted({item.label for item in found.items}))
    index = {label: k for k, label in enumerate(classes)}
    samples: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
    for item in found.items:
        samples[item.split or "train"].append((item.path, index[item.label]))
    if not samples["test"]:
        samples["test"], samples["val"] = samples["val"], []
    return Parts(classes, {split: part for split, part in samples.items() if part}, notes=found.notes)


CLASS_FOLDERS = Layout("class folders", ("train/", "test/|valid/|val/"), by_class_folders)
"""How the study had most of its data."""


def by_torchvision(task: PublishedTask, folder: Path) -> Parts:
    """The samples as torchvision's class finds them."""
    with tempfile.TemporaryDirectory() as root:
        # The class wants its own names above the data, whatever they are here.
        link = Path(root) / task.place
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)
        opened = {split: task.dataset(root, download=False, **how) for split, how in task.parts.items()}
    parts = {
        split: [(_moved(source, link, folder), k) for source, k in task.pairs(part)] for split, part in opened.items()
    }
    samples: dict[Split, list[Sample]] = {split: parts[split] for split in SPLITS if split in parts}
    return Parts(tuple(opened["train"].classes), samples, trainval=parts.get("trainval"))


def _moved(source: Path | Pixels, link: Path, folder: Path) -> Path | Pixels:
    return folder / relative(source, link) if isinstance(source, Path) else source


def authors(*marks: str) -> Layout:
    """The authors' archive, as torchvision unpacks and reads it."""
    return Layout("the authors' archive", marks, by_torchvision)
