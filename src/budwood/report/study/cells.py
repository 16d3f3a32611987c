"""Results to cells: one network, task and way of transfer, over seeds. Everything a study's report says starts here."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ...core.errors import UserError
from ...core.files import canonical_json
from ...core.result import Result
from ...core.spec import RunSpec

DENSE = "dense"


@dataclass(frozen=True, order=True)
class Backbone:
    """What is transferred: an architecture, how it was pruned, and the share of zeros asked for (three decimals)."""

    model: str
    method: str
    sparsity: float

    @property
    def dense(self) -> bool:
        return self.method == DENSE


class Label(NamedTuple):
    """What a study calls a network, where its checkpoint's own word for the method does not tell it from another, or
    its measured sparsity is not the one it was meant to have. None: as the checkpoint says."""

    method: str | None = None
    sparsity: float | None = None


Labels = Mapping[str, Label]
"""By the digest a run starts from, or `run:RUN_ID`."""


@dataclass(frozen=True, order=True)
class Group:
    """What may be compared: the same way of transfer under the same protocol, trained for the same time."""

    transfer: str
    protocol: str
    epochs: int = 0
    """Of the transfer, not of the pruning before it; 0 where a head is fitted without any (L-BFGS)."""


@dataclass(frozen=True)
class Cell:
    """`scores`: seed -> test accuracy, a fraction in the task's metric. `results` is empty for published numbers."""

    group: Group
    backbone: Backbone
    task: str
    scores: Mapping[int, float]
    run_ids: Mapping[int, str] = field(default_factory=dict)
    results: tuple[Result, ...] = ()

    @property
    def n(self) -> int:
        return len(self.scores)

    @cached_property
    def mean(self) -> float:
        return statistics.fmean(self.scores.values())

    @cached_property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        return statistics.stdev(self.scores.values()) if self.n > 1 else None


@dataclass(frozen=True)
class Table:
    """All cells of a study, in reading order, and the runs without a result (planned, running, failed, skipped)."""

    cells: tuple[Cell, ...]
    missing: tuple[Result, ...] = ()

    @cached_property
    def _at(self) -> dict[tuple[Group, Backbone, str], Cell]:
        return {(cell.group, cell.backbone, cell.task): cell for cell in self.cells}

    def at(self, group: Group, backbone: Backbone, task: str) -> Cell | None:
        return self._at.get((group, backbone, task))

    @cached_property
    def groups(self) -> list[Group]:
        return sorted({cell.group for cell in self.cells}, key=lambda g: (g.protocol, g.transfer != "linear", g.epochs))

    @cached_property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(cell.task for cell in self.cells))

    @cached_property
    def backbones(self) -> list[Backbone]:
        """By architecture, the dense one first, then by sparsity and method."""
        found = {cell.backbone for cell in self.cells}
        return sorted(found, key=lambda b: (b.model, not b.dense, b.sparsity, b.method))

    def reference(self, cell: Cell) -> Cell | None:
        """The dense network of the same architecture, on the same task and in the same group."""
        return self.at(cell.group, Backbone(cell.backbone.model, DENSE, 0.0), cell.task)


def table(results: Iterable[Result], labels: Labels | None = None) -> Table:
    """Cells of the finished runs.

    Raises UserError where two runs of one cell have the same seed (they differ in something no label tells), and where
    runs that would be compared saw different images of a task.
    """
    groups: dict[tuple[Group, Backbone, str], list[Result]] = defaultdict(list)
    missing = []
    for result in results:
        if result.status != "done":
            missing.append(result)
        elif result.spec.transfer != "none":
            groups[group_of(result.spec), backbone_of(result.spec, labels or {}), result.spec.task].append(result)
    _check_data([result for members in groups.values() for result in members])
    cells = tuple(_cell(*key, members) for key, members in groups.items())
    order = {task: i for i, task in enumerate(sorted({cell.task for cell in cells}))}
    return Table(
        tuple(sorted(cells, key=lambda c: (c.group, c.backbone.model, c.backbone, order[c.task]))), tuple(missing)
    )


def group_of(spec: RunSpec) -> Group:
    if spec.transfer != "linear":
        return Group(spec.transfer, spec.protocol, spec.recipe.epochs)
    recipe = spec.recipe.for_linear()
    return Group(spec.transfer, spec.protocol, recipe.epochs if recipe.head != "lbfgs" else 0)


def backbone_of(spec: RunSpec, labels: Labels) -> Backbone:
    label = labels.get(spec.parent, Label())
    if spec.sparsity == 0:
        return Backbone(spec.model, label.method or DENSE, 0.0)
    if spec.where in ("downstream", "one-shot"):  # where it starts is a dense network, whose label says nothing of it
        label = Label(f"{spec.method} ({spec.where})")
    name = label.method or spec.method
    if spec.options:
        name += " " + ", ".join(f"{key}={_plain(value)}" for key, value in sorted(spec.options.items()))
    return Backbone(spec.model, name, round(spec.sparsity if label.sparsity is None else label.sparsity, 3))


def _plain(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _check_data(results: list[Result]) -> None:
    versions: dict[tuple[Group, str], dict[str, str]] = defaultdict(dict)
    for result in results:
        versions[group_of(result.spec), result.spec.task][result.spec.data] = result.run_id
    for (group, task), seen in versions.items():
        if len(seen) > 1:
            raise UserError(
                f"{task} has runs on different images or splits ({', '.join(seen.values())}), {group.transfer} under "
                f"{group.protocol}: they cannot be compared; leave the ones of the older data out"
            )


def _cell(group: Group, backbone: Backbone, task: str, results: list[Result]) -> Cell:
    results = sorted(results, key=lambda r: r.spec.seed)
    seeds = [r.spec.seed for r in results]
    if len(set(seeds)) < len(seeds):
        ids = ", ".join(r.run_id for r in results)
        what = f"{backbone.model}, {backbone.method} at {backbone.sparsity:g}, on {task}"
        raise UserError(f"{what} has two runs of one seed ({ids}): leave one out, or name the networks apart")
    return Cell(
        group, backbone, task,
        {r.spec.seed: r.metrics[f"test_{r.spec.metric}"] for r in results},
        {r.spec.seed: r.run_id for r in results},
        tuple(results),
    )  # fmt: skip
