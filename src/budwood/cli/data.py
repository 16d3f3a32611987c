"""`budwood data`: look at images before anything is trained on them."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.task import SPLITS
from ..tasks.check import Report
from ..tasks.check import check as look
from .common import print_json

app = App(name="data", help="Look at images before anything is trained on them.")


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
