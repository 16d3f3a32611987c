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
    plain, quoted = (csv.writer(text, quoting=how, lineterminator="\n") for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    plain.writerow(Row._fields)
    for row in sorted(_rows(_contents(task), _root(task))):
        # A space at an end, or a carriage return, is part of a name only within quotes.
        odd = any(field != field.strip() or "\r" in field for field in row)
        (quoted if odd else plain).writerow(row)
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))  # a file name need not be text


def compare(task: Task, path: Path) -> list[str]:
    """How the task differs from the manifest in `path`, a line for each image; empty where it does not.

    Names are relative to the data's root, or to a folder below or above it where the same data may have been opened.
    """
    there = _read(path)
    contents = _contents(task)
    root = _root(task)
    for base in (root, getattr(task, "folder", root), root.resolve().parent):
        here = {row.path: row for row in _rows(contents, base)}
        if here.keys() & there.keys():
            break
    found = []
    for name in sorted(there.keys() | here.keys()):
        if name not in here:
            found.append(f"{_told(name)} is missing")
        elif name not in there:
            found.append(f"{_told(name)} is not in the manifest")
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


def _told(name: str) -> str:
    """A file's name on one line: it need not be text, and may have line breaks."""
    return name if name.isprintable() else repr(name)


def _differences(here: Row, there: Row) -> list[str]:
    """In words; the label may be any text, so it is quoted."""
    found, name = [], _told(here.path)
    if here.split != there.split:
        found.append(f"{name} is in {here.split}, the manifest says {there.split}")
    if here.label != there.label:
        found.append(f"{name} has the label {here.label!r}, the manifest says {there.label!r}")
    if here.sha256 != there.sha256:
        found.append(f"{name} has other content than the manifest says")
    return found


def _read(path: Path) -> dict[str, Row]:
    """The rows by their path, every character of which counts. UserError where this is no manifest."""
    rows: dict[str, Row] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream, restval="")
            if not set(Row._fields) <= set(reader.fieldnames or []):
                raise UserError(f"{path} is no manifest: its columns must be {','.join(Row._fields)}")
            for found in reader:
                row = Row(*(found[field] for field in Row._fields))
                if row.path in rows:
                    raise UserError(f"{path} line {reader.line_num} has {_told(row.path)} again; leave one of them")
                rows[row.path] = row
    except (csv.Error, OSError) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}); write the manifest again") from None
    return rows
