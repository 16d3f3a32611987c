"""`budwood report`: the page and the tables again, from the results that lie in a folder; or those of the study."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..core.errors import UserError
from ..core.files import write_atomic
from ..core.result import Result
from ..report import html, published
from ..report.screen import text_table
from ..report.study import page
from ..study.run import RESULT
from .common import print_json, say, screen, write_rows
from .transfer import read_latency

PUBLISHED = Path("published")
"""Stands for the published results, unless there is a folder of that name."""


def run(
    runs: Path = Path("runs"),
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Draw a report of every finished run in a folder, or of the published results of the CVPR 2022 study.

    Parameters
    ----------
    runs
        The folder that --out named before; `published` for the study's results, task by task.
    out
        The page to write, NAME.html, or NAME.csv or NAME.parquet for the rows; report.html among the runs if not
        given. Of the published results NAME.html or NAME.md; none if not given.
    json
        Print the rows as JSON on stdout and nothing else.
    """
    if runs == PUBLISHED and not runs.exists():
        _published(out, json)
        return
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
    if target.suffix in (".csv", ".parquet"):
        write_rows(rows, target)
    else:
        html.write(results, latency, target, title=f"{len(results)} runs in {runs.resolve().name}")
        for table in text_table(results, latency):
            screen.print(table)
    say(f"report: {target}")


def _published(out: Path | None, json: bool) -> None:
    if json:
        print_json([row.row() for row in published.rows()])
        return
    if out is not None and out.suffix not in (".html", ".md"):
        raise UserError(f"{out}: the published results are written as NAME.html or NAME.md")
    for table in published.text_tables():
        screen.print(table)
    if out is None:
        say("every task: budwood report published -o FILE.html (or FILE.md)")
    elif out.suffix == ".md":
        write_atomic(out, published.markdown())
        say(f"tables: {out}")
    else:
        page.write(
            published.table(), out, published.TITLE, upstream=published.upstream(), notes=published.NOTES,
            fine_grained=published.FINE_GRAINED, families=published.FAMILIES,
        )  # fmt: skip
        say(f"report: {out}")
