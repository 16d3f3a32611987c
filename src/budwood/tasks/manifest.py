"""A task's images, labels, splits and contents as a CSV file, to be committed and compared before training."""

import csv
import io
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from budwood.core.errors import UserError
from budwood.core.files import write_atomic
from budwood.core.task import SPLITS, Task

from .inspection import hashed
from .layout import rows_of
from .samples import Pixels, SampleTask, few


class Row(NamedTuple):
    """One image. `path` is relative to the data's root, with slashes; `sha256` is of the file, or of the pixels."""

    path: str
    label: str
    split: str
    sha256: str


def write(task: Task, path: Path) -> None:
    """Write the manifest of a task. It is a CSV of one's own too: see the task `folder`."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Row._fields)
    table.writerows(sorted(_rows(_contents(task), _root(task))))
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))  # a file name need not be text


def compare(task: Task, path: Path) -> list[str]:
    """How the task differs from the manifest in `path`, a line for each image; empty where it does not.

    Names are relative to the data's root, or to a folder below or above it where the same data may have been opened.
    """
    there = {row.path: row for row in _read(path)}
    contents = _contents(task)
    root = _root(task)
    for base in (root, getattr(task, "folder", root), root.resolve().parent):
        here = {row.path: row for row in _rows(contents, base)}
        if here.keys() & there.keys():
            break
    found = []
    for name in sorted(there.keys() | here.keys()):
        if name not in here:
            found.append(f"{name} is missing")
        elif name not in there:
            found.append(f"{name} is not in the manifest")
        else:
            found += _differences(here[name], there[name])
    return found


def check_manifest(task: Task, path: Path) -> None:
    """Raise UserError where the task is not what the manifest in `path` says."""
    found = compare(task, path)
    if found:
        raise UserError(
            f"{task.name} in {_root(task)} is not the data of {path}: {few(found)};"
            " `budwood data manifest --check` lists all: get that data, or write a new manifest"
        )


def _root(task: Task) -> Path:
    return getattr(task, "root", None) or Path()


def _contents(task: Task) -> list[tuple[Any, str, str, str]]:
    """(source, label, split, sha256) of every image."""
    if not isinstance(task, SampleTask):
        raise UserError(f"the task {task.name} does not list its samples, so it has no manifest")
    found = [(source, task.classes[k], split) for split in SPLITS for source, k in task.samples[split]]
    try:
        digests = iter(hashed([source for source, _, _ in found if not isinstance(source, Pixels)]))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror or error}); mend or remove it") from None
    return [
        (
            source,
            label,
            split,
            sha256(source.data.tobytes()).hexdigest() if isinstance(source, Pixels) else next(digests),
        )
        for source, label, split in found
    ]


def _rows(contents: list[tuple[Any, str, str, str]], base: Path) -> Iterator[Row]:
    for source, *facts in contents:
        name = source.name if isinstance(source, Pixels) else Path(os.path.relpath(source, base)).as_posix()
        yield Row(name, *facts)


def _differences(here: Row, there: Row) -> list[str]:
    """In words; the label may be any text, so it is quoted."""
    found = []
    if here.split != there.split:
        found.append(f"{here.path} is in {here.split}, the manifest says {there.split}")
    if here.label != there.label:
        found.append(f"{here.path} has the label {here.label!r}, the manifest says {there.label!r}")
    if here.sha256 != there.sha256:
        found.append(f"{here.path} has other content than the manifest says")
    return found


def _read(path: Path) -> list[Row]:
    found = rows_of(path)
    if found and not set(Row._fields) <= found[0][1].keys():
        raise UserError(f"{path} is no manifest: its columns must be {', '.join(Row._fields)}")
    return [Row(*(row[field] for field in Row._fields)) for _, row in found]
