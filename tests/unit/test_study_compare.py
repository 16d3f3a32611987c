"""Wins, losses and ranks: by hand, by other functions of scipy, and published examples."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from budwood.report.study.cells import DENSE, Backbone, Cell, Group, Table
from budwood.report.study.compare import Significance, comparisons, corrected, over_tasks, seed_test, tally
from budwood.report.study.rank import mean_ranks

LINEAR = Group("linear", "budwood")
D, P, Q = Backbone("m", DENSE, 0.0), Backbone("m", "gmp", 0.9), Backbone("m", "rigl", 0.9)


@pytest.fixture(autouse=True)
def _no_warning():
    """A number that scipy has doubts about is no number to show."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def cell(backbone: Backbone, scores: list[float] | dict[int, float], task: str = "a") -> Cell:
    return Cell(LINEAR, backbone, task, scores if isinstance(scores, dict) else dict(enumerate(scores)))


def made(scores: dict[Backbone, list[float]]) -> Table:
    """One seed a task, called 0, 1, ..."""
    return Table(tuple(cell(b, [s], f"{i:02}") for b, tasks in scores.items() for i, s in enumerate(tasks)))


# -- one task -------------------------------------------------------------------------------------------------


def test_common_seeds_are_paired() -> None:
    dense = cell(D, {3: 0.50, 1: 0.60, 2: 0.40})
    pruned = cell(P, {1: 0.61, 2: 0.42, 3: 0.53, 4: 0.99})  # 1, 2 and 3 points more; seed 4 has no partner
    test = seed_test(pruned, dense)
    # t = 2 / (1 / sqrt(3)) with two degrees of freedom, whose distribution has a closed form.
    assert (test.name, test.p) == ("paired t", pytest.approx(1 - math.sqrt(12 / 14)))


def test_other_seeds_are_not_paired() -> None:
    """Welch's t and degrees of freedom from means and deviations alone."""
    first, second = [0.71, 0.74, 0.78], [0.60, 0.75, 0.70]
    for seeds in ((10, 11, 12), (0, 1, 12), (0, 11, 12)):  # a partial overlap is no design in pairs either
        test = seed_test(cell(P, first), cell(D, dict(zip(seeds, second, strict=True))))
        a, b = (float(np.var(x, ddof=1)) / 3 for x in (first, second))
        t = (np.mean(first) - np.mean(second)) / math.sqrt(a + b)
        p = 2 * stats.t.sf(abs(t), (a + b) ** 2 / (a**2 / 2 + b**2 / 2))
        assert (test.name, test.p) == ("Welch t", pytest.approx(p))


@pytest.mark.parametrize(
    ("pruned", "dense", "reason"),
    [
        ({0: 0.5}, {0: 0.6}, "a single seed"),
        ({0: 0.5}, {1: 0.6, 2: 0.7}, "a single seed"),
        ({0: 0.5}, {0: 0.6, 2: 0.7}, "a single seed"),
        ({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}, "the difference is the same for every seed"),
        ({0: 0.3, 1: 0.2}, {0: 0.2, 1: 0.1}, "the difference is the same for every seed"),  # 0.1 but for rounding
        ({0: 0.5, 1: 0.5}, {2: 0.6, 3: 0.6}, "the accuracy is the same for every seed"),
    ],
)
def test_what_cannot_be_tested_says_why(pruned: dict, dense: dict, reason: str) -> None:
    assert seed_test(cell(P, pruned), cell(D, dense)) == Significance(reason=reason)


def test_one_side_without_variance_can_be_tested() -> None:
    test = seed_test(cell(P, [0.5, 0.5]), cell(D, {7: 0.6, 8: 0.62}))
    assert test.p == pytest.approx(stats.ttest_1samp([0.6, 0.62], 0.5).pvalue)


def test_benjamini_and_hochberg_s_own_example() -> None:
    """Their 1995 paper: fifteen p-values, of which four are rejected at 5 %."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528,
         0.7590, 1.0000]  # fmt: skip
    tests = [Significance("t", value) for value in reversed(p)]
    found = corrected([*tests, Significance(reason="a single seed")])
    assert sum(t.adjusted < 0.05 for t in found if t.adjusted is not None) == 4
    assert found[-2].adjusted == pytest.approx(15 * 0.0001)
    assert found[-1] == Significance(reason="a single seed")
    assert corrected([]) == []


def test_outcomes_of_a_study() -> None:
    """Three differences far above their spread, one within it, one untested: five tasks, corrected together."""
    dense = [cell(D, [0.50, 0.51, 0.49], t) for t in "abcde"]
    shifts = {"a": (0.20, 0.21, 0.20), "b": (-0.20, -0.21, -0.20), "c": (0.02, -0.02, 0.01), "e": (0.1, 0.11, 0.1)}
    pruned = [
        cell(P, [s + d for s, d in zip(dense[0].scores.values(), shifts[t], strict=True)], t) for t in shifts
    ] + [cell(P, [0.49], "d"), cell(Q, [0.5], "z")]  # fmt: skip
    found = comparisons(Table((*dense, *pruned)), LINEAR)
    assert {c.task: c.outcome for c in found} == {"a": "win", "b": "loss", "c": "tie", "d": "untested", "e": "win"}
    counts = tally(found, P)
    assert (counts.win, counts.tie, counts.loss, counts.untested, counts.tasks) == (2, 1, 1, 1, 5)
    assert counts.no_worse == 3  # a, c (a third of a point on average) and e
    by_task = {c.task: c for c in found}
    alone = stats.ttest_rel([0.70, 0.72, 0.69], [0.50, 0.51, 0.49]).pvalue
    assert by_task["a"].test.p == pytest.approx(alone) and by_task["a"].test.adjusted == pytest.approx(alone * 4 / 2)
    assert by_task["b"].difference == pytest.approx(-0.61 / 3)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=5), st.lists(st.integers(0, 1000), min_size=2, max_size=5))
@settings(max_examples=80, deadline=None)
def test_a_p_value_is_a_probability_and_knows_no_side(first: list[int], second: list[int]) -> None:
    a, b = cell(P, [x / 1000 for x in first]), cell(D, [x / 1000 for x in second])
    there, back = seed_test(a, b), seed_test(b, a)
    assert (there.p is None) == bool(there.reason) == (back.p is None)
    if there.p is not None:
        assert 0 <= there.p <= 1 and there.p == pytest.approx(back.p)


# -- over tasks -----------------------------------------------------------------------------------------------


def test_signed_rank_of_a_published_comparison() -> None:
    """C4.5 without and with a tuned leaf size, table 2 of Demsar (JMLR 2006). By hand: of twelve differences, two of
    them tied, the negative ones have ranks 1.5 and 5; mean 39, variance 162.5 less 1/8 for the tie."""
    plain = [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.0, 0.940, 0.619, 0.972, 0.957]
    tuned = [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.0, 0.962, 0.666, 0.981, 0.978]
    (found,) = over_tasks(made({D: plain, P: tuned}), LINEAR)
    z = (6.5 - 39) / math.sqrt(162.5 - 1 / 8)
    assert found.test.p == pytest.approx(2 * stats.norm.cdf(z))
    assert (found.tasks, found.outcome) == (14, "win")
    assert found.difference == pytest.approx(sum(tuned) / 14 - sum(plain) / 14)


def test_six_tasks_are_enough_and_five_are_not() -> None:
    for n, p in ((5, 2 / 2**5), (6, 2 / 2**6)):
        (found,) = over_tasks(made({D: [0.5] * n, P: [0.4 - i / 100 for i in range(n)]}), LINEAR)
        assert found.test.p == pytest.approx(p)
        assert found.outcome == ("loss" if n == 6 else "tie")


def test_tests_over_tasks_are_corrected_over_networks() -> None:
    up = [0.6 + i / 100 for i in range(6)]
    found = over_tasks(made({D: [0.5] * 6, P: up, Q: [0.5 + (-1) ** i * (i + 1) / 100 for i in range(6)]}), LINEAR)
    by_name = {o.backbone: o.test for o in found}
    assert by_name[P].adjusted == pytest.approx(2 * by_name[P].p)
    assert by_name[Q].adjusted == pytest.approx(by_name[Q].p)


def test_nothing_to_rank_says_so() -> None:
    assert [o.test for o in over_tasks(made({D: [0.5], P: [0.6]}), LINEAR)] == [Significance(reason="a single task")]
    same = over_tasks(made({D: [0.3, 0.3], P: [0.1 + 0.2, 0.3]}), LINEAR)
    assert [o.test for o in same] == [Significance(reason="no difference on any task")]
    assert over_tasks(made({P: [0.6]}), LINEAR) == []


# -- ranks ----------------------------------------------------------------------------------------------------


def test_mean_ranks_by_hand() -> None:
    other = Backbone("m", "rigl erk 5x", 0.9)
    found = made({D: [0.99, 0.99], P: [0.5, 0.7], Q: [0.6, 0.1 + 0.6], other: [0.4, 0.9]})
    (ranks,) = mean_ranks(found, LINEAR)
    assert (ranks.model, ranks.sparsity, ranks.tasks) == ("m", 0.9, ("00", "01"))
    assert ranks.means == {Q: 1.75, other: 2.0, P: 2.25}  # 1 and 2.5, 3 and 1, 2 and 2.5
    assert list(ranks.means) == [Q, other, P]
    assert ranks.by_family({"gmp": "magnitude", "rigl": "re-growth"}) == {"re-growth": 1.875, "magnitude": 2.25}
    assert ranks.by_family({"rigl erk 5x": "own", "rigl": "re-growth"}) == {"re-growth": 1.75, "own": 2.0}


def test_only_tasks_of_all_and_rivals_of_one_sparsity_and_model_are_ranked() -> None:
    cells = [cell(P, [0.5], "a"), cell(P, [0.1], "b"), cell(Q, [0.4], "a"), cell(Backbone("m", "x", 0.8), [0.9], "a"),
             cell(Backbone("n", "x", 0.9), [0.9], "a")]  # fmt: skip
    (ranks,) = mean_ranks(Table(tuple(cells)), LINEAR)
    assert (ranks.tasks, ranks.means) == (("a",), {P: 1.0, Q: 2.0})
    assert mean_ranks(Table((cell(P, [0.5], "a"), cell(Q, [0.4], "b"))), LINEAR) == []


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_ranks_add_up_and_a_better_method_is_never_behind(rows: list[list[int]]) -> None:
    names = [Backbone("m", name, 0.9) for name in "abc"]
    (ranks,) = mean_ranks(made({b: [row[i] / 10 for row in rows] for i, b in enumerate(names)}), LINEAR)
    assert sum(ranks.means.values()) == pytest.approx(6)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        if all(row[i] >= row[j] for row in rows):
            assert ranks.means[names[i]] <= ranks.means[names[j]]
