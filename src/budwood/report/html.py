"""The report: one HTML file that needs nothing else, on a phone, in the dark, on paper or read aloud."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..core.files import write_atomic
from ..core.result import Result
from . import words
from .accuracy import accuracy_plot
from .frame import LatencyFrame, Row, TaskFrame, frames, latency_frames
from .latency import latency_plot
from .layers import layers_plot


def write(results: list[Result], latency: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write the report of these results (and rows of `bench.latency`, as dicts) to `path`.

    Raises UserError where the file cannot be written.
    """
    write_atomic(path, page(results, latency, title))


def page(results: list[Result], latency: list[dict[str, Any]], title: str) -> str:
    """The report as HTML text."""
    times = latency_frames(latency)
    return (
        templates()
        .get_template("template.html.j2")
        .render(
            title=title,
            tasks=[_task(frame, f"t{i}") for i, frame in enumerate(frames(results), 1)],
            latency=[_latency(frame, f"s{i}") for i, frame in enumerate(times, 1)],
            latency_sentence=words.latency_sentence(times),
            unfinished=[r for r in results if r.status != "done"],
            runs=[r for r in results if r.status == "done"],
            environment=environments(results),
            nothing=words.NOTHING,
            sparsity=words.sparsity,
            count=words.count,
            specification=_specification,
            short=words.short,
        )
    )


def templates() -> Environment:
    """What makes pages of the templates here and below."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def environments(results: list[Result]) -> dict[str, str]:
    """Where the runs were made; all values of what differed between them."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for name, value in result.environment.items():
            found.setdefault(name, {})[value] = None
    return {name: "; ".join(values) for name, values in found.items()}


def _task(frame: TaskFrame, prefix: str) -> dict[str, Any]:
    shown = frame.showcase()
    parts: dict[str, list[dict[str, str]]] = {}
    for row in frame.rows:
        parts.setdefault(words.TRANSFERS[row.spec.transfer], []).append(_cells(row, frame))
    return {
        "prefix": prefix,
        "name": frame.name,
        "headline": words.headline(frame),
        "cautions": words.cautions(frame),
        "facts": _facts(shown, frame),
        "metric": words.METRICS[frame.metric],
        "parts": parts,
        "accuracy": Markup(accuracy_plot(frame, f"{prefix}-accuracy")),  # built by us, its texts escaped
        "layers": shown.results[0].layers if shown else [],
        "layers_of": f"{shown.spec.method}, {words.sparsity(shown.average('sparsity'))} pruned" if shown else "",
        "layers_plot": Markup(layers_plot(shown.results[0], f"{prefix}-layers")) if shown else "",
        "data": frame.task,
        "classes": list(frame.classes),
        "sizes": dict(frame.sizes),
    }


def _cells(row: Row, frame: TaskFrame) -> dict[str, str]:
    """One row of the table of runs, as text."""
    flops, flops_dense = row.flops("flops"), row.flops("flops_dense")
    size, size_dense = row.average("checkpoint_bytes") / 1e6, row.average("dense_bytes") / 1e6
    measured, asked = words.sparsity(row.average("sparsity")), words.sparsity(row.spec.sparsity)
    return {
        "method": words.method(row),
        "details": words.details(row, frame),
        "measured": words.NOTHING if row.dense else measured,
        "asked": "" if row.dense or asked == measured else asked,
        "test": words.accuracy(row.test),
        "delta": "reference" if row.dense else words.points(row.delta),
        "val": words.accuracy(row.val),
        "seeds": str(len(row.results)),
        "size": _before_after(size_dense, size, row.dense),
        "size_ratio": f"{size_dense / size:.1f}× smaller" if size and size_dense and not row.dense else "",
        "flops": _before_after(flops_dense / 1e9, flops / 1e9, row.dense),
        "seconds": words.duration(row.average("seconds")),
        "mask": words.NOTHING if row.dense else ("verified" if row.verified else "not verified"),
    }


def _before_after(before: float, after: float, dense: bool) -> str:
    if not after:
        return words.NOTHING
    return words.number(after) if dense or not before else f"{words.number(before)} → {words.number(after)}"


def _facts(row: Row | None, frame: TaskFrame) -> list[tuple[str, str, str]]:
    """The showcase in a few figures: (what, number, beside it)."""
    if row is None or row.test is None:
        return []
    reference = frame.reference(row)
    size, size_dense = row.average("checkpoint_bytes") / 1e6, row.average("dense_bytes") / 1e6
    flops, flops_dense = row.flops("flops") / 1e9, row.flops("flops_dense") / 1e9
    facts = [("Weights pruned", words.sparsity(row.average("sparsity")), "")]
    against = f"dense {words.percent(reference.test.mean)}" if reference and reference.test else ""
    facts.append(("Test accuracy", words.percent(row.test.mean), against))
    if size:
        facts.append(("File", f"{words.number(size)}\u00a0MB", f"dense {words.number(size_dense)}\u00a0MB"))
    if flops:
        facts.append(("GFLOPs an image", words.number(flops), f"dense {words.number(flops_dense)}"))
    return facts


def _latency(frame: LatencyFrame, prefix: str) -> dict[str, Any]:
    return {
        "prefix": prefix,
        "conditions": words.conditions(frame),
        "first": frame.labels[0],
        "rows": [_latency_cells(row, frame) for row in frame.reading()],
        "plot": Markup(latency_plot(frame, f"{prefix}-latency")),
    }


def _latency_cells(row: Mapping[str, Any], frame: LatencyFrame) -> dict[str, str]:
    ratio, reason = frame.ratio(row), words.latency_outcome(row)
    return {
        "backend": str(row["backend"]),
        "label": words.short(str(row["label"]), 48) or "all networks",
        "ms": "" if reason else words.number(row["ms_per_image"]),
        "spread": "" if reason else f"{words.number(row['q1'])} to {words.number(row['q3'])}",
        "ratio": f"{ratio:.2f}×" if ratio else words.NOTHING,
        "reason": reason,
    }


def _specification(result: Result) -> str:
    return json.dumps(result.spec.model_dump(mode="json"), indent=1, ensure_ascii=False)
