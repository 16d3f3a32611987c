"""The study's tables, as text for the page: networks by tasks, and what is drawn from them."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..words import NOTHING, count, signed, sparsity
from .cells import Backbone, Cell, Group
from .compare import STILL
from .headline import error
from .numbers import Study
from .summary import against_dense

EXPLAINED = (
    "Accuracies are in per cent, mean and standard deviation over seeds, and lead to their runs; bold ones are at "
    "least the dense network's. Error is the relative increase in error against dense, mean over tasks, with a 95 % "
    "bootstrap interval over tasks and seeds; below 0 is better. Better, same and worse count tasks with a significant "
    "difference over seeds (t-test, false discovery rate of 5 % over all of this way of transfer); same is not shown "
    "to be equal. p is of the differences over tasks (Wilcoxon's signed-rank test, corrected likewise). Rank is the "
    "mean over tasks among networks of the same sparsity, 1 the best."
)


@dataclass(frozen=True)
class Entry:
    """What stands in one cell of a table: `sub` smaller below it, `title` for who points at it, `at` the id of the row
    with its runs."""

    text: str = NOTHING
    sub: str = ""
    title: str = ""
    at: str = ""
    strong: bool = False
    gap: bool = False


@dataclass(frozen=True)
class Row:
    """One network: `summary` is over tasks, `cells` are its tasks'."""

    method: str
    sparsity: str
    summary: list[Entry]
    cells: list[Entry]


@dataclass(frozen=True)
class Matrix:
    """The networks of one architecture, in one group."""

    model: str
    tasks: list[str]
    rows: list[Row]

    @property
    def gaps(self) -> int:
        return sum(entry.gap for row in self.rows for entry in row.cells)

    @property
    def size(self) -> int:
        return len(self.rows) * len(self.tasks)


def matrix(study: Study, group: Group, model: str, ids: Mapping[tuple[Group, Backbone, str], str]) -> Matrix | None:
    """None where the group has no network of this architecture."""
    backbones = study.rows(group, model)
    tasks = study.tasks_of(group, model)
    rows = [
        Row(
            method_name(b),
            NOTHING if b.dense else sparsity(b.sparsity),
            _summary(study, group, b, tasks),
            [_entry(study, group, b, task, ids) for task in tasks],
        )
        for b in backbones
    ]
    return Matrix(model, tasks, rows) if rows else None


def method_name(backbone: Backbone) -> str:
    return "Dense" if backbone.dense else backbone.method


def accuracy(cell: Cell) -> str:
    return f"{100 * cell.mean:.2f}"


def spread(cell: Cell) -> str:
    std = cell.std
    return "" if std is None else f"±\u00a0{100 * std:.2f}"


def _entry(
    study: Study, group: Group, backbone: Backbone, task: str, ids: Mapping[tuple[Group, Backbone, str], str]
) -> Entry:
    cell = study.table.at(group, backbone, task)
    if cell is None:
        what, reason = study.why(group, backbone, task)
        return Entry(title=f"missing: {what}" + (f", {reason}" if reason else ""), sub=what, gap=True)
    pair = None if backbone.dense else against_dense(study.table, group, backbone, task)
    lacking = len(study.missing.get((group, backbone, task), ()))
    return Entry(
        accuracy(cell),
        f"{cell.n} of {cell.n + lacking} runs" if lacking else spread(cell),
        at=ids[group, backbone, task],
        strong=bool(pair and pair[0].mean - pair[1].mean >= -STILL),
    )


def _summary(study: Study, group: Group, backbone: Backbone, tasks: list[str]) -> list[Entry]:
    """Mean, relative error, outcomes, test over tasks, rank."""
    cells = [study.table.at(group, backbone, task) for task in tasks]
    found = [cell.mean for cell in cells if cell]
    mean = Entry(title=f"needs all {count(len(tasks), 'task')}")
    if len(found) == len(tasks):
        mean = Entry(f"{100 * sum(found) / len(found):.2f}")
    if backbone.dense:
        return [mean, Entry("reference"), Entry(), Entry(), Entry()]
    return [mean, _error(study, group, backbone, tasks), *_outcomes(study, group, backbone)]


def _error(study: Study, group: Group, backbone: Backbone, tasks: list[str]) -> Entry:
    found = study.numbers[group].errors.get(backbone)
    if found is None:
        return Entry(title="no task with both this network and the dense one")
    sub = ""
    if found.interval:
        sub = f"{signed(100 * found.interval[0])} to {signed(100 * found.interval[1])}"
    if len(found.tasks) < len(tasks):
        sub = f"{len(found.tasks)} of {count(len(tasks), 'task')}"
    return Entry(error(found).removesuffix("\u00a0%"), sub)


def _outcomes(study: Study, group: Group, backbone: Backbone) -> list[Entry]:
    numbers = study.numbers[group]
    tally, test, rank = numbers.tallies.get(backbone), numbers.tests.get(backbone), numbers.rank(backbone)
    outcomes = Entry()
    if tally:
        told = f"{tally.win} / {tally.tie} / {tally.loss}"
        if tally.untested:
            told = f"{tally.untested} untested" if tally.untested == tally.tasks else told
        outcomes = Entry(told, f"{tally.no_worse} of {tally.tasks} no worse")
    over = Entry(title=test.test.reason if test else "")
    if test and test.test.adjusted is not None:
        over = Entry(p_value(test.test.adjusted))
    return [outcomes, over, Entry(f"{rank[0]:.1f}", f"of {rank[1]}") if rank else Entry(title="no rival here")]


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
