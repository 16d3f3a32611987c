"""SET: what goes is decided by size, what comes by chance alone."""

import itertools

import torch
from torch import nn

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.evolutionary import SET
from budwood.prune.regrow import RegrowOptions
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit

BATCH = (torch.zeros(1), torch.zeros(1))
KEPT, SIZE = 20, 100


def example() -> tuple[nn.Linear, Mask]:
    """Twenty weights 1, ..., 20 in front of eighty zeros; a gradient that would pull towards the last."""
    layer = nn.Linear(SIZE, 1, bias=False)
    layer.weight.data = torch.tensor([[*range(1, KEPT + 1), *[0] * (SIZE - KEPT)]], dtype=torch.float32)
    layer.weight.grad = torch.arange(SIZE, dtype=torch.float32).reshape(1, SIZE)
    return layer, Mask({"weight": torch.arange(SIZE).reshape(1, SIZE) < KEPT})


def moved(seed: int = 0, step: int = 0) -> torch.Tensor:
    """With alpha 0.52 and an end far away, int(10.4) of the 20 go: 1, ..., 10."""
    layer, mask = example()
    pruner = SET(mask.sparsity, RegrowOptions(alpha=0.52, every=1, end=1.0))
    pruner.start(layer, mask, Plan(1, 10**6, seed))
    return pruner.update(layer, mask, step, BATCH)["weight"].flatten()


def test_the_largest_stay_and_as_many_come() -> None:
    for step in range(20):
        found = moved(step=step)
        assert bool(found[10:20].all()) and int(found.sum()) == KEPT


def test_every_free_place_is_as_likely_as_another() -> None:
    """10 of 90 come, over 1000 moves 111 times each on average. The ten that were just dropped are as free as the
    others. Over 90 places, a chi-squared beyond 150 has a chance of 5e-5, and so has one below 45."""
    times = torch.stack([moved(step=step).double() for step in range(1000)]).sum(0)
    free = torch.cat([times[:10], times[20:]])
    assert float(free.sum()) == 1000 * 10
    expected = 1000 * 10 / 90
    chi_squared = float(((free - expected) ** 2 / (expected * (1 - 10 / 90))).sum())
    assert 45 < chi_squared < 150


def test_chance_follows_from_seed_and_step() -> None:
    assert torch.equal(moved(1, 2), moved(1, 2))
    assert not torch.equal(moved(1, 2), moved(2, 2)) and not torch.equal(moved(1, 2), moved(1, 3))


def test_the_global_generator_is_left_alone() -> None:
    layer, mask = example()
    pruner = SET(0.9, RegrowOptions(every=1))
    before = torch.get_rng_state()
    found = pruner.start(layer, mask, Plan(1, 10))
    pruner.update(layer, found, 1, BATCH)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_draw_for_themselves() -> None:
    """Two layers alike do not grow the same places."""
    model = nn.Sequential(example()[0], example()[0])
    mask = Mask({f"{i}.weight": example()[1]["weight"] for i in range(2)})
    pruner = SET(mask.sparsity, RegrowOptions(alpha=0.5, every=1))
    pruner.start(model, mask, Plan(1, 100))
    found = pruner.update(model, mask, 0, BATCH)
    assert not torch.equal(found["0.weight"], found["1.weight"])


def test_in_training_every_step_trains() -> None:
    """Moves at 0, 3, 6, 9, and the optimizer steps there as well; seeds lead to other networks."""

    def run(seed: int) -> tuple[list[Mask], list[torch.Tensor]]:
        model, data = toy_network(), toy_data()
        mask = Mask.ones(prunable(model, head=True))
        fit = Fit(model, SET(0.7, RegrowOptions(every=3)), mask, data, data, RECIPE, seed=seed)
        masks, weights = [], []

        def after(*_: object) -> None:
            for name, new in fit.mask.revived_since(masks[-1]).items() if masks else ():
                assert not model.get_parameter(name)[new].any(), "what has come begins to learn at the next step"
            masks.append(fit.mask)
            weights.append(model.get_parameter("1.weight").detach().clone())

        fit.progress = after
        fit.run()
        return masks, weights

    masks, weights = run(0)
    assert [i for i in range(1, 16) if masks[i] != masks[i - 1]] == [3, 6, 9]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights))
    assert len({tuple(mask.counts().values()) for mask in masks}) == 1
    assert run(0)[0] == masks and run(1)[0][0] != masks[0]


def test_settings_fit_the_method() -> None:
    for settings in SET.papers.values():
        SET(settings.sparsity, RegrowOptions(**settings.options))


def test_the_first_move_is_not_the_first_draw_again() -> None:
    model = toy_network()
    pruner = SET(0.7)
    first = pruner.start(model, Mask.ones(prunable(model, head=True)), Plan(4, 4))
    assert pruner.update(model, first, 0, BATCH) != first
