"""`budwood study`: a whole study from one file, done where it stopped, on one machine or on many."""

import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Table

from ..core.errors import UserError
from ..core.files import write_atomic
from ..core.registry import methods, tasks
from ..core.result import Result
from ..report import published
from ..report.study import cells, page
from ..report.study.relate import upstream_accuracy
from ..study import file as files
from ..study.drive import Execute, Machine, run_study
from ..study.jobs import Context, Job
from ..study.measure import measure
from ..study.run import running
from ..study.store import Store
from .common import Batch, Seconds, Threads, Workers, checked_device, label, print_json, say, screen, write_rows

app = App(name="study", help="Many transfers from one file: done, gone on with, and reported.")


@app.command
def init(path: Path = Path("study.yaml"), /) -> None:
    """Write a study's file to edit, with a word on each setting, and its schema for editors beside it.

    Parameters
    ----------
    path
        The file to write.
    """
    if path.exists():
        raise UserError(f"{path} is there already; name another file")
    write_atomic(path.parent / files.SCHEMA, files.schema())
    write_atomic(path, files.TEMPLATE)
    say(f"wrote {path}; edit it, then: budwood study run {path}")


@app.command
def run(
    path: Path,
    /,
    *,
    executor: Literal["local", "ray"] = "local",
    workers: Annotated[int, Parameter(name="--workers")] = 1,
    threads: Threads | None = None,
    loaders: Workers = 0,
    memory: float = 0.0,
    device: str = "cpu",
    retry: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Do every run of a study that is not done yet. Exit code 1 where a run failed.

    Parameters
    ----------
    path
        The study's file (`budwood study init` writes one).
    executor
        local: processes of this machine. ray: a Ray cluster, found by Ray's own settings (RAY_ADDRESS).
    workers
        Runs at a time on this machine.
    threads
        Threads of each run; this machine's processors divided by --workers if not given.
    loaders
        Processes beside each run that load images.
    memory
        GiB that each run asks of a Ray cluster; 0 asks for none.
    device
        cpu, cuda or another of PyTorch's.
    retry
        Try failed runs again.
    json
        Print one JSON row a run on stdout and nothing else.
    """
    if workers < 1:
        raise UserError("--workers must be at least 1")
    checked_device(device)
    study = files.read(path)
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    statuses = run_study(
        study, _executor(executor, workers, memory), Machine(threads, loaders, device), retry,
        told=lambda text: say(text, json), done=functools.partial(_say_results, json),
    )  # fmt: skip
    _print_status(Store.existing(study.out).results(study.name), study.out, json)
    if set(statuses.values()) != {"done"}:
        raise SystemExit(1)


def _executor(name: str, workers: int, memory: float) -> Execute:
    from ..study.executors import local, ray

    def on_ray(jobs: Sequence[Job], context: Context) -> Iterator[list[Result]]:
        return ray.run(jobs, context, memory)

    def here(jobs: Sequence[Job], context: Context) -> Iterator[list[Result]]:
        return local.run(jobs, context, workers)

    return on_ray if name == "ray" else here


def _say_results(quiet: bool, results: list[Result], finished: int, total: int) -> None:
    for result in results:
        spec = result.spec
        on = f" on {spec.task}" if spec.task != "none" else ""
        what = f"[{finished}/{total}] {spec.model}{on}, {label(spec)}"
        accuracy = result.metrics.get(f"test_{spec.metric}")
        came = f"{accuracy:.2%} {spec.metric}" if accuracy is not None else "done"
        outcome = came if result.status == "done" else f"{result.status}: {result.reason}"
        say(f"{what}: {outcome}, {result.seconds:.0f} s", quiet)


@app.command
def status(path: Path, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """How far a study is, by what its last `study run` planned. Opens no network and no image.

    Parameters
    ----------
    path
        The study's file.
    json
        Print one JSON row a run on stdout and nothing else.
    """
    study = files.read(path)
    results = Store.existing(study.out).results(study.name)
    if not results:
        raise UserError(f"{path} has not run in {study.out} yet; start it with `budwood study run {path}`")
    _print_status(results, study.out, json)


def _print_status(results: list[Result], root: Path, json: bool) -> None:
    """A table and the failures, or a row a run as JSON; a run's status may be `running` here."""
    states = {r.run_id: "running" if running(root / r.run_id) else r.status for r in results}
    if json:
        print_json([result.row() | {"status": states[result.run_id]} for result in results])
        return
    table = Table("task", "transfer", "done", "running", "failed", "waiting")
    counts: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        spec = result.spec
        way: str = "upstream" if spec.transfer == "none" else spec.transfer
        counts.setdefault(("" if way == "upstream" else spec.task, way), Counter())[states[result.run_id]] += 1
    for (task, way), found in sorted(counts.items()):
        numbers = [found["done"], found["running"], found["failed"], found["skipped"]]
        table.add_row(escape(task), way, *(str(n) if n else "" for n in numbers))
    screen.print(table)
    reasons = Counter(result.reason.partition("; see ")[0] for result in results if result.status == "failed")
    for reason, count in reasons.most_common(10):
        first = next(r for r in results if r.status == "failed" and r.reason.startswith(reason))
        say(f"{count} failed: {reason} (as {first.spec.model} on {first.spec.task}, {root / first.run_id})")


@app.command
def bench(path: Path, /, *, batch: Batch = 1, threads: Threads | None = None, seconds: Seconds = 60) -> None:
    """Time the study's networks in the engine, for its report. Run it while the machine does nothing else.

    Parameters
    ----------
    path
        The study's file.
    batch
        Images at a time.
    threads
        Threads of the engine; all processors if not given.
    seconds
        How long the networks of one size of image are timed.
    """
    study = files.read(path)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    count = measure(Store.existing(study.out), batch, seconds)
    say(f"timed {count} networks; they are in the report now: budwood study report {path}")


@app.command
def report(
    path: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    figures: Path | None = None,
) -> None:
    """Draw the report of what is done so far, of every study in the folder of the runs.

    Parameters
    ----------
    path
        The study's file.
    out
        The page to write, NAME.html (its numbers go beside it as CSV), or NAME.csv or NAME.parquet for one row a run;
        report.html in the folder of the runs if not given.
    figures
        Folder for the plots as PDF, for a paper.
    """
    study = files.read(path)
    store = Store.existing(study.out)
    target = out or study.out / "report.html"
    results = store.results()
    if not any(result.status == "done" and result.spec.transfer != "none" for result in results):
        raise UserError(_nothing_done(path, results))
    if target.suffix in (".csv", ".parquet"):
        write_rows([result.row() for result in results], target)
        written = [target]
    elif target.suffix == ".html":
        table, known = _drawn(store, results)
        written = page.write(table, target, study.name, **known)
        written += page.figures(table, figures, **known) if figures else []
    else:
        raise UserError(f"{target}: a report is NAME.html, or NAME.csv or NAME.parquet for the rows")
    say(f"report: {written[0]}" + (f" and {len(written) - 1} files beside it" if written[1:] else ""))


def _nothing_done(path: Path, results: list[Result]) -> str:
    reasons = [result.reason for result in results if result.status == "failed"]
    if not reasons:
        return f"no transfer of {path} is done yet; run `budwood study run {path}` first"
    return (
        f"no transfer of {path} is done, and {len(reasons)} runs failed, the first because: {reasons[0]}; when that is "
        f"mended, `budwood study run {path} --retry`"
    )


def _drawn(store: Store, results: list[Result]) -> tuple[cells.Table, page.Known]:
    """What the page shows, and what is known beside the results."""
    origins, speeds = store.origins(), store.speeds()
    labels = {parent: cells.Label(origin.label, origin.sparsity) for parent, origin in origins.items()}
    table = cells.table(results, labels)
    parents = {cells.backbone_of(r.spec, labels): r.spec.parent for cell in table.cells for r in cell.results[:1]}
    upstream = {b: a for found in upstream_accuracy(results, labels).values() for b, a in found.items()}
    upstream |= {b: a for b, p in parents.items() if p in origins and (a := origins[p].accuracy) is not None}
    known: page.Known = {
        "labels": labels,
        "published": published.table(),
        "upstream": upstream,
        "speed": {b: speeds[p]["ms_per_image"] for b, p in parents.items() if p in speeds},
        "fine_grained": {
            name: kind.fine_grained for name in tasks if (kind := tasks.get(name)).fine_grained is not None
        },
        "families": {name: methods.get(name).tags.family for name in methods},
    }
    return table, known
