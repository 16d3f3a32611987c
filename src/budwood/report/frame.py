"""Results to rows: repeated seeds become one row, and every pruned row is held against its dense reference."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.files import canonical_json
from ..core.result import Result
from ..core.spec import RunSpec

CLOSE = 1.0
"""Points of accuracy: a pruned network that loses no more is called close to dense."""


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (None for a single value) of `n` values."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Stat | None":
        """None if there are no values."""
        found = list(values)
        if not found:
            return None
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


@dataclass(frozen=True)
class Row:
    """Finished runs that differ in nothing but the seed (and the parent that came with it)."""

    results: tuple[Result, ...]
    test: Stat | None
    """Accuracy as a fraction, in the task's metric; `val` likewise."""
    val: Stat | None
    delta: Stat | None
    """Test accuracy less the dense reference's of the same seed, in points; None for dense rows and where no
    reference was run."""

    @property
    def spec(self) -> RunSpec:
        return self.results[0].spec

    @property
    def dense(self) -> bool:
        return is_dense(self.results[0])

    @property
    def verified(self) -> bool:
        """Every run carries the digest of a mask, which a run only gets once its weights were checked against it."""
        return not self.dense and all(r.mask_digest for r in self.results)

    def average(self, name: str) -> float:
        """Mean over the runs of a number that every Result has."""
        return statistics.fmean(getattr(r, name) for r in self.results)

    def flops(self, name: str) -> float:
        """Mean over the runs of `flops` or `flops_dense`, of one image; 0 if it was not counted."""
        return statistics.fmean(sum(getattr(layer, name) for layer in r.layers) for r in self.results)


@dataclass(frozen=True)
class TaskFrame:
    """All runs on one task: rows of finished ones in reading order, and the others."""

    name: str
    task: Mapping[str, Any]
    rows: tuple[Row, ...]
    unfinished: tuple[Result, ...]

    @property
    def metric(self) -> str:
        return str(self.task.get("metric", "top1"))

    @property
    def classes(self) -> Sequence[str]:
        return self.task.get("classes") or ()

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.task.get("sizes") or {}

    @property
    def models(self) -> list[str]:
        return sorted({row.spec.model for row in self.rows})

    def best_dense(self) -> Row | None:
        return max((r for r in self.rows if r.dense and r.test), key=_mean, default=None)

    def reference(self, row: Row) -> Row | None:
        """The dense row of the same network and transfer; of the same recipe where there is one."""
        same = [r for r in self.rows if r.dense and _pair(r) == _pair(row)]
        return next((r for r in same if r.spec.recipe == row.spec.recipe), same[0] if same else None)

    def uncertainty(self, accuracy: float) -> float | None:
        """Half the width of the 95 % interval that the test split leaves around `accuracy`, in points."""
        if not self.sizes.get("test"):
            return None
        low, high = wilson(accuracy, self.sizes["test"])
        return 50 * (high - low)

    def showcase(self) -> Row | None:
        """The pruned row that the headline tells of: the sparsest that is close to dense, else the nearest.

        Looked for beside the most accurate dense reference, so that a weak reference flatters nothing; without
        any reference the most accurate pruned row.
        """
        pruned = [r for r in self.rows if not r.dense and r.test]
        compared = [r for r in pruned if r.delta]
        if not compared:
            return max(pruned, key=_mean, default=None)
        best = max(compared, key=lambda r: _mean(self.reference(r)))
        rivals = [r for r in compared if _pair(r) == _pair(best)]
        close = [r for r in rivals if is_close(r)]
        if close:
            return max(close, key=lambda r: (round(r.average("sparsity"), 4), _mean(r)))
        return max(rivals, key=lambda r: r.delta.mean if r.delta else -math.inf)


def frames(results: Iterable[Result]) -> list[TaskFrame]:
    """One frame a task (and version of its data), in the order in which the tasks first appear."""
    by_task: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        by_task[result.spec.task, result.spec.data].append(result)
    return [_frame(members) for members in by_task.values()]


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval (low, high; fractions) of an accuracy measured on `n` > 0 images."""
    z2 = 1.959964**2
    centre = (accuracy + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (accuracy * (1 - accuracy) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return centre - half, centre + half


def is_dense(result: Result) -> bool:
    """Nothing was asked to be pruned, and nothing is (a stray zero does not make a network sparse)."""
    return result.spec.sparsity == 0 and result.sparsity < 0.005


def is_close(row: Row) -> bool:
    return row.delta is not None and round(row.delta.mean, 1) >= -CLOSE


def _frame(results: list[Result]) -> TaskFrame:
    done = [r for r in results if r.status == "done"]
    task = next((r.task for r in [*done, *results] if r.task), {})
    metric = str(task.get("metric", "top1"))
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in done:
        same = result.spec.model_dump(mode="json", exclude={"seed", "parent", "teacher"})
        groups[canonical_json({**same, "distilled": result.spec.teacher is not None})].append(result)
    rows = [_row(sorted(group, key=lambda r: r.spec.seed), done, metric) for group in groups.values()]
    return TaskFrame(
        name=str(task.get("name") or results[0].spec.task),
        task=task,
        rows=tuple(sorted(rows, key=_reading_order)),
        unfinished=tuple(r for r in results if r.status != "done"),
    )


def _row(group: list[Result], done: list[Result], metric: str) -> Row:
    test, val = f"test_{metric}", f"val_{metric}"
    deltas = []
    for result in group:
        reference = None if is_dense(result) else _dense_like(result, done)
        if reference and test in result.metrics and test in reference.metrics:
            deltas.append(100 * (result.metrics[test] - reference.metrics[test]))
    return Row(
        results=tuple(group),
        test=Stat.of(r.metrics[test] for r in group if test in r.metrics),
        val=Stat.of(r.metrics[val] for r in group if val in r.metrics),
        delta=Stat.of(deltas),
    )


def _dense_like(result: Result, done: list[Result]) -> Result | None:
    """The dense run of the same network, transfer and seed; of the same recipe where there is one."""
    spec = result.spec
    wanted = (spec.model, spec.transfer, spec.seed)
    same = [r for r in done if is_dense(r) and (r.spec.model, r.spec.transfer, r.spec.seed) == wanted]
    return next((r for r in same if r.spec.recipe == spec.recipe), same[0] if same else None)


def _pair(row: Row) -> tuple[str, str]:
    return row.spec.model, row.spec.transfer


def _mean(row: Row | None) -> float:
    return row.test.mean if row and row.test else 0.0


def _reading_order(row: Row) -> tuple[Any, ...]:
    s = row.spec
    return s.model, s.transfer, not row.dense, s.sparsity, s.method, s.where, canonical_json(s.options)


# -- latency ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatencyFrame:
    """Rows of `bench.latency` measured alike: the same image size, batch and number of threads."""

    size: int
    batch: int
    threads: int
    rows: tuple[Mapping[str, Any], ...]

    @property
    def done(self) -> list[Mapping[str, Any]]:
        return [r for r in self.rows if r.get("ms_per_image")]

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(str(r["label"]) for r in self.rows))

    @property
    def backends(self) -> list[str]:
        return list(dict.fromkeys(str(r["backend"]) for r in self.rows))

    def reading(self) -> list[Mapping[str, Any]]:
        """The rows backend by backend; what kept a backend from all networks alike is one row, of no label."""
        shown = []
        for name in self.backends:
            rows = [r for r in self.rows if r["backend"] == name]
            if len(rows) > 1 and not any(r.get("ms_per_image") for r in rows) and len({_why(r) for r in rows}) == 1:
                rows = [{**rows[0], "label": ""}]
            shown += rows
        return shown

    def ratio(self, row: Mapping[str, Any]) -> float | None:
        """How many times as fast as the first network (the dense one) on the same backend; None for that itself."""
        if row["label"] == self.labels[0] or not row.get("ms_per_image"):
            return None
        first = next((r for r in self.done if (r["label"], r["backend"]) == (self.labels[0], row["backend"])), None)
        return first["ms_per_image"] / row["ms_per_image"] if first else None


def _why(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return row.get("status"), row.get("reason")


def latency_frames(rows: Iterable[Mapping[str, Any]]) -> list[LatencyFrame]:
    """One frame for each image size, batch and number of threads, in order of appearance."""
    groups: dict[tuple[int, int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row.get("size", 0), row["batch"], row["threads"]].append(row)
    return [LatencyFrame(*key, tuple(members)) for key, members in groups.items()]
