"""Everything the page says of a study, computed once: relative errors, outcomes, ranks, what is missing."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...core.result import Result
from .behaviour import Calibration, calibration
from .cells import Backbone, Cell, Group, Labels, Table, backbone_of, group_of
from .compare import OverTasks, Tally, comparisons, over_tasks, tally
from .rank import Ranks, mean_ranks
from .summary import RelativeError, relative_error

Place = tuple[Group, Backbone, str]


@dataclass(frozen=True)
class GroupNumbers:
    """Of one way of transfer under one protocol."""

    group: Group
    errors: Mapping[Backbone, RelativeError]
    tallies: Mapping[Backbone, Tally]
    tests: Mapping[Backbone, OverTasks]
    ranks: tuple[Ranks, ...]

    def rank(self, backbone: Backbone) -> tuple[float, int] | None:
        """(mean rank, among how many) at its sparsity; None where it has no rival."""
        own = next((r for r in self.ranks if backbone in r.means), None)
        return (own.means[backbone], len(own.means)) if own else None


@dataclass(frozen=True)
class Best:
    """The network with the least relative error of those of one architecture pruned to one share.

    Compared are only networks that were run on the same tasks, as many as any of them.
    """

    backbone: Backbone
    error: RelativeError
    rivals: int
    """Networks it was chosen from, itself among them."""


@dataclass(frozen=True)
class Calibrated:
    """Mean over `tasks` of the expected calibration error (a fraction) and the negative log-likelihood (nats)."""

    ece: float
    nll: float | None
    tasks: tuple[str, ...]

    @classmethod
    def over(cls, cells: Sequence[Calibration], tasks: tuple[str, ...]) -> "Calibrated":
        ece, nll = [c.ece.mean for c in cells if c.ece], [c.nll.mean for c in cells if c.nll]
        whole = len(nll) == len(cells)
        return cls(statistics.fmean(ece), statistics.fmean(nll) if whole else None, tasks)


@dataclass(frozen=True)
class Study:
    """`labels` name networks by the digest they start from, as in `cells.table`."""

    table: Table
    labels: Labels = field(default_factory=dict)

    @cached_property
    def missing(self) -> dict[Place, list[Result]]:
        """Runs without a result, by the cell they belong to; runs that only prune are in none."""
        found: dict[Place, list[Result]] = defaultdict(list)
        for result in self.table.missing:
            spec = result.spec
            if spec.transfer != "none":
                found[group_of(spec), backbone_of(spec, self.labels), spec.task].append(result)
        return found

    @cached_property
    def groups(self) -> list[Group]:
        return sorted(
            {*self.table.groups, *(group for group, _, _ in self.missing)},
            key=lambda g: (g.protocol, g.transfer != "linear", g.epochs),
        )

    @cached_property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys([*self.table.tasks, *(task for _, _, task in self.missing)]))

    @cached_property
    def backbones(self) -> list[Backbone]:
        """By architecture, the dense one first, then by sparsity and method."""
        found = {*self.table.backbones, *(backbone for _, backbone, _ in self.missing)}
        return sorted(found, key=lambda b: (b.model, not b.dense, b.sparsity, b.method.casefold()))

    @cached_property
    def models(self) -> list[str]:
        return list(dict.fromkeys(b.model for b in self.backbones))

    def rows(self, group: Group, model: str) -> list[Backbone]:
        """The networks of one architecture that have, or should have, a cell in the group."""
        asked = {b for g, b, _ in self.missing if g == group}
        asked |= {cell.backbone for cell in self.in_group.get(group, ())}
        return [b for b in self.backbones if b.model == model and b in asked]

    def tasks_of(self, group: Group, model: str) -> list[str]:
        """The tasks on which some network of this architecture was, or should be, run in the group."""
        asked = {task for g, b, task in self.missing if (g, b.model) == (group, model)}
        asked |= {cell.task for cell in self.in_group.get(group, ()) if cell.backbone.model == model}
        return [task for task in self.tasks if task in asked]

    @cached_property
    def in_group(self) -> dict[Group, list[Cell]]:
        found: dict[Group, list[Cell]] = defaultdict(list)
        for cell in self.table.cells:
            found[cell.group].append(cell)
        return found

    @cached_property
    def numbers(self) -> dict[Group, GroupNumbers]:
        return {group: _numbers(self.table, group) for group in self.groups}

    @cached_property
    def gaps(self) -> Counter[str]:
        """Cells without a number, by why: failed, skipped, not run."""
        found: Counter[str] = Counter()
        for group in self.groups:
            for model in self.models:
                for backbone in self.rows(group, model):
                    for task in self.tasks_of(group, model):
                        if self.table.at(group, backbone, task) is None:
                            found[self.why(group, backbone, task)[0]] += 1
        return found

    def why(self, group: Group, backbone: Backbone, task: str) -> tuple[str, str]:
        """(what kept a cell from having a number, the reason that was given)."""
        runs = self.missing.get((group, backbone, task))
        if not runs:
            return "not run", ""
        reasons = "; ".join(dict.fromkeys(r.reason for r in runs if r.reason))
        return ("failed" if any(r.status == "failed" for r in runs) else runs[0].status), reasons

    def best(self, group: Group, model: str) -> dict[float, Best]:
        """Sparsity -> the best of at least two networks."""
        errors = self.numbers[group].errors
        levels: dict[float, list[Backbone]] = defaultdict(list)
        for backbone in errors:
            if backbone.model == model and not backbone.dense:
                levels[backbone.sparsity].append(backbone)
        found = {}
        for sparsity, backbones in sorted(levels.items()):
            tasks = max((errors[b].tasks for b in backbones), key=len)
            rivals = [b for b in backbones if errors[b].tasks == tasks]
            if len(rivals) > 1:
                first = min(rivals, key=lambda b: errors[b].value)
                found[sparsity] = Best(first, errors[first], len(rivals))
        return found

    @cached_property
    def calibrated(self) -> dict[tuple[Group, str], dict[Backbone, Calibrated]]:
        """By group and architecture: means over the tasks on which every network that has a calibration has one."""
        found: dict[tuple[Group, str], dict[Backbone, dict[str, Calibration]]] = {}
        for cell in self.table.cells:
            if (own := calibration(cell)).ece:
                rows = found.setdefault((cell.group, cell.backbone.model), {})
                rows.setdefault(cell.backbone, {})[cell.task] = own
        order = {backbone: i for i, backbone in enumerate(self.backbones)}
        return {
            key: _calibrated({b: rows[b] for b in sorted(rows, key=order.__getitem__)}, self.tasks)
            for key, rows in found.items()
        }

    @cached_property
    def runs_with_layers(self) -> dict[Backbone, list[Result]]:
        """One run of each mask: the others have the same layers."""
        found: dict[Backbone, dict[str, Result]] = defaultdict(dict)
        for cell in self.table.cells:
            for result in cell.results:
                if result.layers:
                    found[cell.backbone].setdefault(result.mask_digest, result)
        return {backbone: [*runs.values()] for backbone, runs in found.items()}


def _calibrated(rows: Mapping[Backbone, Mapping[str, Calibration]], tasks: Sequence[str]) -> dict[Backbone, Calibrated]:
    common = [task for task in tasks if all(task in row for row in rows.values())]
    return {b: Calibrated.over([row[t] for t in common], tuple(common)) for b, row in rows.items() if common}


def _numbers(table: Table, group: Group) -> GroupNumbers:
    found = comparisons(table, group)
    own = {c.backbone for c in found}
    errors = {b: relative_error(table, group, b) for b in table.backbones if b in own}
    return GroupNumbers(
        group,
        {b: error for b, error in errors.items() if error},
        {b: tally(found, b) for b in table.backbones if b in own},
        {test.backbone: test for test in over_tasks(table, group)},
        tuple(mean_ranks(table, group)),
    )
