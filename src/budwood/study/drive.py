"""A whole study: plan it, do what is not done, keep what comes of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from ..core.result import Result
from ..core.spec import RunSpec
from .file import StudyFile
from .grid import Grid, expand, needs
from .jobs import Context, Job, jobs_of
from .run import CHECKPOINT, RESULT, drop_damaged, mark
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
    ids = [spec.run_id for spec in grid.specs]
    _take_over(store, ids, study.out)
    for note in dict.fromkeys(grid.notes):
        told(note)
    everything = frozenset(ids) if study.keep_checkpoints else frozenset()
    begun = _open(grid.specs, _statuses(store, ids), retry, everything, study.out)
    keep = everything | _needed(begun, study.out, told)
    sources = {parent: origin.source for parent, origin in grid.origins.items() if origin.source}
    context = Context(study.out, sources, grid.tasks, grid.calibration, keep, *astuple(machine))
    for level in _levels(grid):
        statuses = _statuses(store, ids)
        ready, blocked = _by_needs(_open(level, statuses, retry, keep, study.out), statuses, study.out)
        store.record(blocked)
        again = {spec.run_id for spec in ready}
        before = sum(statuses[run_id] == "done" and run_id not in again for run_id in ids)
        for results in execute(jobs_of(ready), context):
            store.record(results)
            before += len(results)
            done(results, before, len(ids))
    return _statuses(store, ids)


def _statuses(store: Store, ids: Sequence[str]) -> dict[str, Status]:
    """Of these runs. One may have been forgotten: another study of this name has another plan."""
    known = store.statuses()
    return {run_id: known.get(run_id, "planned") for run_id in ids}


def _open(
    specs: Sequence[RunSpec], statuses: Mapping[str, Status], retry: bool, keep: frozenset[str], root: Path
) -> list[RunSpec]:
    """Where there is something to do: a skipped run may have what it needs now, and a finished one have lost its
    network, which is to be kept."""
    through = {"done"} if retry else {"done", "failed"}
    lost = {i for i in keep if statuses[i] == "done" and not (root / i / CHECKPOINT).exists()}
    return [spec for spec in specs if statuses[run_id := spec.run_id] not in through or run_id in lost]


def _needed(specs: Sequence[RunSpec], root: Path, told: Callable[[str], None]) -> frozenset[str]:
    """Runs whose networks these begin with. One that is damaged is removed, so that its run is open again."""
    needed = frozenset(run_id for spec in specs for run_id in needs(spec))
    for run_id in sorted(needed):
        if drop_damaged(path := root / run_id / CHECKPOINT):
            told(f"{path} is damaged; it is made again")
    return needed


def _levels(grid: Grid) -> list[list[RunSpec]]:
    """Runs by what must be done before: upstream, then what needs nothing else, then what needs a teacher."""
    return [
        grid.upstream,
        [spec for spec in grid.transfers if spec.teacher is None],
        [spec for spec in grid.transfers if spec.teacher is not None],
    ]


def _by_needs(specs: list[RunSpec], statuses: Mapping[str, str], root: Path) -> tuple[list[RunSpec], list[Result]]:
    """What can be done, and `skipped` results for what cannot because a run before it failed."""
    ready, blocked = [], []
    for spec in specs:
        done = {i for i in needs(spec) if statuses.get(i) == "done" and (root / i / CHECKPOINT).exists()}
        lacking = sorted(needs(spec) - done)
        if lacking:
            reason = f"it needs the network of run {lacking[0]}, which is not there"
            blocked.append(Result(run_id=spec.run_id, spec=spec, status="skipped", reason=reason))
        else:
            ready.append(spec)
    return ready, blocked


def _take_over(store: Store, ids: Sequence[str], root: Path) -> None:
    """Finished runs whose driver was killed before it could note them, or that `budwood transfer` made."""
    paths = [root / run_id / RESULT for run_id, status in _statuses(store, ids).items() if status != "done"]
    store.record(result for path in paths if path.exists() and (result := Result.load(path)).status == "done")
