"""Top-KAST: what is forward, what learns, how both decay, and that nothing else moves."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan, Pruner
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.prune.allocation import mask_by_score
from budwood.prune.score import magnitude
from budwood.prune.topkast import TopKAST, TopKASTOptions
from budwood.testing.pruners import RECIPE, check_pruner, sparse_mask, toy_data, toy_network
from budwood.train.fit import Fit

BATCH = (torch.zeros(1), torch.zeros(1))


def options(**changes: Any) -> TopKASTOptions:
    """All layers of the toy network together, unless told otherwise."""
    return TopKASTOptions(**({"allocation": "global", "backward": 0.4, "every": 1} | changes))


def dense() -> Mask:
    return Mask.ones(prunable(toy_network(), head=True))


def example(sparsity: float = 0.5, **changes: Any) -> tuple[nn.Linear, Mask, TopKAST]:
    """Weights 3, 1, -2, 0.5: with the sparsities 0.5 and 0.25 A is the first and the third, B has the second too."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 1.0, -2.0, 0.5]])
    mask = Mask.ones({"weight": layer.weight})
    pruner = TopKAST(sparsity, options(backward=0.25, **changes))
    assert pruner.start(layer, mask, Plan(1, 10)) is mask, "all weights stay stored"
    return layer, mask, pruner


def test_forward_and_gradient_by_hand() -> None:
    layer, mask, pruner = example()
    weight = pruner.forward_weights({"weight": layer.weight}, mask)["weight"]
    assert weight.tolist() == [[3, 0, -2, 0]]
    (weight * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[1, 2, 3, 4]], "dense, as given to B"
    assert pruner.trains(mask)["weight"].tolist() == [[True, True, True, False]]


def test_decay_by_hand() -> None:
    """Penalty 0.1, density of A a quarter: 0.1 w in A, which is the 3, and 0.4 w in B alone. So 0.3, 0.4 and -0.8 are
    added to the gradients; the last weight is not in B."""
    layer, mask, pruner = example(0.75, penalty=0.1)
    layer.weight.grad = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert pruner.update(layer, mask, 0, BATCH) is mask
    pruner.trains(mask).apply_to_gradients_(layer)
    assert layer.weight.grad.tolist() == [pytest.approx([1.3, 1.4, 0.2, 0.0])]
    assert layer.weight.tolist() == [[3.0, 1.0, -2.0, 0.5]]


def test_a_and_b_are_chosen_before_the_pass_of_every_second_step() -> None:
    """The last weight grows to 9 after step 0; with every=2, A knows it from step 2 on."""
    layer, mask, pruner = example(every=2)
    seen = []
    for step in range(4):

        def one_pass() -> Tensor:
            weight = pruner.forward_weights({"weight": layer.weight}, mask)["weight"]
            seen.append([weight.tolist()[0], pruner.trains(mask)["weight"].tolist()[0]])
            return weight.sum()

        pruner.backward(layer, mask, step, one_pass)
        pruner.update(layer, mask, step, BATCH)
        layer.weight.data = torch.tensor([[3.0, 1.0, -2.0, 9.0]])
    old, new = [True, True, True, False], [True, False, True, True]
    assert seen == [[[3, 0, -2, 0], old], [[3, 0, -2, 0], old], [[3, 0, 0, 9], new], [[3, 0, 0, 9], new]]


def test_what_is_handed_over_is_a_of_the_last_weights() -> None:
    layer, mask, pruner = example(every=100)
    deployed = copy.deepcopy(layer)
    deployed.weight.data = torch.tensor([[3.0, 1.0, -2.0, 9.0]])
    assert pruner.finish(deployed, mask, 0)["weight"].tolist() == [[True, False, False, True]]
    assert deployed.weight.tolist() == [[3, 0, 0, 9]] and layer.weight.tolist() == [[3, 1, -2, 0.5]]


def test_b_is_never_sparser_than_a() -> None:
    layer, mask, pruner = example(0.1)
    assert pruner.trains(mask)["weight"].tolist() == [[True] * 4], "a tenth of four weights is none"
    pruner = TopKAST(0.5, options(backward=0.75))
    pruner.start(layer, mask, Plan(1, 10))
    assert pruner.trains(mask)["weight"].tolist() == [[True, False, True, False]], "B is A"


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
def test_a_lies_in_b_with_the_counts_of_the_allocation(allocation: str) -> None:
    model, mask = toy_network(), dense()
    pruner = TopKAST(0.7, options(allocation=allocation, keep_dense=()))
    pruner.start(model, mask, Plan(1, 1))
    a, b = Mask(pruner.forward_), pruner.trains(mask)
    assert not a.revived_since(b)
    for found, sparsity in ((a, 0.7), (b, 0.4)):
        assert found == mask_by_score(magnitude(model, mask), mask, sparsity, allocation)  # type: ignore[arg-type]


def test_layers_kept_dense_learn_and_decay_as_ever() -> None:
    """Uniform keeps the first convolution and the classifier: all forward, all learning, decayed by the penalty."""
    model, mask = toy_network(), dense()
    pruner = TopKAST(0.7, TopKASTOptions(penalty=0.1))
    pruner.start(model, mask, Plan(1, 10))
    assert pruner.layers(model, mask) == ["3.weight"]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pruner.update(model, mask, 0, BATCH)
    for name in ("0.weight", "8.weight"):
        weight = model.get_parameter(name)
        assert torch.allclose(weight.grad, 0.1 * weight)  # type: ignore[arg-type]
        assert bool(pruner.trains(mask)[name].all()) and bool(pruner.forward_[name].all())
    bias = model.get_parameter("0.bias")
    assert bias.grad is not None and not bias.grad.any(), "what is not in the mask is the optimizer's"


def run(pruner: Pruner, recipe: Recipe, mask: Mask | None = None, each: Any = None) -> tuple[Fit, Any]:
    model, data = toy_network(), toy_data()
    mask = dense() if mask is None else mask
    mask.apply_(model)
    fit = Fit(model, pruner, mask, data, data, recipe)
    if each is not None:
        fit.progress = lambda done, total, loss: each(fit, loss)
    return fit, fit.run()


def test_forward_through_a() -> None:
    """The loss of the first step is that of the network pruned to A."""
    recipe = Recipe(epochs=1, batch_size=32, lr=0.1, momentum=0.0, weight_decay=0.0, select="last")
    model, data = toy_network(), toy_data()
    model[7].p = 0.0  # without dropout the loss can be known beforehand
    before = copy.deepcopy(model)
    fit = Fit(model, TopKAST(0.7, options()), dense(), data, data, recipe)
    (row,) = fit.run().history
    mask_by_score(magnitude(before, dense()), dense(), 0.7, "global").apply_(before)
    images, targets = data.tensors
    with torch.no_grad():
        expected = float(F.cross_entropy(before.train()(images), targets))
    assert fit.plan.steps == 1 and abs(row["train_loss"] - expected) < 1e-5


def test_weights_outside_of_b_do_not_move_by_one_bit() -> None:
    """With momentum, weight decay and penalty; B changes at every step, and what has left it stands still at once."""
    last = {n: toy_network().get_parameter(n).detach().clone() for n in dense()}
    sets: list[Mask] = []
    explored = 0

    def each(fit: Fit, loss: float) -> None:
        nonlocal explored
        b = fit.pruner.trains(fit.mask)
        for name in b:
            weight, memory = fit.model.get_parameter(name), fit.optimizer.state[fit.model.get_parameter(name)]
            assert torch.equal(weight[~b[name]], last[name][~b[name]])
            assert not memory["momentum_buffer"][~b[name]].any()
            between = b[name] & ~fit.pruner.forward_[name]  # type: ignore[attr-defined]
            explored += int((weight[between] != last[name][between]).sum())
            last[name] = weight.detach().clone()
        sets.append(b)

    fit, fitted = run(TopKAST(0.7, options(penalty=1e-3)), RECIPE, each=each)
    assert explored > 1000, "weights of B that were not forward have learned"
    assert len({b.digest() for b in sets}) > 4 and all(b.kept == dense().total - round(0.4 * 952) for b in sets)
    assert any(later.revived_since(earlier) for earlier, later in itertools.pairwise(sets))
    assert fit.mask == dense() and fitted.mask.total - fitted.mask.kept == round(0.7 * 952)


class Watched(TopKAST):
    """Compares A with the largest of the weights that a pass gets."""

    def forward_weights(self, weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
        sizes = {name: w.detach().abs() for name, w in weights.items()}
        assert Mask(self.forward_) == mask_by_score(sizes, mask, 0.7, "global")
        self.passes_ = getattr(self, "passes_", 0) + 1
        return super().forward_weights(weights, mask)


def test_with_every_1_a_is_never_stale() -> None:
    fit, _ = run(Watched(0.7, options()), RECIPE)
    assert fit.pruner.passes_ == 16  # type: ignore[attr-defined]


def test_at_sparsity_0_it_is_dense_training_with_weight_decay() -> None:
    """The penalty is then what the optimizer's weight decay is elsewhere, to the last bit."""
    pruner = TopKAST(0.0, options(backward=0.0, penalty=RECIPE.weight_decay))
    ours, _ = run(pruner, RECIPE)
    plain, _ = run(Pruner(), RECIPE)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, ours.model.state_dict()[name]), name
    without, _ = run(TopKAST(0.0, options(backward=0.0, penalty=0.0)), RECIPE)
    assert not torch.equal(plain.model.state_dict()["3.weight"], without.model.state_dict()["3.weight"])


def test_zeros_that_it_came_with_stay() -> None:
    given = sparse_mask(dense())
    fit, fitted = run(TopKAST(0.7, options(backward=0.2)), RECIPE, given)
    assert given.holds(fit.model) and not fitted.mask.revived_since(given)
    assert fit.pruner.trains(given) == given, "B cannot be larger than what is there"


def test_a_network_that_is_sparser_already_is_refused() -> None:
    with pytest.raises(UserError, match="already has"):
        TopKAST(0.1, options()).start(toy_network(), sparse_mask(dense()), Plan(4, 4))


def test_the_contract_where_a_run_is_broken_off_between_choices() -> None:
    """After 1 step A and B are those in force, after 7 and 14 they are due to be chosen anew."""
    check_pruner("topkast", {"every": 7, "allocation": "global"})


def test_settings_fit_the_method() -> None:
    for settings in TopKAST.papers.values():
        TopKAST(settings.sparsity, TopKASTOptions(**settings.options))


def test_weights_outside_of_the_kept_ones_must_learn() -> None:
    """2:4 keeps half, as many as learn by default: the mask could never change."""
    pruner, model = TopKAST(0.5, TopKASTOptions(pattern="2:4")), toy_network()
    with pytest.raises(UserError, match=r"no weight to grow beside the sparsity 0\.5; lower it .*backward=0\.25"):
        pruner.check(model, dense(), 4)


def test_without_a_penalty_of_its_own_the_decay_is_the_trainings() -> None:
    """As in `test_decay_by_hand`, the 0.1 from the recipe."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 1.0, -2.0, 0.5]])
    mask, recipe = Mask.ones({"weight": layer.weight}), Recipe(epochs=1, weight_decay=0.1)
    pruner = TopKAST(0.75, options(backward=0.25))
    pruner.start(layer, mask, Plan(1, 10, recipe=recipe))
    layer.weight.grad = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    pruner.update(layer, mask, 0, BATCH)
    pruner.trains(mask).apply_to_gradients_(layer)
    assert layer.weight.grad.tolist() == [pytest.approx([1.3, 1.4, 0.2, 0.0])]
