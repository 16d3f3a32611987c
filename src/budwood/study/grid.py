"""A study's file to its runs: what is opened, what is planned, what must be done before what."""

import glob
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..core.files import canonical_json
from ..core.registry import methods
from ..core.spec import Recipe, RunSpec, Transfer
from ..core.task import Task
from ..models.network import Network, check_linear_head, open_network
from ..tasks.manifest import check_manifest
from ..tasks.opening import open_task
from ..tasks.plain import Images
from ..transfer.protocols import recipe_for, task_for
from .file import ModelEntry, StudyFile, TaskEntry
from .run import MARKER, make_pruner
from .specs import Pruning, Start, TaskKey, counting, data_facts, task_key, transfer_spec, upstream_spec
from .store import Origin


@dataclass
class Grid:
    """The runs of a study, and what was opened to plan them.

    `upstream` prune before any transfer; a transfer whose parent is `run:ID` needs one of them, and one with a teacher
    needs that. `origins` says of each network, by its digest or `run:ID`, how it is opened and called; `tasks` has the
    opened tasks by what a spec says of them.
    """

    upstream: list[RunSpec] = field(default_factory=list)
    transfers: list[RunSpec] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    tasks: dict[TaskKey, Task] = field(default_factory=dict)
    calibration: Images | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def specs(self) -> list[RunSpec]:
        return [*self.upstream, *self.transfers]


def check_folder(path: Path) -> None:
    """Raise UserError where `path` is not a folder for runs: new, empty, or one of ours already."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder for the runs")
    if (path / "spec.json").exists():
        raise UserError(f"{path} is the folder of one run; name the folder that holds the runs, {path.parent}")
    foreign = path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir())
    if foreign and not (path / MARKER).exists():
        raise UserError(f"{path} holds other files already; name a new or empty folder")


def needs(spec: RunSpec) -> set[str]:
    """run_ids of what must be done before."""
    kind, _, run_id = spec.parent.partition(":")
    return ({run_id} if kind == "run" else set()) | ({spec.teacher} if spec.teacher else set())


def expand(study: StudyFile) -> Grid:
    """Open every network and task of a study and plan its runs. Raises UserError for all that could not be done."""
    check_folder(study.out)
    _check_prunings(study)
    grid = Grid()
    opened = [_opened(study, entry, grid) for entry in study.tasks]
    _different([task.name for task in opened], "tasks", "name")
    trained_on = _upstream_task(study, grid)
    for entry in _models(study):
        network = open_network(entry.model)
        start = Start.of(network)
        if (twin := grid.origins.get(start.parent)) is not None:
            raise UserError(f"{entry.model} is the same network as {twin.source}; name it once")
        grid.origins[start.parent] = Origin(entry.model, entry.label, entry.sparsity, entry.accuracy)
        grid.notes += network.notes
        if "linear" in study.transfers:
            check_linear_head(network)
        starts = [start]
        if start.sparsity == 0 and study.when == "upstream":
            starts += _pruned_upstream(study, network, start, trained_on, grid)
        for task in opened:
            for begin in starts:
                grid.transfers += _transfers(study, begin, task, network)
    _check_twins(grid)
    return grid


def _opened(study: StudyFile, entry: TaskEntry, grid: Grid) -> Task:
    task = open_task(entry.data, entry.root, metric=entry.metric)
    if entry.manifest is not None:
        check_manifest(task, entry.manifest)
    grid.notes += [f"{task.name}: {note}" for note in task.notes]
    task = task_for(study.protocol, task)
    grid.tasks[task_key(task)] = task
    return task


def _upstream_task(study: StudyFile, grid: Grid) -> Task | None:
    """Opens what pruning sees."""
    seen = study.upstream
    if seen.calibration is not None:
        grid.calibration = Images(seen.calibration)
    if seen.data is None:
        return None
    task = open_task(seen.data, seen.root)
    grid.tasks[task_key(task)] = task
    return task


def _models(study: StudyFile) -> Iterator[ModelEntry]:
    """Every model, a * filled in."""
    for entry in study.models:
        if "*" not in entry.model or Path(entry.model).exists():
            yield entry
            continue
        found = sorted(glob.glob(entry.model))
        if not found:
            raise UserError(f"no file is like {entry.model}; check the path")
        yield from (entry.model_copy(update={"model": path}) for path in found)


def _prunings(study: StudyFile) -> Iterator[tuple[Pruning, str]]:
    """Each method at each sparsity, and what the report calls it."""
    for entry in study.methods:
        settings = ", ".join(f"{key}={value}" for key, value in sorted(entry.options.items()))
        for sparsity in study.sparsities:
            yield Pruning(entry.method, sparsity, entry.options), f"{entry.method} {settings}".strip()


def _check_prunings(study: StudyFile) -> None:
    """The report tells sparsities to three digits."""
    counts = Counter(f"{label} at {round(pruning.sparsity, 3):g}" for pruning, label in _prunings(study))
    for pruning, count in counts.items():
        if count > 1:
            raise UserError(f"{pruning} is there twice; name it once")


def _pruned_upstream(
    study: StudyFile, network: Network, start: Start, trained_on: Task | None, grid: Grid
) -> Iterator[Start]:
    """Plans the pruning of one dense network; where the transfers of what comes of it start."""
    trains = trained_on is not None
    facts = data_facts(trained_on, grid.calibration.digest() if grid.calibration else None)
    for pruning, label in _prunings(study):
        tags = methods.get(pruning.method).tags
        if not trains and tags.needs_training:
            raise UserError(f"{pruning.method} prunes while it trains: name images for it as upstream: data")
        if not trains and tags.data != "none" and grid.calibration is None:
            raise UserError(f"{pruning.method} looks at images: name some as upstream: calibration")
        epochs = study.upstream.recipe.epochs if trains and tags.gradual else 0
        pruner = make_pruner(pruning.method, pruning.sparsity, pruning.options)
        pruner.check(network.module, network.mask, epochs)
        spec = upstream_spec(start, pruning, study.upstream.seed, study.upstream.recipe, facts, trains)
        grid.upstream.append(spec)
        parent = f"run:{spec.run_id}"
        grid.origins[parent] = Origin(label=label)
        yield Start(start.model, parent, start.preprocessing, pruning.method, "upstream", pruning.sparsity)


def _transfers(study: StudyFile, start: Start, task: Task, network: Network) -> Iterator[RunSpec]:
    """Every way and seed of one network on one task; on the way pruned, if the study does so."""
    way: Transfer
    for way in study.transfers:
        given = study.transfers[way].recipe
        recipe = recipe_for(study.protocol, task, way, given)
        prunings = [] if study.when == "upstream" or start.sparsity > 0 else [p for p, _ in _prunings(study)]
        for seed in counting(study.seeds(way), way, recipe, [pruning.method for pruning in prunings]):
            first = transfer_spec(start, task, way, seed, given, study.protocol)
            yield first
            for pruning in prunings:
                _check_downstream(pruning, network, way, recipe)
                teacher = first.run_id if recipe.distill else None
                yield transfer_spec(start, task, way, seed, given, study.protocol, pruning, teacher)


def _check_downstream(pruning: Pruning, network: Network, way: Transfer, recipe: Recipe) -> None:
    pruner = make_pruner(pruning.method, pruning.sparsity, pruning.options)
    gradual = way == "full" and pruner.tags.gradual
    if not gradual and not pruner.tags.at_once:
        raise UserError(f"{pruning.method} prunes while it trains, and a linear head trains nothing else; leave it out")
    pruner.check(network.module, network.backbone, recipe.epochs if gradual else 0)


def _different(names: list[str], what: str, how: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two {what} have the {how} {twice[0]}; give them different ones")


def _check_twins(grid: Grid) -> None:
    """Two networks that the report could not tell apart."""
    seen: dict[tuple[str, str, float], str] = {}
    for spec in grid.transfers:
        origin = grid.origins[spec.parent]
        label, sparsity, mend = origin.label or "dense", 0.0, "give one of them a label"
        if spec.where == "upstream":
            label, sparsity = origin.label or spec.method, origin.sparsity or spec.sparsity
        elif spec.where != "none":  # pruned on the way, from a dense network whose label says nothing of it
            label, sparsity, mend = f"{spec.method} ({spec.where})", spec.sparsity, "leave one of them out"
            label += f" {canonical_json(spec.options)}" if spec.options else ""
        key = (spec.model, label, round(sparsity, 3))
        if seen.setdefault(key, spec.parent) != spec.parent:
            names = " and ".join(grid.origins[each].source or each for each in (seen[key], spec.parent))
            raise UserError(f"{names} are both {label} at {key[2]:g}; {mend}")
