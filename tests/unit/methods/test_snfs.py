"""SNFS: the average of the gradients, growth by it, and how weights wander between layers."""

from typing import Any

import pytest
import torch
from torch import nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.snfs import SNFS, SNFSOptions
from budwood.testing.pruners import RECIPE, check_pruner, toy_data, toy_network
from budwood.train.fit import Fit

BATCH = (torch.zeros(1), torch.zeros(1))


def network(*layers: tuple[list[float], list[bool]]) -> tuple[nn.Sequential, Mask]:
    """One linear layer for each list of weights."""
    model = nn.Sequential()
    for weights, _ in layers:
        layer = nn.Linear(len(weights), 1, bias=False)
        layer.weight.data = torch.tensor([weights])
        model.append(layer)
    return model, Mask({f"{i}.weight": torch.tensor([kept]) for i, (_, kept) in enumerate(layers)})


def started(model: nn.Module, mask: Mask, plan: Plan, **options: Any) -> SNFS:
    pruner = SNFS(mask.sparsity, SNFSOptions(**options))
    assert pruner.start(model, mask, plan) == mask
    return pruner


def feed(model: nn.Module, *gradients: list[float]) -> None:
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = torch.tensor([gradient])


def test_the_average_by_hand() -> None:
    """Gradients 1, 2, -4: 0.1 * 1 = 0.1; 0.9 * 0.1 + 0.1 * 2 = 0.29; 0.9 * 0.29 - 0.1 * 4 = -0.139. It is kept also of
    what is pruned: gradients 0, 5, 5 make 0, 0.5, 0.95."""
    model, mask = network(([1.0, 0.0], [True, False]))
    pruner = started(model, mask, Plan(1, 100), every=50)
    expected = [[0.1, 0.0], [0.29, 0.5], [-0.139, 0.95]]
    for step, (first, second) in enumerate([(1.0, 0.0), (2.0, 5.0), (-4.0, 5.0)]):
        feed(model, [first, second])
        pruner.update(model, mask, step + 1, BATCH)
        assert pruner.state()["0.weight"].tolist() == [pytest.approx(expected[step])]


def test_after_the_last_move_nothing_is_averaged() -> None:
    model, mask = network(([1.0, 0.0], [True, False]))
    pruner = started(model, mask, Plan(1, 100), end=0.5)
    feed(model, [1.0, 1.0])
    pruner.update(model, mask, 50, BATCH)
    assert pruner.state()["0.weight"].tolist() == [[0.0, 0.0]]
    pruner.update(model, mask, 49, BATCH)
    assert pruner.state()["0.weight"].tolist() == [pytest.approx([0.1, 0.1])]


def test_grows_by_the_average_and_not_by_the_last_gradient() -> None:
    """Two of four weights go at step 0: 2 and 1, with alpha 0.5. Before, the fifth place had a large gradient three
    times; now the sixth has one. The average is 2.71, 1 and less for the others."""
    model, mask = network(([4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0], [True] * 4 + [False] * 3))
    pruner = started(model, mask, Plan(1, 1000), alpha=0.5, every=100, end=1.0)
    for step in (97, 98, 99):
        feed(model, [9.0, 0.0, 0.0, 0.0, 10.0, 0.0, 0.1])
        assert pruner.update(model, mask, step, BATCH) is mask
    feed(model, [0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 0.0])
    found = pruner.update(model, mask, 100, BATCH)
    assert found["0.weight"].tolist() == [[True, True, True, False, True, False, False]], "0.49 of 4 is one"
    assert pruner.applies_gradient(100)


FOUR_OF_TEN = [True] * 4 + [False] * 6


def test_redistribution_by_hand() -> None:
    """Both layers keep 4, 3, 2, 1 and drop two each. Their mean averages over what they keep are as 3 to 1 (what is
    pruned does not count), so of the four that come three are the first layer's."""
    weights = [4.0, 3.0, 2.0, 1.0, *[0.0] * 6]
    model, mask = network((weights, FOUR_OF_TEN), (weights, FOUR_OF_TEN))
    pruner = started(model, mask, Plan(1, 1000), alpha=0.5, every=100, end=1.0, redistribute=True)
    low = [0.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    feed(model, [6.0, 6.0, 0.0, 0.0, *low], [4.0, 0.0, 0.0, 0.0, 90.0, *low[1:]])
    found = pruner.update(model, mask, 0, BATCH)
    assert found["0.weight"].tolist() == [[True, True, False, False, False, False, True, True, True, False]]
    assert found["1.weight"].tolist() == [[True, True, False, False, True, False, False, False, False, False]]


def test_without_redistribution_every_layer_keeps_its_number() -> None:
    weights = [4.0, 3.0, 2.0, 1.0, *[0.0] * 6]
    model, mask = network((weights, FOUR_OF_TEN), (weights, FOUR_OF_TEN))
    pruner = started(model, mask, Plan(1, 1000), alpha=0.5, every=100, end=1.0)
    feed(model, [6.0] * 10, [0.0] * 10)
    assert set(pruner.update(model, mask, 0, BATCH).counts().values()) == {4}


def test_what_does_not_fit_into_a_layer_goes_to_the_others() -> None:
    """Each of three layers drops two. The first would get all six, and has room for the two it dropped and one more;
    three are left for the two others, of which the earlier one gets one more."""
    weights = [4.0, 3.0, 2.0, 1.0, *[0.0] * 6]
    full = ([4.0, 3.0, 2.0, 1.0, 0.0], [True] * 4 + [False])
    model, mask = network(full, (weights, FOUR_OF_TEN), (weights, FOUR_OF_TEN))
    pruner = started(model, mask, Plan(1, 1000), alpha=0.5, every=100, end=1.0, redistribute=True)
    feed(model, [1.0] * 5, [0.0] * 10, [0.0] * 10)
    assert list(pruner.update(model, mask, 0, BATCH).counts().values()) == [5, 4, 3]


def test_without_any_gradient_each_layer_gets_back_what_it_dropped() -> None:
    weights = [4.0, 3.0, 2.0, 1.0, *[0.0] * 6]
    model, mask = network((weights, FOUR_OF_TEN), (weights, FOUR_OF_TEN))
    pruner = started(model, mask, Plan(1, 1000), alpha=0.5, redistribute=True)
    feed(model, [0.0] * 10, [0.0] * 10)
    assert set(pruner.update(model, mask, 0, BATCH).counts().values()) == {4}


def test_an_empty_layer_gets_nothing_and_breaks_nothing() -> None:
    weights = [4.0, 3.0, 2.0, 1.0, *[0.0] * 6]
    model, mask = network((weights, FOUR_OF_TEN), ([0.0] * 4, [False] * 4))
    pruner = started(model, mask, Plan(1, 1000), alpha=0.5, redistribute=True)
    feed(model, [1.0] * 10, [9.0] * 4)
    assert list(pruner.update(model, mask, 0, BATCH).counts().values()) == [4, 0]


@pytest.mark.parametrize("redistribute", [False, True])
def test_in_training(redistribute: bool) -> None:
    model, data = toy_network(), toy_data()
    pruner = SNFS(0.7, SNFSOptions(every=2, redistribute=redistribute))
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    masks: list[Mask] = []
    fit.progress = lambda *_: masks.append(fit.mask)
    fitted = fit.run()
    assert len({mask.kept for mask in masks}) == 1 and fitted.mask.holds(model)
    assert len({mask.digest() for mask in masks}) == 6, "moved at 0, 2, ..., 10"
    assert (len({tuple(mask.counts().values()) for mask in masks}) > 1) == redistribute


def test_the_contract_with_redistribution() -> None:
    """The average and the layers' counts are found again by a run that is gone on with."""
    check_pruner("snfs", {"redistribute": True})


def test_settings_fit_the_method() -> None:
    for settings in SNFS.papers.values():
        SNFS(settings.sparsity, SNFSOptions(**settings.options))


def test_a_gradient_that_is_not_finite_is_one_line() -> None:
    weights = [4.0, 3.0, 2.0, 1.0, *[0.0] * 6]
    model, mask = network((weights, FOUR_OF_TEN), (weights, FOUR_OF_TEN))
    pruner = started(model, mask, Plan(1, 1000), alpha=0.5, redistribute=True)
    feed(model, [1.0] * 10, [float("nan")] * 10)
    with pytest.raises(UserError, match="are not finite"):
        pruner.update(model, mask, 0, BATCH)


def test_the_averages_own_momentum_by_hand() -> None:
    """With 0.5: 0.5 * 1 = 0.5; 0.5 * 0.5 + 0.5 * 2 = 1.25."""
    model, mask = network(([1.0, 0.0], [True, False]))
    pruner = started(model, mask, Plan(1, 100), every=50, momentum=0.5)
    for step, (gradient, expected) in enumerate([(1.0, 0.5), (2.0, 1.25)]):
        feed(model, [gradient, gradient])
        pruner.update(model, mask, step + 1, BATCH)
        assert pruner.state()["0.weight"].tolist() == [pytest.approx([expected, expected])]
