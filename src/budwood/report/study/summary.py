"""The study's summary: how many more mistakes a pruned network makes than the dense one, over tasks."""

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cells import Backbone, Cell, Group, Table

RESAMPLES = 2000
"""Of a bootstrap: enough that the ends of a 95 % interval move by a few hundredths of its width."""
LEVEL = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True)
class RelativeError:
    """Mean over tasks of (error - dense error) / dense error, a fraction: 0.1 is a tenth more mistakes than dense."""

    value: float
    interval: Interval | None
    """95 %; None for the dense network itself, and for fewer than two tasks."""
    tasks: tuple[str, ...]
    """Those it is the mean of."""
    without: tuple[str, ...]
    """Tasks of the study that are not in it: no cell, no dense one, or a dense one without a mistake."""


def relative_error(
    table: Table, group: Group, backbone: Backbone, *, tasks: Collection[str] | None = None,
    resamples: int = RESAMPLES, seed: int = 0,
) -> RelativeError | None:  # fmt: skip
    """Mean over tasks (of `tasks` alone, if given) of the relative increase in error against dense; the errors are
    averaged over seeds first. None if there is no task with both networks.

    The measure is that of Iofinova et al., How Well Do Sparse ImageNet Models Transfer?, CVPR 2022. The interval is a
    percentile bootstrap: tasks are drawn with replacement, and within each the seeds of both networks, as pairs where
    both have the same seeds. It says how far the mean would move with other tasks and seeds of the same kind, not with
    another pruning by the same method. With the few seeds of a study it is somewhat too narrow, and with one seed it
    knows of the tasks' spread alone.
    """
    wanted = [task for task in table.tasks if tasks is None or task in tasks]
    found = {task: pair for task in wanted if (pair := against_dense(table, group, backbone, task))}
    pairs = {task: (cell, dense) for task, (cell, dense) in found.items() if dense.mean < 1}
    if not pairs:
        return None
    changes = [(dense.mean - cell.mean) / (1 - dense.mean) for cell, dense in pairs.values()]
    interval = None
    if len(pairs) > 1 and not backbone.dense and resamples:
        interval = _bootstrap(list(pairs.values()), resamples, seed)
    without = tuple(task for task in wanted if task not in pairs)
    return RelativeError(statistics.fmean(changes), interval, tuple(pairs), without)


def by_grain(
    table: Table, group: Group, backbone: Backbone, fine: Mapping[str, bool], *, resamples: int = RESAMPLES
) -> tuple[RelativeError | None, RelativeError | None]:
    """Relative error on fine-grained tasks, and on general ones. Tasks that `fine` does not name are in neither."""

    def over(kind: bool) -> RelativeError | None:
        tasks = [task for task, is_fine in fine.items() if is_fine is kind]
        return relative_error(table, group, backbone, tasks=tasks, resamples=resamples)

    return over(True), over(False)


def against_dense(table: Table, group: Group, backbone: Backbone, task: str) -> tuple[Cell, Cell] | None:
    """The network's cell and the dense network's; None if either is missing."""
    cell = table.at(group, backbone, task)
    dense = table.reference(cell) if cell else None
    return (cell, dense) if cell and dense else None


def mean_accuracy(
    table: Table, group: Group, backbones: Collection[Backbone]
) -> tuple[list[str], dict[Backbone, float]]:
    """Tasks on which all of `backbones` have a cell, and each one's mean accuracy over just these (none: empty)."""
    cells = {task: [table.at(group, backbone, task) for backbone in backbones] for task in table.tasks}
    tasks = [task for task, row in cells.items() if row and all(row)]
    columns = zip(*(cells[task] for task in tasks), strict=True)
    return tasks, {
        backbone: statistics.fmean(cell.mean for cell in column if cell)
        for backbone, column in zip(backbones, columns, strict=False)
    }


def _bootstrap(pairs: list[tuple[Cell, Cell]], resamples: int, seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    seeds = max(cell.n for pair in pairs for cell in pair)
    chosen = rng.integers(len(pairs), size=(resamples, len(pairs)))
    draws = rng.random((2, resamples, len(pairs), seeds))
    together = np.array([cell.scores.keys() == dense.scores.keys() for cell, dense in pairs])[chosen]
    np.copyto(draws[1], draws[0], where=together[..., None])
    sparse, dense = (
        _resampled([_errors(pair[side]) for pair in pairs], chosen, draws[side]) for side in (0, 1)
    )  # fmt: skip
    same = np.where(sparse == dense, 0.0, np.inf)  # of a dense error of zero
    changes = np.divide(sparse - dense, dense, out=same, where=dense > 0).mean(axis=1)
    return percentiles(changes)


def percentiles(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of `values`; without interpolation, so that an infinite one is a value like any other."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(low), float(high)


def _errors(cell: Cell) -> list[float]:
    """By seed, so that the same seeds stand at the same places."""
    return [1 - cell.scores[seed] for seed in sorted(cell.scores)]


def _resampled(errors: list[list[float]], chosen: NDArray[np.int64], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean error of the chosen tasks, (resamples, tasks), each over as many seeds as it has, drawn with replacement.
    `draws`: (resamples, tasks, seeds) uniform numbers, of which a task with fewer seeds uses the first ones."""
    counts = np.array([len(row) for row in errors])
    table = np.zeros((len(errors), draws.shape[-1]))
    for row, values in zip(table, errors, strict=True):
        row[: len(values)] = values
    n = counts[chosen][..., None]
    drawn = table[chosen[..., None], (draws * n).astype(np.int64)]
    sums = np.where(np.arange(draws.shape[-1]) < n, drawn, 0).sum(axis=-1)
    return sums / n[..., 0]
