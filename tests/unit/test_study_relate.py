"""What accuracy goes with, by hand and by scipy's own functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from budwood.core.result import Result
from budwood.core.spec import RunSpec
from budwood.report.study.cells import Backbone, Cell, Group, Table
from budwood.report.study.relate import (
    linear_against_full,
    pareto,
    training_length,
    upstream_accuracy,
    upstream_correlation,
)

LINEAR, FULL, LONG = Group("linear", "budwood"), Group("full", "budwood", 10), Group("full", "budwood", 30)
NETS = [Backbone("m", f"x{i}", 0.9) for i in range(8)]


def made(scores: dict[Backbone, dict[str, float]], group: Group = LINEAR) -> tuple[Cell, ...]:
    return tuple(Cell(group, b, task, {0: s}) for b, tasks in scores.items() for task, s in tasks.items())


# -- upstream and downstream ----------------------------------------------------------------------------------


def test_spearman_by_hand() -> None:
    """Ranks 1 2 3 4 and 2 1 4 3: rho = 1 - 6 * 4 / (4 * 15)."""
    found = Table(made({b: {"a": s, "b": s} for b, s in zip(NETS[:4], (0.2, 0.1, 0.9, 0.3), strict=True)}))
    upstream = dict(zip(NETS[:4], (0.5, 0.6, 0.7, 0.71), strict=True))
    correlation = upstream_correlation(found, LINEAR, "m", upstream)
    assert correlation is not None
    assert correlation.rho == pytest.approx(0.6)
    assert correlation.backbones == tuple(NETS[:4]) and correlation.tasks == ("a", "b")


def test_its_interval_is_scipy_s_bootstrap() -> None:
    rng = np.random.default_rng(1)
    x = rng.random(8)
    y = np.round((x + 0.5 * rng.random(8)) / 2, 2)
    found = Table(made({b: {"a": float(s)} for b, s in zip(NETS, y, strict=True)}))
    ours = upstream_correlation(found, LINEAR, "m", dict(zip(NETS, x, strict=True)), resamples=20_000)
    assert ours is not None and ours.interval is not None
    theirs = stats.bootstrap(
        (x, y), lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert ours.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert ours.interval == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_who_counts() -> None:
    """Only this architecture, only networks known upstream, only tasks that all of these have."""
    scores = {b: {"a": i / 10, "b": (5 - i) / 10} for i, b in enumerate(NETS[:3])}
    del scores[NETS[0]]["b"]
    others = {Backbone("n", "y", 0.5): {"a": 0.9}, NETS[7]: {"a": 0.1}}
    known = {b: i / 10 for i, b in enumerate(NETS[:3])} | {Backbone("n", "y", 0.5): 0.1, NETS[6]: 0.3}
    correlation = upstream_correlation(Table(made(scores | others)), LINEAR, "m", known)
    assert correlation is not None
    assert (correlation.rho, correlation.tasks, correlation.interval) == (pytest.approx(1), ("a",), None)


def test_nothing_to_correlate_is_none() -> None:
    found = Table(made({b: {"a": 0.1 * i} for i, b in enumerate(NETS[:3])}))
    assert upstream_correlation(found, LINEAR, "m", {b: 0.5 for b in NETS}) is None  # all as good upstream
    assert upstream_correlation(found, LINEAR, "m", {b: i / 10 for i, b in enumerate(NETS[:2])}) is None
    assert upstream_correlation(found, FULL, "m", {b: i / 10 for i, b in enumerate(NETS)}) is None


def run(accuracy: float, task: str, parent: str, transfer: str = "linear", seed: int = 0, **changes) -> Result:
    facts = {"model": "m", "task": task, "data": "d", "parent": parent, "transfer": transfer, "seed": seed}
    spec = RunSpec(**facts | {"method": "gmp", "where": "upstream", "sparsity": 0.9} | changes)
    return Result(run_id=spec.run_id, spec=spec, status="done", metrics={f"test_{spec.metric}": accuracy})


def test_upstream_accuracy_follows_the_runs_that_started_from_it() -> None:
    first, second = (run(a, "imagenet", "dense", "none", seed) for a, seed in ((0.70, 0), (0.74, 1)))
    unused = run(0.1, "imagenet", "dense", "none", sparsity=0.8)
    transfers = [run(0.5, "pets", f"run:{r.run_id}", seed=s) for r in (first, second) for s in (0, 1)]
    elsewhere = run(0.5, "pets", "a-file", method="rigl")
    found = upstream_accuracy([*transfers, first, second, unused, elsewhere])
    assert found == {"imagenet": {Backbone("m", "gmp", 0.9): pytest.approx(0.72)}}
    assert upstream_accuracy([elsewhere]) == {}


# -- fronts ---------------------------------------------------------------------------------------------------


def test_front_by_hand() -> None:
    a, b, c, d, e, f, *_ = NETS
    accuracy = {a: 0.5, b: 0.7, c: 0.6, d: 0.9, e: 0.7, f: 0.99}
    cost = {a: 1.0, b: 2.0, c: 3.0, d: 4.0, e: 2.0}  # f was not measured
    assert pareto(accuracy, cost) == [a, b, e, d]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    accuracy = {b: float(p[0]) for b, p in zip(NETS, points, strict=False)}
    cost = {b: float(p[1]) for b, p in zip(NETS, points, strict=False)}

    def dominated(b: Backbone) -> bool:
        return any(
            accuracy[o] >= accuracy[b] and cost[o] <= cost[b] and (accuracy[o] > accuracy[b] or cost[o] < cost[b])
            for o in accuracy
        )

    front = pareto(accuracy, cost)
    assert set(front) == {b for b in accuracy if not dominated(b)} and len(front) == len(set(front))
    assert [cost[b] for b in front] == sorted(cost[b] for b in front)


# -- linear and full, short and long --------------------------------------------------------------------------


def test_linear_against_full_takes_what_was_run_both_ways() -> None:
    a, b, *_ = NETS
    cells = made({a: {"t": 0.5, "u": 0.6}, b: {"t": 0.1}}) + made({a: {"t": 0.7}, b: {"u": 0.9}}, FULL)
    (gain,) = linear_against_full(Table(cells), LINEAR, FULL)
    assert (gain.backbone, gain.task, gain.linear, gain.full) == (a, "t", 0.5, 0.7)
    assert gain.gain == pytest.approx(0.2)


def test_training_length_over_tasks_of_all_lengths() -> None:
    a, b, *_ = NETS
    cells = made({a: {"t": 0.5, "u": 0.7, "v": 0.0}, b: {"t": 0.1}}, FULL) + made({a: {"t": 0.7, "u": 0.8}}, LONG)
    (found,) = training_length(Table(cells + made({a: {"t": 0.9}})))
    assert (found.transfer, found.backbone, found.tasks) == ("full", a, ("t", "u"))
    assert found.accuracy == pytest.approx({10: 0.6, 30: 0.75})
    assert training_length(Table(made({a: {"t": 0.5}}, FULL) + made({a: {"u": 0.5}}, LONG))) == []
