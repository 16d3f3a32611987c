"""Results to cells: what is averaged, what is kept apart, and what cannot be compared."""

import pytest

from budwood.core.errors import UserError
from budwood.core.result import Result
from budwood.core.spec import Recipe, RunSpec
from budwood.report.study.cells import Backbone, Group, Label, table


def result(accuracy: float = 0.5, sparsity: float = 0.0, *, status: str = "done", **changes) -> Result:
    facts = {"model": "m", "parent": "p", "task": "leaves", "data": "d", "transfer": "linear", "sparsity": sparsity}
    facts |= {"method": "gmp", "where": "upstream"} if sparsity else {}
    spec = RunSpec(**facts | changes)
    metrics = {f"test_{spec.metric}": accuracy} if status == "done" else {}
    return Result(run_id=spec.run_id, spec=spec, status=status, metrics=metrics)


def test_seeds_become_one_cell_that_names_its_runs() -> None:
    runs = [result(0.6, 0.9, seed=7), result(0.4, 0.9, seed=3), result(0.9, seed=3)]
    found = table(runs)
    cell = found.at(Group("linear", "budwood"), Backbone("m", "gmp", 0.9), "leaves")
    assert cell is not None
    assert (cell.n, cell.mean, cell.std) == pytest.approx((2, 0.5, 0.02**0.5))  # (0.1^2 + 0.1^2) / (2 - 1)
    assert cell.run_ids == {3: runs[1].run_id, 7: runs[0].run_id}
    dense = found.reference(cell)
    assert dense is not None and (dense.mean, dense.std) == (0.9, None)


def test_the_task_s_own_metric_is_read() -> None:
    (cell,) = table([result(0.7, metric="mean_per_class")]).cells
    assert cell.mean == 0.7


def test_runs_without_a_result_are_missing_and_upstream_ones_in_no_cell() -> None:
    waiting = result(status="skipped", seed=1)
    found = table([waiting, result(seed=2), result(transfer="none")])
    assert found.missing == (waiting,)
    assert [cell.n for cell in found.cells] == [1]


def test_a_longer_training_is_not_compared_with_a_shorter_one() -> None:
    runs = [result(transfer="full", recipe=Recipe(epochs=n)) for n in (10, 30)]
    assert table(runs).groups == [Group("full", "budwood", 10), Group("full", "budwood", 30)]


@pytest.mark.parametrize(("head", "epochs"), [("lbfgs", 0), ("sgd", 150)])
def test_epochs_of_a_linear_head_are_those_it_is_fitted_with(head: str, epochs: int) -> None:
    (group,) = table([result(recipe=Recipe(head=head, epochs=7))]).groups
    assert group.epochs == epochs


def test_networks_are_told_apart_by_options_and_labels() -> None:
    runs = [result(0.1, 0.9, options={"damp": 1}), result(0.2, 0.9, options={"damp": 2}), result(0.3, 0.9, parent="q")]
    names = {cell.backbone.method for cell in table(runs, {"q": Label("theirs")}).cells}
    assert names == {"gmp damp=1", "gmp damp=2", "theirs"}


def test_a_network_goes_by_the_sparsity_it_was_meant_to_have() -> None:
    runs = [result(0.1, 0.912, parent="p"), result(0.2, 0.9, parent="q", method="acdc")]
    assert {cell.backbone.sparsity for cell in table(runs).cells} == {0.912, 0.9}
    assert {cell.backbone.sparsity for cell in table(runs, {"p": Label(sparsity=0.9)}).cells} == {0.9}


def test_two_runs_of_one_seed_are_said() -> None:
    runs = [result(0.1, 0.9), result(0.2, 0.9, parent="q")]
    with pytest.raises(UserError, match=f"two runs of one seed .{runs[0].run_id}, {runs[1].run_id}"):
        table(runs)


def test_other_images_of_the_same_task_are_said() -> None:
    with pytest.raises(UserError, match="leaves has runs on different images"):
        table([result(0.1, 0.9), result(0.2, data="e")])
    assert len(table([result(), result(data="e", protocol="cvpr22")]).cells) == 2  # other splits, never compared
