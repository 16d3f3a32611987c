"""The relative error against dense: by hand, its interval by enumeration, and what must hold for any numbers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood.report.study.cells import DENSE, Backbone, Cell, Group, Table
from budwood.report.study.summary import by_grain, mean_accuracy, relative_error

LINEAR = Group("linear", "budwood")
D, P = Backbone("m", DENSE, 0.0), Backbone("m", "gmp", 0.9)


def made(scores: dict[Backbone, dict[str, list[float] | dict[int, float]]], group: Group = LINEAR) -> Table:
    """Backbone -> task -> accuracies, of seeds 0, 1, ... unless they are named."""
    cells = [
        Cell(group, b, task, s if isinstance(s, dict) else dict(enumerate(s)))
        for b, tasks in scores.items()
        for task, s in tasks.items()
    ]
    return Table(tuple(cells))


def test_errors_are_averaged_over_seeds_and_then_related() -> None:
    found = made({D: {"a": [0.9, 0.7], "b": [0.5]}, P: {"a": [0.6, 0.8], "b": [0.6]}})
    error = relative_error(found, LINEAR, P)
    assert error is not None
    assert error.value == pytest.approx((0.5 - 0.2) / 2)  # errors 0.3 of 0.2, and 0.4 of 0.5
    assert (error.tasks, error.without) == (("a", "b"), ())


def test_a_task_without_a_pair_is_left_out_and_named() -> None:
    found = made({D: {"a": [0.5], "b": [0.5], "c": [1.0]}, P: {"a": [0.4], "c": [0.9], "d": [0.9]}})
    error = relative_error(found, LINEAR, P)
    assert error is not None
    assert error.value == pytest.approx(0.2)
    assert error.tasks == ("a",) and set(error.without) == {"b", "c", "d"}  # c: dense makes no mistake
    assert error.interval is None


def test_no_common_task_is_no_number() -> None:
    assert relative_error(made({D: {"a": [0.5]}, P: {"b": [0.5]}}), LINEAR, P) is None
    assert relative_error(made({P: {"b": [0.5]}}), LINEAR, P) is None
    assert relative_error(made({D: {"a": [0.5]}, P: {"a": [0.5]}}), Group("full", "budwood"), P) is None


def exact(paired: bool) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of all equally likely resamples of ERRORS."""
    values = []
    for chosen in itertools.product(ERRORS, repeat=2):
        per_slot = []
        for sparse, dense in chosen:
            twos = list(itertools.product((0, 1), repeat=2))
            draws = [(i, i) for i in twos] if paired else list(itertools.product(twos, twos))
            means = [(sum(sparse[k] for k in i) / 2, sum(dense[k] for k in j) / 2) for i, j in draws]
            per_slot.append([s / d - 1 for s, d in means])
        values += [sum(pair) / 2 for pair in itertools.product(*per_slot)]
    values.sort()
    return tuple(values[int(np.ceil(q * len(values))) - 1] for q in (0.025, 0.975))


ERRORS = [((0.30, 0.36), (0.20, 0.23)), ((0.50, 0.58), (0.40, 0.47))]


@pytest.mark.parametrize("paired", [True, False])
def test_interval_against_all_resamples(paired: bool) -> None:
    seeds = (0, 1) if paired else (5, 9)
    scores = {
        b: {task: {s: 1 - e for s, e in zip(names, errors[side], strict=True)}
            for task, errors in zip("ab", ERRORS, strict=True)}
        for b, side, names in ((P, 0, (0, 1)), (D, 1, seeds))
    }  # fmt: skip
    error = relative_error(made(scores), LINEAR, P, resamples=40_000)
    assert error is not None
    assert error.interval == pytest.approx(exact(paired), abs=0.004)
    assert exact(True) != pytest.approx(exact(False), abs=0.02)  # so that the one is not taken for the other


def test_interval_with_a_different_number_of_seeds_in_each_cell() -> None:
    """Of constant accuracies only the tasks are left to vary: the mean of three draws from 0, 1, 2."""
    found = made({D: {t: [0.9] * n for t, n in zip("abc", (1, 2, 5), strict=True)},
                  P: {"a": [0.9, 0.9], "b": [0.8] * 3, "c": [0.7]}})  # fmt: skip
    error = relative_error(found, LINEAR, P)
    assert error is not None and error.interval == pytest.approx((0, 2))  # each end has a chance of 1/27


def test_a_dense_network_without_a_mistake_in_a_resample_makes_the_interval_endless() -> None:
    found = made({D: {"a": [1.0, 0.9], "b": [0.9, 0.8]}, P: {"a": {7: 0.9, 8: 0.8}, "b": {7: 0.9, 8: 0.8}}})
    error = relative_error(found, LINEAR, P)
    assert error is not None and error.interval is not None
    assert np.isfinite(error.value) and np.isfinite(error.interval[0]) and error.interval[1] == np.inf


def test_fine_grained_and_general_tasks() -> None:
    found = made({D: {t: [0.5] for t in "abc"}, P: {"a": [0.4], "b": [0.6], "c": [0.0]}})
    fine, general = by_grain(found, LINEAR, P, {"a": True, "b": False})
    assert fine is not None and general is not None
    assert (fine.value, general.value) == pytest.approx((0.2, -0.2))  # c is of neither
    assert by_grain(found, LINEAR, P, {})[0] is None


def test_means_are_over_the_tasks_that_all_have() -> None:
    found = made({D: {"a": [0.5], "b": [0.1]}, P: {"b": [0.3, 0.5], "c": [0.9]}})
    assert mean_accuracy(found, LINEAR, [D, P]) == (["b"], {D: 0.1, P: 0.4})
    assert mean_accuracy(found, LINEAR, []) == ([], {})
    tasks, means = mean_accuracy(found, LINEAR, [D, P, Backbone("m", "rigl", 0.5)])
    assert (tasks, means) == ([], {})


# -- what holds for any numbers -------------------------------------------------------------------------------

accuracies = st.lists(st.integers(0, 99).map(lambda n: n / 100), min_size=1, max_size=4)
columns = st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=5)


def from_columns(pairs: list[tuple[list[float], list[float]]]) -> Table:
    return made({b: {str(i): pair[side] for i, pair in enumerate(pairs)} for side, b in enumerate((D, P))})


@given(columns)
@settings(max_examples=50, deadline=None)
def test_dense_is_no_worse_than_itself(pairs: list[tuple[list[float], list[float]]]) -> None:
    error = relative_error(from_columns(pairs), LINEAR, D)
    assert error is not None and error.value == 0 and error.interval is None


@given(columns, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_seeds_and_runs_changes_nothing(pairs: list[tuple[list[float], list[float]]], random) -> None:
    found = from_columns(pairs)
    shuffled = []
    for cell in found.cells:
        seeds = list(cell.scores)
        random.shuffle(seeds)
        shuffled.append(Cell(cell.group, cell.backbone, cell.task, {s: cell.scores[s] for s in seeds}))
    first, second = (relative_error(t, LINEAR, P, resamples=200) for t in (found, Table(tuple(shuffled))))
    assert first is not None and second is not None
    assert first.value == pytest.approx(second.value) and first.tasks == second.tasks
    if first.interval is not None:
        assert first.interval == pytest.approx(second.interval)


@given(columns)
@settings(max_examples=50, deadline=None)
def test_the_interval_lies_around_the_value_and_within_what_was_seen(
    pairs: list[tuple[list[float], list[float]]],
) -> None:
    error = relative_error(from_columns(pairs), LINEAR, P, resamples=400)
    assert error is not None
    if error.interval is not None:
        low, high = error.interval
        assert low - 1e-9 <= error.value <= high + 1e-9
        worst = max((1 - min(p)) / (1 - max(d)) for d, p in pairs) - 1
        assert low >= -1 and high <= worst + 1e-9


@given(columns)
@settings(max_examples=50, deadline=None)
def test_halving_every_error_changes_nothing(pairs: list[tuple[list[float], list[float]]]) -> None:
    halved = [tuple([1 - (1 - a) / 2 for a in side] for side in pair) for pair in pairs]
    first, second = (relative_error(from_columns(p), LINEAR, P, resamples=0) for p in (pairs, halved))
    assert first is not None and second is not None and first.value == pytest.approx(second.value)
