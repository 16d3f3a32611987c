"""`budwood report`: the page and the tables again, from the results that lie in a folder."""

import csv
import io
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..core.errors import UserError
from ..core.files import write_atomic
from ..core.result import Result
from ..report import html
from ..report.screen import text_table
from ..study.run import RESULT
from .common import print_json, say, screen
from .transfer import read_latency


def run(
    runs: Path = Path("runs"),
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Draw a report of every finished run in a folder.

    Parameters
    ----------
    runs
        The folder that --out named before.
    out
        The page to write, NAME.html, or NAME.csv for the rows; report.html among the runs if not given.
    json
        Print the rows as JSON on stdout and nothing else.
    """
    if not runs.is_dir():
        raise UserError(f"no folder at {runs}; name the one that `budwood transfer --out` wrote to")
    results = [Result.load(path) for path in sorted(runs.glob(f"*/{RESULT}"))]
    if not results:
        raise UserError(f"no finished run in {runs}; run `budwood transfer` first")
    rows = [result.row() for result in results]
    if json:
        print_json(rows)
        return
    latency = (read_latency(runs / "latency.json") or {"rows": []})["rows"]
    target = out or runs / "report.html"
    if target.suffix == ".csv":
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(target, text.getvalue())
    else:
        html.write(results, latency, target, title=f"{len(results)} runs in {runs.resolve().name}")
        for table in text_table(results, latency):
            screen.print(table)
    say(f"report: {target}")
