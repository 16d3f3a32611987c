"""SNIP: the sensitivity of the loss to each weight, against autograd written plainly."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.fresh import with_statistics
from budwood.prune.snip import SNIP, SNIPOptions
from budwood.testing.pruners import sparse_mask, toy_data, toy_network
from budwood.train.data import batches_from


def plan(*batches: tuple[Tensor, Tensor]) -> Plan:
    """Draws these batches, in this order, for ever."""

    def draw(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from batches

    return Plan(0, 0, batches=draw)


def layer_of(*rows: list[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def scores(model: nn.Module, mask: Mask, options: SNIPOptions, plan: Plan) -> dict[str, Tensor]:
    pruner = SNIP(0.0, options)
    pruner.start(model, mask, plan)
    return pruner.scores(model, mask, 0.0, 0)


def test_by_hand() -> None:
    """W = ((3, 1), (2, 2)) and x = (1, 1), class 0: both logits are 4, so the gradient is (-1, -1, 1, 1) / 2."""
    layer = layer_of([3.0, 1.0], [2.0, 2.0])
    mask = Mask.ones({"weight": layer.weight})
    drawn = plan((torch.ones(1, 2), torch.tensor([0])))
    found = scores(layer, mask, SNIPOptions(gradients=1, batch=1), drawn)
    assert torch.allclose(found["weight"], torch.tensor([[1.5, 0.5], [1.0, 1.0]]))
    assert SNIP(0.25).start(layer, mask, drawn)["weight"].tolist() == [[True, False], [True, True]]


def test_gradients_of_several_batches_are_summed_before_the_absolute_value() -> None:
    """The classes 0 and 1 in turn, at equal logits: the gradients cancel."""
    layer = layer_of([1.0, 2.0], [1.0, 2.0])
    one = torch.ones(1, 2)
    drawn = plan((one, torch.tensor([0])), (one, torch.tensor([1])))
    mask = Mask.ones({"weight": layer.weight})
    assert not scores(layer, mask, SNIPOptions(gradients=2, batch=1), drawn)["weight"].any()
    assert scores(layer, mask, SNIPOptions(gradients=3, batch=1), drawn)["weight"].all()


def trained_network() -> nn.Sequential:
    """The toy network with statistics in its batch norm."""
    model = toy_network()
    for _ in range(3):
        model(toy_data()[:][0])
    return model


def test_as_the_derivative_by_the_factor_of_each_weight() -> None:
    """The paper's own definition: |dL/dc| at c = 1, in float64, for the sum of the losses of all batches."""
    model = trained_network()
    mask = Mask.ones(prunable(model, head=True))
    draw = batches_from(toy_data(), 0, 0, torch.device("cpu"))
    found = scores(model, mask, SNIPOptions(gradients=3, batch=8), Plan(0, 0, batches=draw))
    reference = trained_network().double().eval()
    factors = {name: torch.ones_like(reference.get_parameter(name), requires_grad=True) for name in mask}
    batches, loss = draw(8, 0), torch.zeros((), dtype=torch.float64)
    for _ in range(3):
        images, targets = next(batches)
        weights = {name: c * reference.get_parameter(name) for name, c in factors.items()}
        loss = loss + F.cross_entropy(torch.func.functional_call(reference, weights, images.double()), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, factor in factors.items():
        assert factor.grad is not None
        assert torch.allclose(found[name].double(), factor.grad.abs(), rtol=1e-3, atol=1e-6)


def test_without_labels_the_networks_own_answers_stand_in() -> None:
    """And nothing is left to chance: the same images give the same scores, whatever their labels say."""
    model = trained_network()
    mask = Mask.ones(prunable(model, head=True))
    images = toy_data()[:8][0]
    with torch.no_grad():
        answers = trained_network().eval()(images).argmax(1)
    assert len(answers.unique()) > 1
    options = SNIPOptions(gradients=1, batch=8)
    expected = scores(model, mask, options, plan((images, answers)))
    wrong = plan((images, (answers + 1) % 3))
    found = scores(model, mask, options, replace(wrong, labelled=False))
    assert all(torch.equal(found[name], expected[name]) for name in mask)
    assert not all(torch.equal(score, expected[name]) for name, score in scores(model, mask, options, wrong).items())


def test_what_is_pruned_stays_pruned_and_the_network_as_it_is() -> None:
    model = toy_network()
    mask = sparse_mask(Mask.ones(prunable(model, head=True)))
    mask.apply_(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draw = batches_from(toy_data(), 0, 0, torch.device("cpu"))
    found = SNIP(0.8, SNIPOptions(**SNIP.brief)).start(model, mask, Plan(0, 0, batches=draw))
    assert not found.revived_since(mask) and found.kept == round(0.2 * found.total)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_all_equal_sensitivities_keep_the_first() -> None:
    layer = layer_of([1.0, 1.0], [1.0, 1.0])
    drawn = plan((torch.ones(1, 2), torch.tensor([0])))
    found = SNIP(0.5).start(layer, Mask.ones({"weight": layer.weight}), drawn)
    assert found["weight"].tolist() == [[True, True], [False, False]]


def test_a_fresh_network_gets_statistics_on_a_copy() -> None:
    """Images of mean 5 and standard deviation 3, in batches that are all the same."""
    random = torch.Generator().manual_seed(0)
    images = 5 + 3 * torch.randn(64, 3, 4, 4, generator=random)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    settled = with_statistics(model, plan((images, torch.zeros(64))), size=64, salt=0)
    norm, old = settled.get_submodule("0"), model.get_submodule("0")
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(old, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None and old.running_mean is not None
    assert torch.allclose(norm.running_mean, images.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, images.var((0, 2, 3)), rtol=1e-3)
    assert not old.running_mean.any() and not any(module.training for module in settled.modules())


def test_statistics_of_single_images_where_a_map_is_one_pixel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4))
    settled = with_statistics(model, plan((torch.randn(8, 3, 4, 4), torch.zeros(8))), size=1, salt=0)
    assert settled is not model and bool(settled.get_submodule("1").running_mean.any())  # type: ignore[union-attr,operator]


def test_a_network_with_statistics_is_taken_as_it_is() -> None:
    model = trained_network()
    assert with_statistics(model, Plan(0, 0), size=8, salt=0) is model


def test_a_fresh_network_is_scored_with_measured_statistics() -> None:
    draw = batches_from(toy_data(), 0, 0, torch.device("cpu"))
    fresh, measured = toy_network(), toy_network().train()
    measured[1].momentum, seen = None, draw(16, 0)
    with torch.no_grad():
        for _ in range(8):
            measured[:2](next(seen)[0])  # convolution and batch norm alone
    mask = Mask.ones(prunable(fresh, head=True))
    options = SNIPOptions(gradients=2, batch=16)
    one, two = (scores(model, mask, options, Plan(0, 0, batches=draw)) for model in (fresh, measured.eval()))
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-8) for name in mask)
