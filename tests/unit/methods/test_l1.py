"""L1 by proximal steps (Duchi & Singer 2009), then a pruning, then training without it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.prune.proximal import Proximal, ProximalOptions, proximal_
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit

BATCH = (torch.zeros(1), torch.zeros(1))


def linear(*weights: float) -> tuple[nn.Linear, Mask]:
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data = torch.tensor([weights])
    return layer, Mask.ones({"weight": layer.weight})


def test_proximal_step_by_hand() -> None:
    weight = torch.tensor([0.5, -0.1, -0.4, 0.2, 0.0])
    proximal_(weight, 0.2)
    assert torch.allclose(weight, torch.tensor([0.3, 0.0, -0.2, 0.0, 0.0]))
    assert int(weight.count_nonzero()) == 2, "exactly zero where it would change its sign"


@given(st.floats(-3, 3), st.floats(0, 2))
def test_proximal_step_is_the_minimum(w: float, amount: float) -> None:
    """Of (v - w)^2 / 2 + amount |v|, on a grid."""
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    best = float(((grid - w) ** 2 / 2 + amount * grid.abs()).min())
    found = torch.tensor([w], dtype=torch.float64)
    proximal_(found, amount)
    v = float(found)
    assert (v - w) ** 2 / 2 + amount * abs(v) <= best + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.floats(-2, 2), st.floats(0.0, 1.0), st.floats(0.5, 3.0), st.sampled_from([0.0, 0.5, 0.9]))
def test_it_solves_a_lasso_of_one_dimension(middle: float, strength: float, curve: float, momentum: float) -> None:
    """curve (w - middle)^2 / 2 + strength |w| is least at sign(middle) max(|middle| - strength / curve, 0), also with
    momentum. Beside it a second weight that does not matter, so that there is something to prune."""
    layer, mask = linear(1.0, 0.5)
    steps = 400
    recipe = Recipe(epochs=1, batch_size=1, lr=0.05, momentum=momentum, weight_decay=0.0, schedule="constant")
    pruner = Proximal(0.5, ProximalOptions(strength=strength, until=0.999))
    mask = pruner.start(layer, mask, Plan(1, steps, recipe=recipe))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=momentum)

    def closure() -> Tensor:
        slope = curve * (float(layer.weight.detach()[0, 0]) - middle)
        layer.weight.grad = torch.tensor([[slope, 0.0]])
        return torch.zeros(())

    for step in range(pruner.at_):
        pruner.backward(layer, mask, step, closure)
        mask = pruner.update(layer, mask, step, BATCH)
        optimizer.step()
    pruner.finish(layer, mask, pruner.at_ - 1)
    wanted = max(abs(middle) - strength / curve, 0.0) * (1 if middle > 0 else -1)
    assert float(layer.weight.detach()[0, 0]) == pytest.approx(wanted, abs=2e-3)


def test_one_step_of_the_loop_by_hand() -> None:
    """lr 0.1, momentum 0.5: a strength of 0.3 takes 0.1 / 0.5 * 0.3 = 0.06 off, once a step, before the pass."""
    layer, mask = linear(1.0, -0.05)
    recipe = Recipe(epochs=1, batch_size=1, lr=0.1, momentum=0.5, schedule="constant")
    pruner = Proximal(0.5, ProximalOptions(strength=0.3, until=0.5))
    mask = pruner.start(layer, mask, Plan(1, 4, recipe=recipe))
    seen: list[list[float]] = []

    def closure() -> Tensor:
        seen.append(layer.weight.detach().flatten().tolist())
        return torch.zeros(())

    for step in range(4):
        pruner.backward(layer, mask, step, closure)
        mask = pruner.update(layer, mask, step, BATCH)
    assert torch.allclose(torch.tensor(seen), torch.tensor([[1.0, -0.05], [0.94, 0.0], [0.88, 0.0], [0.88, 0.0]]))
    assert mask["weight"].tolist() == [[True, False]], "pruned at step 2, half way; no shrinkage any more"
    assert [pruner.settled(step) for step in range(4)] == [False, False, True, True]


def test_the_default_strength_takes_the_weights_to_prune_to_zero_just_in_time() -> None:
    """Without a gradient: of 1, 2, 3, 4 at half the sparsity, 2 is the largest that goes; what stays has lost 2."""
    layer, mask = linear(1.0, -2.0, 3.0, -4.0)
    recipe = Recipe(epochs=1, batch_size=1, lr=0.1, momentum=0.9)
    pruner = Proximal(0.5)
    mask = pruner.start(layer, mask, Plan(1, 100, recipe=recipe))
    for step in range(71):
        pruner.backward(layer, mask, step, lambda: torch.zeros(()))
        mask = pruner.update(layer, mask, step, BATCH)
    assert torch.allclose(layer.weight.detach(), torch.tensor([[0.0, 0.0, 1.0, -2.0]]), atol=1e-4)
    assert mask["weight"].tolist() == [[False, False, True, True]]


def test_it_makes_the_pruning_cheaper_than_without() -> None:
    """What the pruning takes away is less than what plain training would lose there."""
    lost = []
    for strength in (0.0, None):
        model, data = toy_network(), toy_data()
        pruner = Proximal(0.7, ProximalOptions(strength=strength))
        fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE)
        before = {}
        select = pruner.select

        def watched(scores, mask, sparsity, select=select, before=before):
            found = select(scores, mask, sparsity)
            before["lost"] = sum(float(s[~found[n]].square().sum()) for n, s in scores.items())
            return found

        pruner.select = watched  # type: ignore[method-assign]
        fitted = fit.run()
        lost.append(before["lost"])
        assert fitted.mask.total - fitted.mask.kept == round(0.7 * fitted.mask.total)
    assert lost[1] < 0.5 * lost[0]


def test_after_the_pruning_it_is_training_at_a_fixed_mask() -> None:
    model, data, masks = toy_network(), toy_data(), []
    fit = Fit(model, Proximal(0.7), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    fit.progress = lambda *_: masks.append(fit.mask)
    fit.run()
    assert [mask.sparsity > 0 for mask in masks] == [False] * 11 + [True] * 5 and len(set(masks[11:])) == 1


def test_edges() -> None:
    layer, mask = linear(1.0, 2.0)
    with pytest.raises(UserError, match="learning rate"):
        Proximal(0.5).start(layer, mask, Plan(1, 4))
    with pytest.raises(UserError, match="already has"):
        sparse = Mask({"weight": torch.tensor([[True, False]])})
        Proximal(0.1).start(layer, sparse, Plan(1, 4, recipe=RECIPE))
    assert Proximal(0.0).start(layer, mask, Plan(1, 4, recipe=RECIPE)) is mask
    short = TensorDataset(torch.randn(2, 3, 6, 6), torch.tensor([0, 1]))
    model = toy_network()
    recipe = Recipe(epochs=1, batch_size=2, lr=0.01, select="last")
    fitted = Fit(model, Proximal(0.5), Mask.ones(prunable(model, head=True)), short, short, recipe).run()
    assert fitted.mask.sparsity == pytest.approx(0.5), "a training of one step prunes in it"


def test_layers_that_are_kept_dense_are_not_shrunk() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    mask = Mask.ones(prunable(model, head=True))
    old = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = Recipe(epochs=1, batch_size=1, lr=0.1, momentum=0.5, schedule="constant")
    pruner = Proximal(0.5, ProximalOptions(strength=0.3, allocation="uniform"))
    pruner.start(model, mask, Plan(1, 4, recipe=recipe))
    pruner.backward(model, mask, 1, lambda: torch.zeros(()))
    assert [name for name in mask if not torch.equal(model.get_parameter(name), old[name])] == ["1.weight"]
