"""RigL: when weights move and how many, one move by hand and against a plain reference, and in training."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.allocation import mask_by_score
from budwood.prune.regrow import RegrowOptions
from budwood.prune.rigl import RigL
from budwood.prune.score import magnitude
from budwood.testing.pruners import RECIPE, sparse_mask, toy_data, toy_network
from budwood.train.fit import Fit

BATCH = (torch.zeros(1), torch.zeros(1))


def layer_of(weights: list[float], gradients: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data = torch.tensor([weights])
    layer.weight.grad = torch.tensor([gradients or [0.0] * len(weights)])
    return layer


def started(layer: nn.Module, mask: Mask, plan: Plan, sparsity: float = 0.0, **options: object) -> RigL:
    """At a sparsity that the mask has already nothing is pruned at the start."""
    pruner = RigL(sparsity or mask.sparsity, RegrowOptions(**options))
    assert pruner.start(layer, mask, plan) == mask or sparsity
    return pruner


def dense() -> Mask:
    return Mask.ones(prunable(toy_network(), head=True))


def test_shares_and_moves_of_the_paper() -> None:
    """32,000 steps, the end at 25,000, alpha 0.3: 0.15 (1 + cos(pi t / 25000)). Moved at 0, 100, ..., 24900."""
    layer = layer_of([1.0, 2.0])
    pruner = started(layer, Mask.ones({"weight": layer.weight}), Plan(100, 320), **RigL.papers["erk"].options)
    root = math.sqrt(2) / 2
    by_hand = {0: 0.3, 6250: 0.15 * (1 + root), 12500: 0.15, 18750: 0.15 * (1 - root), 24900: 1.18434e-5}
    for step, share in by_hand.items():
        assert pruner.share(step) == pytest.approx(share, rel=1e-5)
    moved = [step for step in range(32_000) if pruner.moves(step)]
    assert moved == list(range(0, 24_901, 100)) and len(moved) == 250
    assert all(pruner.applies_gradient(step) != pruner.moves(step) for step in range(32_000))


def test_every_share_stretches_with_the_training() -> None:
    """Five times as long: five times as many moves, and the same share at the same part of the training."""
    layer = layer_of([1.0, 2.0])
    mask = Mask.ones({"weight": layer.weight})
    one, five = (started(layer, mask, Plan(n, 320), end=0.78125) for n in (100, 500))
    assert sum(five.moves(step) for step in range(160_000)) == 5 * 250
    assert five.share(62_500) == one.share(12_500)


@pytest.mark.parametrize(
    ("steps", "moves"), [(200, range(0, 150, 15)), (60, range(0, 45, 10)), (4000, range(0, 3000, 100))]
)
def test_a_short_training_moves_ten_times(steps: int, moves: range) -> None:
    """Unless told otherwise: every 100 steps, but in 200 steps every fifteenth of the 150 before the end."""
    layer = layer_of([1.0, 2.0])
    pruner = started(layer, Mask.ones({"weight": layer.weight}), Plan(1, steps))
    assert [step for step in range(steps) if pruner.moves(step)] == list(moves)


@pytest.mark.parametrize(("step", "dropped"), [(0, 30), (25, 25), (50, 15), (75, 4), (99, 0)])
def test_how_many_weights_move(step: int, dropped: int) -> None:
    """Of 100 kept weights, with the end at 100: 30, 25.6, 15, 4.39, 0.007, rounded down. All that moved are other ones:
    gradients are largest where nothing is."""
    layer = layer_of([float(i + 1) for i in range(100)] + [0.0] * 100, [0.0] * 100 + [1.0] * 100)
    mask = Mask({"weight": torch.arange(200).reshape(1, 200) < 100})
    pruner = started(layer, mask, Plan(1, 100), every=1, end=1.0)
    found = pruner.update(layer, mask, step, BATCH)
    assert int((mask["weight"] & ~found["weight"]).sum()) == dropped and found.kept == 100
    assert (found is mask) == (dropped == 0)


def test_one_move_by_hand() -> None:
    """Half way the cosine is 0, so with alpha 0.98 a share of 0.49 goes: of five weights int(2.45) = 2, that is 0.1 and
    0.3. Among these two and the two that are pruned the gradients are 9, 0, 1, 8: the just dropped 0.1 is back as it
    was, the last one comes in at 0."""
    layer = layer_of([0.5, 0.1, -0.3, 0.4, 0.6, 0.0, 0.0], [99.0, -9.0, 0.0, 99.0, 99.0, 1.0, 8.0])
    mask = Mask({"weight": torch.tensor([[True] * 5 + [False] * 2])})
    pruner = started(layer, mask, Plan(1, 10), alpha=0.98, end=1.0, every=5)
    assert pruner.update(layer, mask, 4, BATCH) is mask and pruner.applies_gradient(4)
    found = pruner.update(layer, mask, 5, BATCH)
    assert found["weight"].tolist() == [[True, True, False, True, True, False, True]]
    assert not pruner.applies_gradient(5)
    found.apply_(layer)
    assert torch.equal(layer.weight.data, torch.tensor([[0.5, 0.1, 0.0, 0.4, 0.6, 0.0, 0.0]]))


def test_of_equal_ones_the_first() -> None:
    """All weights and gradients equal: the last of the kept go, and the first that is free comes, itself just
    dropped or not."""
    layer = layer_of([0.0, 1.0, 1.0, 1.0, 1.0, 0.0], [1.0] * 6)
    mask = Mask({"weight": torch.tensor([[False, True, True, True, True, False]])})
    pruner = started(layer, mask, Plan(1, 10), alpha=0.5, every=1)
    assert pruner.update(layer, mask, 0, BATCH)["weight"].tolist() == [[True, True, True, True, False, False]]


def test_a_dense_layer_stays_dense() -> None:
    layer = layer_of([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 9.0])
    mask = Mask.ones({"weight": layer.weight})
    assert started(layer, mask, Plan(1, 10), alpha=0.9).update(layer, mask, 0, BATCH) is mask


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    layer = layer_of([1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, math.nan])
    mask = Mask({"weight": torch.tensor([[True, True, True, False]])})
    with pytest.raises(UserError, match="not finite"):
        started(layer, mask, Plan(1, 10), alpha=0.5).update(layer, mask, 0, BATCH)


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(0, 9), st.floats(0.05, 0.95))
def test_against_a_plain_reference(seed: int, size: int, step: int, alpha: float) -> None:
    """Sorted lists, one position after the other, on values with many ties."""
    random = np.random.default_rng(seed)
    kept = random.random(size) < 0.5
    weights = (random.integers(-3, 4, size) * kept).astype(np.float32)
    gradients = random.integers(-3, 4, size).astype(np.float32)
    layer = layer_of(weights.tolist(), gradients.tolist())
    mask = Mask({"weight": torch.tensor(kept).reshape(1, size)})
    pruner = started(layer, mask, Plan(1, 10), alpha=alpha, every=1, end=1.0)
    found = pruner.update(layer, mask, step, BATCH)["weight"].flatten().tolist()

    count = int(alpha / 2 * (1 + math.cos(math.pi * step / 10)) * int(kept.sum()))
    order = sorted((i for i in range(size) if kept[i]), key=lambda i: (-abs(weights[i]), i))
    stay = order[: len(order) - count]
    free = sorted((i for i in range(size) if i not in stay), key=lambda i: (-abs(gradients[i]), i))
    assert [i for i in range(size) if found[i]] == sorted(stay + free[:count])


def test_the_first_mask_is_random_or_the_largest() -> None:
    model, mask = toy_network(), dense()

    def first(seed: int = 0, given: Mask = mask, **options: object) -> Mask:
        return RigL(0.7, RegrowOptions(**options)).start(model, given, Plan(4, 4, seed))

    assert first(0) == first(0) and first(0) != first(1)
    assert first(0).counts() == first(1).counts(), "the allocation is the same"
    largest = mask_by_score(magnitude(model, mask), mask, 0.7, "erk")
    assert first(initial="magnitude") == largest and first(0).counts() == largest.counts()
    common = sum(int((first(0)[name] & largest[name]).sum()) for name in mask) / largest.kept
    assert 0.15 < common < 0.6, "not by magnitude: about as many in common as by chance"
    sparse = sparse_mask(mask)
    assert not first(0, sparse).revived_since(sparse), "the first mask has the zeros that the network came with"


def test_zeros_that_it_came_with_may_grow_later() -> None:
    layer = layer_of([4.0, 3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0])
    mask = Mask({"weight": torch.tensor([[True, True, True, False]])})
    pruner = started(layer, mask, Plan(1, 10), alpha=0.5)
    assert pruner.update(layer, mask, 0, BATCH)["weight"].tolist() == [[True, True, False, True]]


def test_layers_kept_dense_take_no_part() -> None:
    model, mask = toy_network(), dense()
    pruner = RigL(0.7, RegrowOptions(allocation="uniform", every=1))
    found = pruner.start(model, mask, Plan(4, 4))
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    moved = pruner.update(model, found, 0, BATCH)
    assert moved["3.weight"].tolist() != found["3.weight"].tolist()
    assert bool(moved["0.weight"].all()) and bool(moved["8.weight"].all())


def test_in_training() -> None:
    model, data = toy_network(), toy_data()
    pruner = RigL(0.7, RegrowOptions(every=3))
    fit = Fit(model, pruner, dense(), data, data, RECIPE)
    masks, before, come, grown = [], {}, 0, 0

    def after(done: int, total: int, how: str) -> None:
        nonlocal come, grown
        now = {n: p.detach().clone() for n, p in model.named_parameters()}
        memory = {n: fit.optimizer.state[p].get("momentum_buffer") for n, p in model.named_parameters()}
        step = done - 1
        if step in (3, 6, 9):
            for name, new in fit.mask.revived_since(masks[-1]).items():
                come += int(new.sum())
                assert not now[name][new].any() and not memory[name][new].any(), "at zero, without momentum"
            for (
                name,
                weight,
            ) in now.items():  # no gradient is applied: what stays is as it was, dropped weights are zero
                kept = fit.mask.get(name)
                assert torch.equal(weight, before[name] if kept is None else before[name] * kept)
        elif step in (4, 7, 10):
            for name, new in masks[-1].revived_since(masks[-2]).items():
                grown += int(now[name][new].count_nonzero())
        masks.append(fit.mask)
        before.update(now)

    fit.progress = after
    fitted = fit.run()
    assert [i for i in range(1, 16) if masks[i] != masks[i - 1]] == [3, 6, 9], "and at 0; at 12 it has ended"
    assert come > 5 and grown > come / 2, "weights came, and then learned"
    assert len({tuple(mask.counts().values()) for mask in masks}) == 1, "every layer keeps its number"
    assert fitted.mask.holds(model)


def test_the_first_step_moves_weights() -> None:
    model, data = toy_network(), toy_data()
    pruner = RigL(0.7, RegrowOptions(every=1000))
    fit = Fit(model, pruner, dense(), data, data, RECIPE)
    masks: list[Mask] = []
    fit.progress = lambda *_: masks.append(fit.mask)
    fit.run()
    first = pruner.start(toy_network(), dense(), Plan(4, 4))
    assert masks[0] != first and all(mask == masks[0] for mask in masks)


def test_grows_where_the_dense_gradient_is_largest() -> None:
    """Only a gradient that is not masked yet can tell which pruned weight should come back."""
    model, data = toy_network(), toy_data()
    seen: list[float] = []

    class Watched(RigL):
        def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
            grads = {name: model.get_parameter(name).grad for name in mask}
            seen.extend(float(grads[name][~kept].abs().max()) for name, kept in mask.items())  # type: ignore[index]
            return super().update(model, mask, step, batch)

    Fit(model, Watched(0.7), dense(), data, data, RECIPE).run()
    assert len(seen) == 48 and min(seen) > 0


def test_settings_fit_the_method() -> None:
    for settings in RigL.papers.values():
        RigL(settings.sparsity, RegrowOptions(**settings.options))
