"""Ranks of the methods among each other."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .cells import Backbone, Group, Table


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of the networks pruned to one sparsity, 1 the most accurate; over `tasks`, where all have a cell."""

    model: str
    sparsity: float
    tasks: tuple[str, ...]
    means: Mapping[Backbone, float]

    def by_family(self, families: Mapping[str, str]) -> dict[str, float]:
        """Mean rank of the members of each family, best first. `families`: method -> family. "rigl erk 5x" is a rigl
        unless named itself; methods that it does not name are in none."""
        members: dict[str, list[float]] = defaultdict(list)
        for backbone, rank in self.means.items():
            family = families.get(backbone.method) or families.get(backbone.method.split()[0])
            if family:
                members[family].append(rank)
        means = {family: statistics.fmean(ranks) for family, ranks in members.items()}
        return dict(sorted(means.items(), key=lambda item: item[1]))


def mean_ranks(table: Table, group: Group) -> list[Ranks]:
    """One for each architecture and sparsity at which at least two methods share a task; best first. On a task the
    methods are ranked by their mean accuracy over seeds, and equal ones share the mean of their ranks."""
    rivals: dict[tuple[str, float], list[Backbone]] = defaultdict(list)
    for backbone in table.backbones:
        if not backbone.dense and any(table.at(group, backbone, task) for task in table.tasks):
            rivals[backbone.model, backbone.sparsity].append(backbone)
    return [
        found
        for (model, sparsity), backbones in rivals.items()
        if len(backbones) > 1 and (found := _ranks(table, group, model, sparsity, backbones))
    ]


def _ranks(table: Table, group: Group, model: str, sparsity: float, backbones: list[Backbone]) -> Ranks | None:
    rows = {task: [table.at(group, backbone, task) for backbone in backbones] for task in table.tasks}
    means = {task: [cell.mean for cell in row if cell] for task, row in rows.items() if all(row)}
    if not means:
        return None
    accuracy = np.round(list(means.values()), 12)  # so that rounding breaks no tie
    ranks = stats.rankdata(-accuracy, axis=1).mean(axis=0)
    best = sorted(zip(backbones, ranks.tolist(), strict=True), key=lambda item: item[1])
    return Ranks(model, sparsity, tuple(means), dict(best))
