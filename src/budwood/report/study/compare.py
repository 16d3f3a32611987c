"""Pruned against dense: wins, ties and losses on each task, and over all tasks."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .cells import Backbone, Cell, Group, Table
from .summary import against_dense

ALPHA = 0.05
STILL = 1e-12
"""Accuracies that differ by less are the same: it is rounding."""

Outcome = Literal["win", "tie", "loss", "untested"]
Columns = NDArray[np.float64]
"""(values, columns)."""


@dataclass(frozen=True)
class Significance:
    """What a test of a difference from dense said. `p` is None where nothing can be tested, and `reason` says why;
    `adjusted` is p corrected for all comparisons of the group."""

    name: str = ""
    p: float | None = None
    adjusted: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """One network on one task against the dense one. `difference` of the mean accuracies, a fraction."""

    group: Group
    backbone: Backbone
    task: str
    difference: float
    test: Significance

    @property
    def outcome(self) -> Outcome:
        """A win or loss is significant after correction; a tie is not, which does not prove that both are equal."""
        return outcome(self.difference, self.test)


@dataclass(frozen=True)
class Tally:
    """How many tasks a network wins, ties and loses against dense, of those where both were run."""

    win: int
    tie: int
    loss: int
    untested: int
    no_worse: int
    """Tasks where the mean is at least the dense one's, whatever a test says: how the study counts."""

    @property
    def tasks(self) -> int:
        return self.win + self.tie + self.loss + self.untested


@dataclass(frozen=True)
class OverTasks:
    """One network against the dense one over tasks. `difference`: the mean over `tasks` tasks, a fraction."""

    backbone: Backbone
    tasks: int
    difference: float
    test: Significance

    @property
    def outcome(self) -> Outcome:
        return outcome(self.difference, self.test)


def outcome(difference: float, test: Significance) -> Outcome:
    if test.adjusted is None:
        return "untested"
    if test.adjusted >= ALPHA:
        return "tie"
    return "win" if difference > 0 else "loss"


def comparisons(table: Table, group: Group) -> list[Comparison]:
    """Every pruned network on every task against the dense one of the same architecture, where both were run.

    A paired t-test over the common seeds where seeds were run in pairs (one network's are among the other's), else
    Welch's t-test. p-values are corrected by Benjamini and Hochberg (1995) over the whole group, all networks and
    tasks: of what is then called a win or loss, 5 % are expected to be none. This false discovery rate is what a table
    of hundreds of comparisons can control with three to five seeds; Holm's guard against a single error would leave
    nothing to call. It holds for tests that depend positively, as those do that share a dense network.

    Seeds are of the transfer: where all of them start from one pruned network, a win is of that network, and does not
    say that pruning again by the same method would win.
    """
    found = []
    for backbone in table.backbones:
        for task in table.tasks:
            pair = None if backbone.dense else against_dense(table, group, backbone, task)
            if pair:
                difference = pair[0].mean - pair[1].mean
                found.append(Comparison(group, backbone, task, difference, seed_test(*pair)))
    return [replace(c, test=test) for c, test in zip(found, corrected([c.test for c in found]), strict=True)]


def tally(found: Iterable[Comparison], backbone: Backbone) -> Tally:
    """The outcomes of one network among the comparisons of one group."""
    own = [c for c in found if c.backbone == backbone]
    counts = {name: sum(c.outcome == name for c in own) for name in ("win", "tie", "loss", "untested")}
    return Tally(**counts, no_worse=sum(c.difference >= -STILL for c in own))


def over_tasks(table: Table, group: Group) -> list[OverTasks]:
    """Every pruned network against the dense one: Wilcoxon's signed-rank test (1945) on the differences of the tasks'
    mean accuracies, after Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006; corrected
    as in `comparisons`. Fewer than six tasks can never be significant at 5 %."""
    found = []
    for backbone in table.backbones:
        pairs = [] if backbone.dense else [against_dense(table, group, backbone, task) for task in table.tasks]
        differences = [pair[0].mean - pair[1].mean for pair in pairs if pair]
        if differences:
            mean = statistics.fmean(differences)
            found.append(OverTasks(backbone, len(differences), mean, _signed_rank(differences)))
    return [replace(o, test=test) for o, test in zip(found, corrected([o.test for o in found]), strict=True)]


def seed_test(cell: Cell, dense: Cell) -> Significance:
    """Whether the accuracies of `cell` differ from those of `dense` by more than seeds do; not corrected."""
    seeds, others = set(cell.scores), set(dense.scores)
    common = seeds & others
    if len(common) > 1 and common in (seeds, others):
        changes = [cell.scores[seed] - dense.scores[seed] for seed in sorted(common)]
        if np.ptp(changes) < STILL:
            return Significance(reason="the difference is the same for every seed")
        return Significance("paired t", float(stats.ttest_1samp(changes, 0).pvalue))
    (test,) = welch(*(np.array(list(c.scores.values()))[:, None] for c in (cell, dense)))
    return test


def welch(sample: Columns, other: Columns) -> list[Significance]:
    """Whether two independent samples differ in their means, column by column."""
    if min(len(sample), len(other)) < 2:
        return [Significance(reason="a single seed")] * sample.shape[1]
    moments = [value for x in (sample, other) for value in (x.mean(axis=0), x.std(axis=0, ddof=1), len(x))]
    still = np.maximum(np.ptp(sample, axis=0), np.ptp(other, axis=0)) < STILL
    with np.errstate(divide="ignore", invalid="ignore"):  # of columns that stand still
        p = stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue
    same = Significance(reason="the accuracy is the same for every seed")
    return [same if at_rest else Significance("Welch t", float(value)) for at_rest, value in zip(still, p, strict=True)]


def corrected(tests: Sequence[Significance]) -> list[Significance]:
    """The same with `adjusted` p-values (Benjamini and Hochberg) over those that could be made."""
    made = [test.p for test in tests if test.p is not None]
    adjusted = iter(stats.false_discovery_control(made) if made else ())
    return [test if test.p is None else replace(test, adjusted=float(next(adjusted))) for test in tests]


def _signed_rank(differences: Sequence[float]) -> Significance:
    rounded = np.round(differences, 12)  # so that equal differences share a rank
    if len(differences) < 2:
        return Significance(reason="a single task")
    if not rounded.any():
        return Significance(reason="no difference on any task")
    return Significance("Wilcoxon signed rank", float(stats.wilcoxon(rounded).pvalue))
