"""AC/DC: its phases epoch by epoch, which weights a phase keeps, and how weights and momentum come back."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.prune.acdc import ACDC, ACDCOptions, compressed
from budwood.testing.pruners import sparse_mask, toy_data, toy_network
from budwood.train.fit import Fit
from budwood.train.optim import learning_rate

PUBLISHED = [*range(10, 15), *range(20, 25), *range(30, 35), *range(40, 45), *range(50, 55), *range(60, 65)]
PUBLISHED += [*range(70, 75), *range(85, 100)]
"""The compressed epochs of 100, 0-based: pruned at 10, 20, ..., 70 and 85, restored at 15, 25, ..., 65 and 75."""
BATCH = (torch.zeros(1), torch.zeros(1))


def epochs_of(table: list[bool]) -> list[int]:
    return [epoch for epoch, on in enumerate(table) if on]


def test_hundred_epochs() -> None:
    table = compressed(100, ACDCOptions())
    assert epochs_of(table) == PUBLISHED and len(table) == 100


def test_two_hundred_epochs_with_the_authors_phases() -> None:
    """As many epochs a phase, more phases: compressed 10-14, ..., 170-174, dense 175-184, compressed 185-199."""
    settings = ACDC.papers["uniform-2x"]
    table = compressed(settings.recipe.epochs, ACDCOptions(**settings.options))
    expected = [epoch for start in range(10, 171, 10) for epoch in range(start, start + 5)] + list(range(185, 200))
    assert epochs_of(table) == expected and len(table) == 200


def test_a_hundred_and_fifty_epochs_with_the_authors_phases() -> None:
    options = ACDCOptions(first_dense=10, phase=5, last_dense=10, last_sparse=15)
    expected = [epoch for start in range(10, 121, 10) for epoch in range(start, start + 5)] + list(range(135, 150))
    assert epochs_of(compressed(150, options)) == expected


def test_shares_stretch_with_the_training() -> None:
    """Without options, 200 epochs are the table of 100 with every epoch twice, and 20 the one with every fifth."""
    twice = [on for on in compressed(100, ACDCOptions()) for _ in range(2)]
    assert compressed(200, ACDCOptions()) == twice
    assert compressed(20, ACDCOptions()) == compressed(100, ACDCOptions())[::5]


@pytest.mark.parametrize(
    ("epochs", "phases"),
    [(4, "dCdC"), (5, "dCdCC"), (6, "dCdCdC"), (10, "dCdCdCdCCC"), (30, "ddd" + "CCdd" * 4 + "CC" + "ddd" + "CCCCCC")],
)
def test_short_trainings(epochs: int, phases: str) -> None:
    """Thirty: 3 dense, phases of 2 (1.5), 3 dense, 5 compressed (4.5); 19 epochs between make 9 phases. Ten: 1, 1, 1
    and 2 (1.5); 6 between make 5 phases, and the last goes to the end. Five: one phase of each kind, and what is left
    over at the end."""
    assert "".join("C" if on else "d" for on in compressed(epochs, ACDCOptions())) == phases


@given(st.integers(4, 400), st.integers(1, 7) | st.none())
def test_every_length(epochs: int, phase: int | None) -> None:
    options = ACDCOptions(phase=phase)
    try:
        table = compressed(epochs, options)
    except UserError:
        assert phase is not None and epochs < 3 + phase + 0.35 * epochs
        return
    runs = [(on, len(list(run))) for on, run in itertools.groupby(table)]
    assert len(table) == epochs
    assert [on for on, _ in runs] == [False, True] * (len(runs) // 2), "dense first, compressed last"
    length = phase or max(1, (epochs + 10) // 20)
    assert all(n == length for _, n in runs[1:-2])
    assert runs[-1][1] >= max(1, epochs * 15 // 100)


@pytest.mark.parametrize(
    ("epochs", "options", "least"),
    [(0, {}, 4), (3, {}, 4), (7, {"phase": 5}, 9), (99, {"first_dense": 60, "last_sparse": 50}, 129)],
)
def test_too_short_names_the_least(epochs: int, options: dict[str, int], least: int) -> None:
    """A phase of 5 with one of 1 on both sides and 2 (15 % of 9, rounded up) at the end are 9. 60 and 50 with 5 % and
    10 % of 129 rounded, 6 and 13, are 129; 128 needs 129 too."""
    with pytest.raises(UserError, match=f"at least {least} epochs, not {epochs};"):
        ACDC(0.5, ACDCOptions(**options)).start(toy_network(), dense(), Plan(epochs, 4))
    assert len(compressed(least, ACDCOptions(**options))) == least
    with pytest.raises(UserError):
        compressed(least - 1, ACDCOptions(**options))


def dense() -> Mask:
    return Mask.ones(prunable(toy_network(), head=True))


def test_updates_by_hand() -> None:
    """Two steps an epoch, four epochs: compressed from step 2, dense from 4, compressed from 6. Half of 3, -1, 0.5, 2
    are 3 and 2; when it turns again the weights are other ones, and so is the choice."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, -1.0, 0.5, 2.0]])
    pruner, mask = ACDC(0.5), Mask.ones({"weight": layer.weight})
    assert pruner.start(layer, mask, Plan(4, 2)) is mask
    seen = []
    for step in range(8):
        if step == 6:
            layer.weight.data = torch.tensor([[0.1, -5.0, 0.5, 0.2]])
        mask = pruner.update(layer, mask, step, BATCH)
        seen.append("".join("x" if kept else "." for kept in mask["weight"].flatten().tolist()))
    assert seen == ["xxxx", "xxxx", "x..x", "x..x", "xxxx", "xxxx", ".xx.", ".xx."]
    assert [pruner.resets_momentum(step) for step in range(8)] == [step == 4 for step in range(8)]
    assert [pruner.settled(step) for step in range(8)] == [step >= 6 for step in range(8)]


def test_uniform_leaves_first_and_last_layer_dense() -> None:
    model = toy_network()
    assert ACDC(0.9, ACDCOptions(allocation="uniform")).layers(model, dense()) == ["3.weight"]
    assert ACDC(0.9).layers(model, dense()) == list(dense()), "global takes all"


class Watched(ACDC):
    """Notes weights and masks at every update."""

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.weights: list[dict[str, Tensor]] = []
        self.masks: list[Mask] = []
        return super().start(model, mask, plan)

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        self.weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
        self.masks.append(super().update(model, mask, step, batch))
        return self.masks[-1]


def train(epochs: int, mask: Mask | None = None, each: Any = None, lr: float = 0.05) -> tuple[Fit, Watched]:
    """Steps per epoch: 4. `each(fit, step)` is called after every step."""
    model, data = toy_network(), toy_data()
    mask = dense() if mask is None else mask
    mask.apply_(model)
    pruner = Watched(0.7)
    recipe = Recipe(epochs=epochs, batch_size=8, lr=lr, momentum=0.9, weight_decay=0.0, select="last")
    fit = Fit(model, pruner, mask, data, data, recipe)
    if each is not None:
        fit.progress = lambda done, total, loss: each(fit, done - 1)
    fit.run()
    return fit, pruner


def test_a_compressed_phase_keeps_the_largest_of_all_weights() -> None:
    """Over all layers together, by the weights at its first step; and another phase keeps others."""
    _, pruner = train(6, lr=0.5)
    given = dense()
    for step in (4, 12, 20):
        flat = torch.cat([pruner.weights[step][name].abs().flatten() for name in given])
        threshold = flat.sort(descending=True).values[given.total - round(0.7 * given.total) - 1]
        for name in given:
            assert torch.equal(pruner.masks[step][name], pruner.weights[step][name].abs() >= threshold)
    assert [i for i in range(1, 24) if pruner.masks[i] != pruner.masks[i - 1]] == [4, 8, 12, 16, 20]
    assert len({pruner.masks[step].digest() for step in (4, 12, 20)}) == 3
    assert pruner.masks[8] == pruner.masks[16] == given


def test_momentum_is_forgotten_and_weights_come_back_at_zero() -> None:
    """At step 8 all turns dense. What the optimizer then remembers of any parameter is that step's gradient, and a
    weight that was zero has moved by that alone."""
    plain: dict[int, bool] = {}

    def each(fit: Fit, step: int) -> None:
        parameters = dict(fit.model.named_parameters())
        memory = {name: fit.optimizer.state[p]["momentum_buffer"] for name, p in parameters.items()}
        plain[step] = all(torch.equal(memory[name], p.grad) for name, p in parameters.items())  # type: ignore[arg-type]
        if step == 8:
            lr = learning_rate(fit.recipe, step, 4)
            before = fit.pruner.masks[7]  # type: ignore[attr-defined]
            for name, weight in parameters.items():
                if name in before:
                    back = ~before[name]
                    assert torch.equal(weight[back], (weight.grad * -lr)[back])  # type: ignore[operator]
                    assert bool(weight[back].any())

    train(4, each=each)
    assert [step for step, alone in plain.items() if alone] == [0, 8], "compression at 4 and 12 forgets nothing"


def test_given_zeros_stay() -> None:
    given = sparse_mask(dense())
    _, pruner = train(6, given)
    assert all(not mask.revived_since(given) for mask in pruner.masks)
    assert pruner.masks[8] == given, "dense is what it came with"


def test_an_unreachable_sparsity_is_refused_at_the_start() -> None:
    with pytest.raises(UserError, match="already has"):
        ACDC(0.1).start(toy_network(), sparse_mask(dense()), Plan(4, 4))


def test_settings_fit_the_method() -> None:
    for settings in ACDC.papers.values():
        ACDC(settings.sparsity, ACDCOptions(**settings.options))
        assert compressed(settings.recipe.epochs, ACDCOptions(**settings.options))[-15:] == [True] * 15
