"""A whole study: plan it, do what is not done, keep what comes of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from ..core.result import Result
from ..core.spec import RunSpec
from .file import StudyFile
from .grid import Grid, expand, needs
from .jobs import Context, Job, jobs_of
from .run import CHECKPOINT, RESULT, mark
from .store import Status, Store

Execute = Callable[[Sequence[Job], Context], Iterator[list[Result]]]
"""An executor: the results of each job as it ends."""


@dataclass(frozen=True)
class Machine:
    """How the runs are done; the results do not depend on it, but for the last digits on `threads` and `device`."""

    threads: int = 1
    loaders: int = 0
    device: str = "cpu"


def run_study(
    study: StudyFile,
    execute: Execute,
    machine: Machine,
    retry: bool = False,
    told: Callable[[str], None] = lambda text: None,
    done: Callable[[list[Result], int, int], None] = lambda results, finished, total: None,
) -> dict[str, Status]:
    """Do every run of a study that has no result yet, and with `retry` those that failed. `done` hears of each job's
    results, and how many runs of how many are through. Returns the status of each run of the study by its run_id.

    Raises UserError where the study cannot be planned; what goes wrong in a run is in the store.
    """
    grid = expand(study)
    mark(study.out)
    store = Store(study.out)
    store.plan(study.name, grid.specs, grid.origins)
    _take_over(store, grid.specs, study.out)
    for note in dict.fromkeys(grid.notes):
        told(note)
    ids = [spec.run_id for spec in grid.specs]
    keep = _kept(grid, _statuses(store, ids), study.keep_checkpoints)
    sources = {parent: origin.source for parent, origin in grid.origins.items() if origin.source}
    context = Context(study.out, sources, grid.tasks, grid.calibration, keep, *astuple(machine))
    for level in _levels(grid):
        statuses = _statuses(store, ids)
        open_ = [spec for spec in level if _is_open(spec.run_id, statuses[spec.run_id], retry, context)]
        ready, blocked = _by_needs(open_, statuses)
        store.record(blocked)
        before = sum(statuses[run_id] == "done" for run_id in ids)
        for results in execute(jobs_of(ready), context):
            store.record(results)
            before += len(results)
            done(results, before, len(ids))
    return _statuses(store, ids)


def _statuses(store: Store, ids: Sequence[str]) -> dict[str, Status]:
    """Of these runs. One may have been forgotten: it was in the plan of another study, which has been changed."""
    known = store.statuses()
    return {run_id: known.get(run_id, "planned") for run_id in ids}


def _kept(grid: Grid, statuses: Mapping[str, Status], everything: bool) -> frozenset[str]:
    """Runs whose networks have to be there: those that a run needs which is not done yet."""
    if everything:
        return frozenset(spec.run_id for spec in grid.specs)
    return frozenset(i for spec in grid.specs if statuses[spec.run_id] != "done" for i in needs(spec))


def _is_open(run_id: str, status: Status, retry: bool, context: Context) -> bool:
    """Whether there is something to do: a skipped run may have what it needs now, and a finished one have lost its
    network."""
    if status == "done":
        return run_id in context.keep and not (context.root / run_id / CHECKPOINT).exists()
    return retry or status != "failed"


def _levels(grid: Grid) -> list[list[RunSpec]]:
    """Runs by what must be done before: upstream, then what needs nothing else, then what needs a teacher."""
    return [
        grid.upstream,
        [spec for spec in grid.transfers if spec.teacher is None],
        [spec for spec in grid.transfers if spec.teacher is not None],
    ]


def _by_needs(specs: list[RunSpec], statuses: Mapping[str, str]) -> tuple[list[RunSpec], list[Result]]:
    """What can be done, and `skipped` results for what cannot because a run before it failed."""
    ready, blocked = [], []
    for spec in specs:
        lacking = sorted(run_id for run_id in needs(spec) if statuses.get(run_id) != "done")
        if lacking:
            reason = f"it needs run {lacking[0]}, which has no result"
            blocked.append(Result(run_id=spec.run_id, spec=spec, status="skipped", reason=reason))
        else:
            ready.append(spec)
    return ready, blocked


def _take_over(store: Store, specs: Sequence[RunSpec], root: Path) -> None:
    """Finished runs whose driver was killed before it could note them, or that `budwood transfer` made."""
    statuses = _statuses(store, [spec.run_id for spec in specs])
    paths = [root / run_id / RESULT for run_id, status in statuses.items() if status != "done"]
    store.record(result for path in paths if path.exists() and (result := Result.load(path)).status == "done")
