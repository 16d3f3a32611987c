"""Layers, calibration and harmed classes."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from budwood.core.result import Layer, Result
from budwood.core.spec import RunSpec
from budwood.report.frame import Stat
from budwood.report.study.behaviour import calibration, class_shifts
from budwood.report.study.cells import Backbone, Cell, Group
from budwood.report.study.network import layerwise, shares


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def layer(name: str, kept: int, **changes: int) -> Layer:
    return Layer(**{"name": name, "shape": (4, 5), "kept": kept, "total": 20, "flops_dense": 80, "flops": 4 * kept}
                 | changes)  # fmt: skip


def result(seed: int = 0, **changes) -> Result:
    spec = RunSpec(model="m", parent="p", task="t", data="d", seed=seed)
    return Result(run_id=spec.run_id, spec=spec, status="done", **changes)


def cell(results: list[Result]) -> Cell:
    return Cell(Group("full", "budwood"), Backbone("m", "gmp", 0.9), "t", {r.spec.seed: 0.5 for r in results},
                results=tuple(results))  # fmt: skip


# -- layers ---------------------------------------------------------------------------------------------------


def test_shares_of_each_layer_and_of_all() -> None:
    conv = layer("conv", 5, filters=4, filters_zero=1, channels=5, channels_zero=2)
    head = layer("head", 40, total=40, flops_dense=20, flops=20, filters=8, channels=5)
    again = layer("conv", 7, filters=4, filters_zero=0, channels=5, channels_zero=1)
    found = layerwise([result(layers=[conv, head]), result(layers=[again, head])])
    assert list(found) == ["conv", "head"]
    assert (found["conv"].sparsity, found["conv"].filters, found["conv"].channels) == pytest.approx((0.7, 1 / 8, 0.3))
    assert found["conv"].flops == pytest.approx(48 / 160)
    assert (found["head"].sparsity, found["head"].filters, found["head"].flops) == (0, 0, 1)
    whole = shares([conv, head])
    assert (whole.sparsity, whole.flops, whole.filters, whole.channels) == pytest.approx((0.25, 0.4, 1 / 12, 0.2))


def test_what_was_not_counted_is_no_zero() -> None:
    found = shares([layer("conv", 5, flops_dense=0, flops=0)])
    assert (found.filters, found.channels, found.flops) == (None, None, None)
    assert layerwise([]) == {}


# -- calibration ----------------------------------------------------------------------------------------------


def test_calibration_over_seeds() -> None:
    runs = [result(0, metrics={"test_ece": 0.1, "test_loss": 1.0}), result(1, metrics={"test_ece": 0.3})]
    found = calibration(cell(runs))
    assert found.ece == Stat(pytest.approx(0.2), pytest.approx(0.02**0.5), 2)
    assert found.nll == Stat(1.0, None, 1)
    assert calibration(cell([result()])).ece is None


# -- classes --------------------------------------------------------------------------------------------------

TASK = {"classes": ["ash", "elm", "oak", "fir"]}
DENSE = [[0.90, 0.80, math.nan, 0.70], [0.91, 0.82, math.nan, 0.70], [0.92, 0.81, math.nan, 0.70]]
PRUNED = [[0.80, 0.40, math.nan, 0.60], [0.81, 0.41, math.nan, 0.61], [0.82, 0.45, math.nan, 0.62]]


def runs(rows: list[list[float]]) -> Cell:
    return cell([result(i, per_class=row, task=TASK) for i, row in enumerate(rows)])


def test_harmed_classes_against_scipy_on_the_net_accuracies() -> None:
    found = class_shifts(runs(PRUNED), runs(DENSE))
    assert [(c.index, c.name) for c in found] == [(0, "ash"), (1, "elm"), (3, "fir")]
    seen = [0, 1, 3]
    net = [np.array(rows)[:, seen] - np.array(rows)[:, seen].mean(axis=1, keepdims=True) for rows in (PRUNED, DENSE)]
    p = stats.ttest_ind(net[0], net[1], equal_var=False).pvalue
    assert [c.test.p for c in found] == pytest.approx(list(p))
    by_hand = [3 * sorted(p)[0], 3 / 2 * sorted(p)[1], sorted(p)[2]]
    expected = [min(by_hand[k:]) for k in np.argsort(np.argsort(p))]
    assert [c.test.adjusted for c in found] == pytest.approx(expected)
    # Shifts -0.1, -1.17 / 3 and -0.09: the mean is -0.58 / 3.
    assert [c.shift for c in found] == pytest.approx([-0.1, -0.39, -0.09])
    assert [c.net for c in found] == pytest.approx([-0.1 + 0.58 / 3, -0.39 + 0.58 / 3, -0.09 + 0.58 / 3])
    assert [c.harmed for c in found] == [False, True, False]


def test_losing_as_much_as_the_others_is_no_harm() -> None:
    found = class_shifts(runs([[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]]), runs([[0.5, 0.6, 0.7, 0.8]] * 2))
    assert [c.net for c in found] == pytest.approx([0] * 4) and [c.shift for c in found] == pytest.approx([-0.35] * 4)
    assert not any(c.harmed for c in found)
    assert {c.test.reason for c in found} == {"the accuracy is the same for every seed"}


def test_one_seed_shows_shifts_and_tests_nothing() -> None:
    found = class_shifts(runs(PRUNED[:1]), runs(DENSE))
    assert len(found) == 3 and {c.test.reason for c in found} == {"a single seed"}
    assert not any(c.harmed for c in found)


def test_no_accuracies_of_classes_no_shifts() -> None:
    assert class_shifts(runs([[]]), runs(DENSE)) == []
    assert class_shifts(runs(PRUNED), cell([])) == []
