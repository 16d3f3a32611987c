"""The same rows as on the page, as tables for the terminal."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from ..core.result import Result
from . import words
from .frame import LatencyFrame, Row, TaskFrame, frames, latency_frames


def text_table(results: list[Result], latency: list[dict[str, Any]]) -> list[Table]:
    """One table a task, then one for each way of measuring latency (rows of `bench.latency`, as dicts)."""
    tables = [_runs(frame) for frame in frames(results)]
    return tables + [_times(frame) for frame in latency_frames(latency)]


def _runs(frame: TaskFrame) -> Table:
    table = Table(title=escape(words.headline(frame)), title_justify="left", title_style="", caption_justify="left")
    table.add_column("Transfer")
    table.add_column("Method", overflow="fold")
    for name in ("Pruned", "Test, %", "To dense", "Val., %", "MB", "Time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in frame.rows:
        table.add_row(*_cells(row, frame))
    for run in frame.unfinished:
        what = f"{run.spec.method}: {run.status}, {run.reason or 'no reason given'}"
        table.add_row(run.spec.transfer, escape(what), *[words.NOTHING] * 6)
    table.caption = "\n".join(words.cautions(frame))
    return table


def _cells(row: Row, frame: TaskFrame) -> list[str]:
    details = words.details(row, frame)
    size = row.average("checkpoint_bytes") / 1e6
    return [
        row.spec.transfer,
        escape(f"{words.method(row)}, {details}" if details else words.method(row)),
        words.NOTHING if row.dense else words.sparsity(row.average("sparsity")),
        words.accuracy(row.test),
        words.NOTHING if row.dense else words.points(row.delta),
        words.accuracy(row.val),
        words.number(size) if size else words.NOTHING,
        words.duration(row.average("seconds")),
    ]


def _times(frame: LatencyFrame) -> Table:
    title, caption = f"Speed: {words.conditions(frame)}", words.latency_sentence([frame])
    table = Table(title=title, title_justify="left", title_style="", caption=escape(caption), caption_justify="left")
    table.add_column("Backend", no_wrap=True)
    table.add_column("Network", overflow="fold")
    table.add_column("ms an image", justify="right", overflow="fold")
    table.add_column(f"Against {escape(words.short(frame.labels[0], 24))}", justify="right")
    for row in frame.reading():
        ratio = frame.ratio(row)
        time = words.latency_outcome(row) or words.number(row["ms_per_image"])
        cells = [str(row["backend"]), str(row["label"]) or "all networks", time]
        table.add_row(*map(escape, cells), f"{ratio:.2f}×" if ratio else words.NOTHING)
    return table
