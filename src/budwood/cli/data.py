"""`budwood data`: look at images before anything is trained on them."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.errors import UserError
from ..core.registry import tasks
from ..core.task import SPLITS, Task
from ..tasks.check import Report
from ..tasks.check import check as look
from ..tasks.inspection import inspect
from ..tasks.manifest import compare, write
from ..tasks.samples import few
from .common import open_task, print_json, say

app = App(name="data", help="Check images, fix their splits in a file, or get a known data set.")


@app.command
def check(directory: Path, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Find what is wrong with a folder of images or a CSV file, and say how it would be split. Changes nothing.

    Exit code 1 where there are errors.

    Parameters
    ----------
    directory
        Folder of class folders (or train/ val/ [test/] of them), or a CSV of path,label[,split].
    json
        Print the report as JSON on stdout and nothing else.
    """
    report = look(directory)
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report)
    sys.exit(2 if not report.totals else 1 if report.worst == "error" else 0)


@app.command
def manifest(
    data: str,
    /,
    *,
    task: str | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    check: Path | None = None,
) -> None:
    """Write which image is in which split, with its label and checksum, as CSV; or compare with what was written.

    Exit code 1 where the data differs.

    Parameters
    ----------
    data
        Folder of class folders, a CSV file, or a task.
    task
        A task by name, its data in DATA.
    out
        CSV file to write: path,label,split,sha256.
    check
        CSV file to compare with.
    """
    opened = open_task(data, task)
    if out and not check:
        write(opened, out)
    elif check and not out:
        differences = compare(opened, check)
        print("\n".join(differences), end="\n" * bool(differences))
        sys.exit(1 if differences else 0)
    else:
        raise UserError("give --out FILE to write a manifest, or --check FILE to compare with one")


@app.command
def prepare(name: str, /, *, root: Path) -> None:
    """Download a data set where that is possible, check it, and write its splits to ROOT/NAME.manifest.csv.

    What cannot be downloaded is said: from where to get it and how it must lie. Done again, it compares with what
    was written. Exit code 1 where an image cannot be read or the data is not as it was.

    Parameters
    ----------
    name
        A task; `budwood ls tasks` lists them.
    root
        Folder that has the data, or shall have it.
    """
    if name == "folder":
        raise UserError("the task folder is for images of one's own: use `budwood data check` and `data manifest`")
    task: Task = tasks.get(name)(root)
    file = root / f"{name}.manifest.csv"
    for note in task.notes:
        say(note)
    say(f"{len(task.classes)} classes, " + ", ".join(f"{count:,} {split}" for split, count in task.sizes.items()))
    files = [s for split in SPLITS for s, _ in getattr(task, "samples", {split: []})[split] if isinstance(s, Path)]
    faults = [f"{path} ({seen.fault})" for path, seen in zip(files, inspect(files), strict=True) if seen.fault]
    if faults:
        say(f"{len(faults)} of {len(files):,} images cannot be read: {few(faults)}; get them again")
        sys.exit(1)
    say(f"{len(files):,} images opened, all can be read")
    if not file.exists():
        write(task, file)
        say(f"written: {file}")
    elif differences := compare(task, file):
        say(f"not as in {file}: {few(differences)}; remove that file if this is the right data")
        sys.exit(1)
    else:
        say(f"the same as in {file}")


def _print(report: Report) -> None:
    console = Console(highlight=False)
    if not report.totals:
        print(f"budwood: {report.refused}", file=sys.stderr)
        return
    for line in report.notes:
        console.print(line, markup=False)
    table = Table("found", "", "files", "for example", "what to do")
    for f in report.findings:
        table.add_row(f.kind, f.severity, str(f.count), escape(", ".join(f.examples)), escape(f.advice))
    if report.findings:
        console.print(table)
    else:
        console.print("nothing wrong was found")
    splits = [split for split in (*SPLITS, "all") if split in report.totals]
    classes = sorted({name for counts in report.totals.values() for name in counts})
    counts = Table("class", *splits)
    for name in classes[:40]:
        counts.add_row(escape(name), *(str(report.totals[split].get(name, 0)) for split in splits))
    if len(classes) > 40:
        counts.add_row(f"... {len(classes) - 40} more", *[""] * len(splits))
    counts.add_section()
    counts.add_row("all", *(str(sum(report.totals[split].values())) for split in splits))
    console.print(counts)
