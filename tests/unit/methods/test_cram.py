"""CrAM and CrAM+ (Peste et al. 2023)."""

import collections

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan, Pruner
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.prune.cram import CrAM, CrAMOptions
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.batchnorm import recalibrate
from budwood.train.fit import Fit


@pytest.mark.parametrize(("plus", "wanted"), [(True, [[2.1, -1.5]]), (False, [[1.1, 0.0]])])
def test_one_step_by_hand(plus: bool, wanted: list[list[float]]) -> None:
    """Loss |w - (0, 1)|^2 / 2 at w = (1, -0.5): gradient (1, -1.5). With rho 0.1, w + rho g = (1.1, -0.65), of which
    half is (1.1, 0), with the gradient (1.1, -1), masked (1.1, 0). In all, with the first one, (2.1, -1.5)."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -0.5]])
    mask = Mask.ones({"weight": layer.weight})
    seen: list[list[float]] = []

    def closure() -> Tensor:
        seen.append(layer.weight.detach().flatten().tolist())
        loss = (layer.weight - torch.tensor([[0.0, 1.0]])).square().sum() / 2
        loss.backward()
        return loss.detach()

    pruner = CrAM(0.5, CrAMOptions(rho=0.1, levels=(0.5,), plus=plus))
    pruner.start(layer, mask, Plan(1, 1))
    assert float(pruner.backward(layer, mask, 0, closure)) == 1.625
    assert torch.allclose(torch.tensor(seen), torch.tensor([[1.0, -0.5], [1.1, 0.0]]))
    assert torch.allclose(layer.weight.grad, torch.tensor(wanted))  # type: ignore[arg-type]
    assert layer.weight.tolist() == [[1.0, -0.5]]


def test_one_step_against_autograd_written_out() -> None:
    """On the toy network in float64: everything that is trained moves along rho g, weights alone are pruned."""
    model, data = toy_network().double().train(), toy_data()
    model[7].p = 0.0
    images, targets = data.tensors[0].double(), data.tensors[1]
    mask = Mask.ones(prunable(model, head=True))
    pruner = CrAM(0.7, CrAMOptions(rho=0.3, levels=(0.6,)))
    pruner.start(model, mask, Plan(1, 1))

    values = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    fresh = toy_network().double().train()
    fresh[7].p = 0.0

    def slope(at: dict[str, Tensor]) -> dict[str, Tensor]:
        loss = F.cross_entropy(torch.func.functional_call(fresh, at, (images,)), targets)
        return dict(zip(at, torch.autograd.grad(loss, list(at.values())), strict=True))

    clean = slope(values)
    further = {name: (value + 0.3 * clean[name]).detach() for name, value in values.items()}
    sizes = torch.cat([further[name].abs().flatten() for name in mask]).sort().values
    threshold = sizes[round(0.6 * len(sizes))]
    kept = {name: further[name].abs() >= threshold for name in mask}
    further = {name: (w * kept.get(name, 1.0)).requires_grad_() for name, w in further.items()}
    second = slope(further)

    def closure() -> Tensor:
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        return loss.detach()

    model.zero_grad()
    pruner.backward(model, mask, 0, closure)
    for name, parameter in model.named_parameters():
        wanted = clean[name] + second[name] * kept.get(name, 1.0)
        assert torch.allclose(parameter.grad, wanted, rtol=1e-6, atol=1e-9), name  # type: ignore[arg-type]
        assert torch.equal(parameter, values[name])


def test_two_passes_a_step_and_statistics_of_the_dense_one() -> None:
    model, data, forwards = toy_network(), toy_data(), []
    model.register_forward_pre_hook(lambda module, _: forwards.append(module.training))
    fit = Fit(model, CrAM(0.7), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    zeros: list[int] = []
    fit.progress = lambda *_: zeros.append(
        fit.mask.total - sum(int(model.get_parameter(n).count_nonzero()) for n in fit.mask)
    )
    fitted = fit.run()
    assert sum(forwards) == 2 * 16
    assert zeros == [0] * 16, "dense while it trains"
    assert fitted.mask.total - fitted.mask.kept == round(0.7 * fitted.mask.total) and fitted.mask.holds(model)


def test_running_statistics_are_those_of_a_dense_pass() -> None:
    """One step: as if the network had seen the batch once, with its own weights."""
    model, plain, data = toy_network().train(), toy_network().train(), toy_data()
    images, targets = data.tensors
    mask = Mask.ones(prunable(model, head=True))
    pruner = CrAM(0.7)
    pruner.start(model, mask, Plan(1, 1))

    def closure() -> Tensor:
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        return loss.detach()

    pruner.backward(model, mask, 0, closure)
    plain(images)
    for (name, found), wanted in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, wanted), name


def test_levels_are_drawn_alike_by_seed_and_all_of_them() -> None:
    layer = nn.Linear(10, 1, bias=False)
    mask = Mask.ones({"weight": layer.weight})

    def drawn(seed: int) -> list[float]:
        pruner = CrAM(0.5)
        pruner.start(layer, mask, Plan(1, 1, seed))
        return [pruner._level(step) for step in range(600)]

    assert drawn(0) == drawn(0) != drawn(1)
    counts = collections.Counter(drawn(0))
    assert set(counts) == {0.5, 0.7, 0.9} and min(counts.values()) > 150


def test_with_an_nm_pattern_that_is_the_compression() -> None:
    """(5, 1, 3, 2) at 2:4 keeps 5 and 3."""
    layer = nn.Conv2d(4, 1, 1, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), layer)
    layer.weight.data = torch.tensor([5.0, 1.0, 3.0, 2.0]).reshape(1, 4, 1, 1)
    mask = Mask.ones(prunable(model, head=True))
    pruner = CrAM(0.5, CrAMOptions(rho=0.0, pattern="2:4"))
    pruner.start(model, mask, Plan(1, 1))
    seen: list[list[float]] = []

    def closure() -> Tensor:
        seen.append(layer.weight.detach().flatten().tolist())
        loss = sum(p.sum() for p in model.parameters())
        loss.backward()
        return loss.detach()  # type: ignore[union-attr]

    pruner.backward(model, mask, 0, closure)
    assert seen == [[5, 1, 3, 2], [5, 0, 3, 0]]
    assert layer.weight.grad.flatten().tolist() == [2, 1, 2, 1]  # type: ignore[union-attr]


def test_pruned_at_once_it_is_better_than_after_plain_training() -> None:
    """What it is for: the loss of the pruned network, on the images it was trained on."""
    losses = []
    recipe = Recipe(epochs=30, batch_size=8, lr=0.05, weight_decay=1e-4, select="last")
    for pruner in (CrAM(0.9, CrAMOptions(rho=0.5)), Pruner()):
        model, data = toy_network(), toy_data()
        fitted = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe).run()
        if not isinstance(pruner, CrAM):
            CrAM(0.9).finish(model, fitted.mask, 119).apply_(model)
            recalibrate(model, data)
        with torch.no_grad():
            losses.append(float(F.cross_entropy(model.eval()(data.tensors[0]), data.tensors[1])))
    assert losses[0] < 0.8 * losses[1]


def test_edges() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    sparse = Mask({"weight": torch.tensor([[True, False, False, False]])})
    with pytest.raises(UserError, match="already has"):
        CrAM(0.5).start(layer, sparse, Plan(1, 1))
    pruner = CrAM(0.75, CrAMOptions(levels=(0.5,)))
    pruner.start(layer, sparse, Plan(1, 1))
    assert pruner._level(0) == 0.75, "a network that is sparser than a level is compressed no further"
    assert CrAM(0.0).finish(layer, Mask.ones({"weight": layer.weight}), 0).sparsity == 0


def test_the_finished_network_has_statistics_of_its_own() -> None:
    model, data = toy_network(), toy_data()
    Fit(model, CrAM(0.7), Mask.ones(prunable(model, head=True)), data, data, RECIPE).run()
    with torch.no_grad():
        seen = model[0](data.tensors[0])  # one batch of all images
    torch.testing.assert_close(model[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[1].running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_sparsity_beyond_the_levels_is_one_of_them() -> None:
    pruner, layer = CrAM(0.95), nn.Linear(20, 1, bias=False)
    pruner.start(layer, Mask.ones({"weight": layer.weight}), Plan(1, 1))
    assert {pruner._level(step) for step in range(200)} == {0.5, 0.7, 0.9, 0.95}
