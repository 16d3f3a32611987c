"""Finding labelled images: split folders, one folder of class folders, or a CSV file. Opens no image."""

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from budwood.core.errors import UserError
from budwood.core.task import SPLITS, Split

from .samples import as_text, few, relative

SUFFIXES = (*IMG_EXTENSIONS, ".gif")
SPLIT_NAMES: dict[str, Split] = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}


@dataclass(frozen=True)
class Item:
    """One image: `name` is its posix path relative to the root, `split` None where the layout gives none."""

    path: Path
    name: str
    label: str
    split: Split | None = None


@dataclass
class Found:
    """What lies below a root: `items` sorted by name, `empty` the class folders without an image."""

    layout: str
    items: list[Item]
    empty: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(root: Path) -> Found:
    """All labelled images below a folder, or listed in a CSV file. Raises UserError where there can be none."""
    try:
        if not root.exists():
            raise UserError(f"{root} does not exist; give a folder of class folders or a CSV file")
        found = _find_in_csv(root) if root.is_file() else _find_in_folder(root)
    except OSError as error:
        where = error.filename or root
        raise UserError(f"{where} cannot be read ({error.strerror or error}); mend its permissions") from None
    found.items.sort(key=lambda item: item.name)
    if not found.items:
        raise UserError(f"{root} holds no images ({found.layout}); Budwood reads {', '.join(SUFFIXES)}")
    return found


# ---------------------------------------------------------------------------------------------- folders


def _find_in_folder(root: Path) -> Found:
    folders = folders_in(root)
    if not folders:
        direct = sum(map(is_image, root.iterdir()))
        what = f"holds {direct} images but no class folders" if direct else "is empty: it has no class folders"
        raise UserError(f"{root} {what}; put the images of each class into a folder of its own")
    splits = _split_folders(root, folders)
    given = " ".join(f"{splits[split].name}/" for split in SPLITS if split in splits)
    found = Found(given or "class folders", [])
    walk = _Walk(root, found)
    if splits:
        others = [folder.name for folder in folders if folder not in splits.values()]
        if others:
            found.notes.append(f"not looked at, being no split: {few(others)}")
        for split, folder in splits.items():
            walk.class_folders(folder, split)
    else:
        walk.class_folders(root, None)
    walk.close()
    return found


def _split_folders(root: Path, folders: list[Path]) -> dict[Split, Path]:
    """The folders that are splits; none where they all are classes (a class may be called train, as a vehicle is)."""
    splits: dict[Split, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split and split in splits:
            raise UserError(f"{root} has two folders for {split}: {splits[split].name}/, {folder.name}/; leave one")
        if split:
            splits[split] = folder
    if not splits or "train" not in splits:
        if splits and len(splits) == len(folders):
            names = few(f"{folder.name}/" for folder in folders)
            raise UserError(f"{root} has {names} but no train/; name the folder of training images so")
        return {}
    train = splits["train"]
    is_split = bool(folders_in(train)) and (len(splits) > 1 or not any(map(is_image, train.iterdir())))
    return splits if is_split else {}


class _Walk:
    """Collects the images of class folders into a `Found`, and counts what it passes over."""

    def __init__(self, root: Path, found: Found) -> None:
        self.root, self.found = root, found
        self.passed: Counter[str] = Counter()
        self.links = 0

    def class_folders(self, parent: Path, split: Split | None) -> None:
        folders = folders_in(parent)
        if not folders:
            raise UserError(f"{parent} has no class folders, so its images have no label; sort, move or remove them")
        loose = sum(map(is_image, parent.iterdir()))
        if loose:
            self.found.notes.append(f"{loose} images directly in {parent} left out: they are in no class folder")
        for folder in folders:
            before, label = len(self.found.items), as_text(folder.name)
            for path in self._images(folder):
                self.found.items.append(Item(path, relative(path, self.root), label, split))
            if len(self.found.items) == before:
                self.found.empty.append(relative(folder, self.root))

    def _images(self, folder: Path) -> Iterator[Path]:
        # Linked files are followed and linked folders are not: those may lead back up.
        for where, folders, files in os.walk(folder, onerror=_raise):
            self.links += sum(os.path.islink(os.path.join(where, name)) for name in folders)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(where, name)
                if is_image(path):
                    yield path
                else:
                    self.passed["hidden" if name.startswith(".") else path.suffix.lower() or name] += 1

    def close(self) -> None:
        if self.passed:
            kinds = few(f"{count} {kind}" for kind, count in sorted(self.passed.items()))
            self.found.notes.append(f"{self.passed.total()} files that are no images left out: {kinds}")
        if self.links:
            self.found.notes.append(f"{self.links} linked folders not followed")


def _raise(error: OSError) -> None:
    """os.walk would pass over a folder it may not read, and its images would be gone without a word."""
    raise error


def folders_in(parent: Path) -> list[Path]:
    """The folders directly below, sorted, hidden ones left out, and links that lead back up."""
    folders = (path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in folders if not parent.resolve().is_relative_to(path.resolve()))


def is_image(path: Path) -> bool:
    """By its name: a broken link counts, so that it is reported and not overlooked."""
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES and not path.is_dir()


# -------------------------------------------------------------------------------------------------- CSV


def _find_in_csv(file: Path) -> Found:
    if file.suffix.lower() != ".csv":
        raise UserError(f"{file} is neither a folder nor a .csv file; give a folder of class folders or a CSV file")
    rows = rows_of(file)
    items = _unique(file, [_item(file, number, row) for number, row in rows])
    given = {item.split for item in items}
    if None in given and len(given) > 1:
        raise UserError(f"{file} gives a split in some rows only; fill the column `split` in every row or in none")
    missing = [item.name for item in items if not item.path.is_file()]
    if missing:
        raise UserError(
            f"{file} lists {len(missing)} files that do not exist: {few(missing)}; paths are relative to the CSV file"
        )
    found = Found("CSV with splits" if given != {None} else "CSV", items)
    if len(items) < len(rows):
        found.notes.append(f"{len(rows) - len(items)} repeated rows of the CSV left out")
    return found


def rows_of(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) for each row; UTF-8, with or without the byte-order mark spreadsheets write."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="", skipinitialspace=True)
            columns = [name.strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; save it as CSV in UTF-8") from None
    except (csv.Error, OSError) as error:
        raise UserError(f"{file} cannot be read as CSV ({error}); save it again as comma-separated UTF-8") from None
    if not {"path", "label"} <= set(columns):
        raise UserError(f"{file} has columns {few(columns) or 'none'}; its first line must be path,label[,split]")
    return rows


def _item(file: Path, number: int, row: dict[str, str]) -> Item:
    name, label, word = (row.get(column, "").strip() for column in ("path", "label", "split"))
    if not name or not label:
        raise UserError(f"{file} line {number} has no {'label' if name else 'path'}; fill it in or remove the line")
    split = SPLIT_NAMES.get(word.lower())
    if word and not split:
        raise UserError(f"{file} line {number} has the split {word!r}; write train, val or test")
    name = posixpath.normpath(name.replace("\\", "/"))  # spreadsheets made on Windows have backslashes
    return Item(file.parent / name, name, label, split)


def _unique(file: Path, items: list[Item]) -> list[Item]:
    first: dict[str, Item] = {}
    for item in items:
        if first.setdefault(item.name, item) != item:
            raise UserError(f"{file} lists {item.name} twice with different labels or splits; keep one of the rows")
    return list(first.values())
