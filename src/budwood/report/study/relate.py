"""What accuracy on a task goes with: accuracy upstream, speed and size, the way of transfer, its length."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ...core.result import Result
from .cells import Backbone, Group, Labels, Table, backbone_of
from .summary import RESAMPLES, Interval, mean_accuracy, percentiles

UPSTREAM = "run:"
"""Begins a spec's `parent` where it is what another run makes."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho over `backbones` networks, of accuracy upstream and mean accuracy over `tasks`."""

    rho: float
    interval: Interval | None
    """95 %; None for fewer than four networks."""
    backbones: tuple[Backbone, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Gain:
    """One network on one task: mean accuracy over seeds with a linear head, and in a full transfer; fractions."""

    backbone: Backbone
    task: str
    linear: float
    full: float

    @property
    def gain(self) -> float:
        return self.full - self.linear


@dataclass(frozen=True)
class Lengths:
    """One network by the length of its transfer: epochs -> mean accuracy over `tasks`, where all lengths were run."""

    transfer: str
    protocol: str
    backbone: Backbone
    tasks: tuple[str, ...]
    accuracy: Mapping[int, float]


def upstream_correlation(
    table: Table, group: Group, model: str, upstream: Mapping[Backbone, float], *,
    resamples: int = RESAMPLES, seed: int = 0,
) -> Correlation | None:  # fmt: skip
    """Whether networks of one architecture that are better upstream are better downstream. Only networks with an
    accuracy in `upstream` and a cell count, and only tasks on which all of them have one. None for fewer than three,
    and where all are equally good.

    The interval is a percentile bootstrap over the networks: they are what another study would have others of.
    """
    own = [b for b in table.backbones if b.model == model and b in upstream]
    own = [b for b in own if any(table.at(group, b, task) for task in table.tasks)]
    tasks, means = mean_accuracy(table, group, own)
    if not tasks or len(own) < 3:
        return None
    pairs = np.array([[upstream[b], means[b]] for b in own])
    if not np.ptp(pairs, axis=0).all():
        return None
    rho = float(stats.spearmanr(pairs).statistic)
    interval = None
    if len(own) > 3 and resamples:
        chosen = np.random.default_rng(seed).integers(len(own), size=(resamples, len(own)))
        found = _spearman(pairs[:, 0][chosen], pairs[:, 1][chosen])
        interval = percentiles(found[~np.isnan(found)])
    return Correlation(rho, interval, tuple(own), tuple(tasks))


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row; NaN where a row has but one value."""
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (stats.rankdata(v, axis=1) for v in (x, y)))
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    rho: NDArray[np.float64] = np.divide((a * b).sum(axis=1), scale, out=np.full(len(a), np.nan), where=scale > 0)
    return rho


def upstream_accuracy(results: Iterable[Result], labels: Labels | None = None) -> dict[str, dict[Backbone, float]]:
    """Upstream task -> network -> test accuracy where it was pruned, from the runs that pruned it and the transfers
    that started from them. `labels` as in `cells.table`. Networks that came from elsewhere are not in it."""
    results = list(results)
    pruned = {UPSTREAM + r.run_id: r for r in results if r.status == "done" and r.spec.transfer == "none"}
    found: dict[tuple[str, Backbone], dict[str, float]] = defaultdict(dict)
    for spec in (r.spec for r in results if r.status == "done" and r.spec.parent in pruned):
        before = pruned[spec.parent]
        name = f"test_{before.spec.metric}"
        if name in before.metrics:
            found[before.spec.task, backbone_of(spec, labels or {})][spec.parent] = before.metrics[name]
    by_task: dict[str, dict[Backbone, float]] = defaultdict(dict)
    for (task, backbone), runs in found.items():
        by_task[task][backbone] = statistics.fmean(runs.values())
    return dict(by_task)


def pareto(accuracy: Mapping[Backbone, float], cost: Mapping[Backbone, float]) -> list[Backbone]:
    """The networks in both mappings to which no other is better in one and at least equal in the other: more accurate,
    or of lower cost (milliseconds, bytes, FLOPs). From the cheapest to the most accurate."""
    order = sorted((b for b in accuracy if b in cost), key=lambda b: (cost[b], -accuracy[b]))
    front: list[Backbone] = []
    for backbone in order:
        last = front[-1] if front else None
        twin = last and (accuracy[last], cost[last]) == (accuracy[backbone], cost[backbone])
        if last is None or twin or accuracy[backbone] > accuracy[last]:
            front.append(backbone)
    return front


def linear_against_full(table: Table, linear: Group, full: Group) -> list[Gain]:
    """Every network and task that was run both ways."""
    pairs = (
        (backbone, task, table.at(linear, backbone, task), table.at(full, backbone, task))
        for backbone in table.backbones
        for task in table.tasks
    )
    return [Gain(backbone, task, a.mean, b.mean) for backbone, task, a, b in pairs if a and b]


def training_length(table: Table) -> list[Lengths]:
    """Every network that was transferred the same way for different numbers of epochs."""
    ways: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in table.groups:
        ways[group.transfer, group.protocol].append(group)
    return [
        found
        for way, groups in ways.items()
        for backbone in table.backbones
        if (found := _lengths(table, *way, groups, backbone))
    ]


def _lengths(table: Table, transfer: str, protocol: str, groups: list[Group], backbone: Backbone) -> Lengths | None:
    own = [group for group in groups if any(table.at(group, backbone, task) for task in table.tasks)]
    tasks = [task for task in table.tasks if all(table.at(group, backbone, task) for group in own)]
    if len(own) < 2 or not tasks:
        return None
    cells = {group.epochs: [table.at(group, backbone, task) for task in tasks] for group in own}
    accuracy = {epochs: statistics.fmean(cell.mean for cell in row if cell) for epochs, row in cells.items()}
    return Lengths(transfer, protocol, backbone, tuple(tasks), accuracy)
