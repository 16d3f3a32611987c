"""ST-3 (Vanderschueren & De Vleeschouwer 2023): straight-through gradients and soft thresholds."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.prune.schedule import Cubic
from budwood.prune.st3 import ST3, ST3Options, soft
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit

AT_ONCE = {"start": 0.0, "end": 0.0, "updates": 1}


def linear(*rows: list[float]) -> tuple[nn.Linear, Mask]:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer, Mask.ones({"weight": layer.weight})


def test_one_forward_pass_by_hand() -> None:
    """Weights (4, -1, 3, 2) and (1, 1, 1, -5) at half the sparsity: of the ones the first goes last, so -1 and the
    three ones go; the threshold is 1. The first channel keeps 9 of 10, so its factor is 1.01 / (0.9 + 0.01), the
    second 5 of 8, 1.01 / (0.625 + 0.01)."""
    layer, mask = linear([4.0, -1.0, 3.0, 2.0], [1.0, 1.0, 1.0, -5.0])
    pruner = ST3(0.5, ST3Options(schedule=Cubic(**AT_ONCE)))
    pruner.start(layer, mask, Plan(1, 1))
    seen: list[Tensor] = []

    def closure() -> Tensor:
        weight = pruner.forward_weights({"weight": layer.weight}, mask)["weight"]
        seen.append(weight.detach())
        loss = (weight * torch.arange(8.0).reshape(2, 4)).sum()
        loss.backward()
        return loss.detach()

    pruner.backward(layer, mask, 0, closure)
    one, two = 1.01 / 0.91, 1.01 / 0.635
    wanted = torch.tensor([[3 * one, 0, 2 * one, one], [0, 0, 0, -4 * two]])
    assert torch.allclose(seen[0], wanted, rtol=1e-5)
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]], "straight through, to pruned weights too"
    assert pruner.finish(layer, mask, 0)["weight"].tolist() == [[True, False, True, True], [False] * 3 + [True]]
    assert torch.equal(layer.weight.detach(), seen[0])


def test_what_is_not_thresholded_is_as_it_was() -> None:
    weight = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(soft(weight, torch.ones_like(weight, dtype=torch.bool), 0.0), weight)


def test_soft_threshold_against_a_plain_loop() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = weight.abs() > 0.7
    for channel, (row, keeps) in enumerate(zip(weight, kept, strict=True)):
        sizes = [abs(float(w)) for w in row.flatten()]
        left = [s for s, k in zip(sizes, keeps.flatten(), strict=True) if k]
        factor = 1.01 / ((sum(left) / 12 + 1e-6) / (sum(sizes) / 12 + 1e-6) + 0.01)
        for w, found in zip(row.flatten(), soft(weight, kept, 0.7)[channel].flatten(), strict=True):
            lower = max(abs(float(w)) - 0.7, 0.0) * (1 if w > 0 else -1)
            assert float(found) == pytest.approx(factor * lower, rel=1e-9)


def test_layers_are_compared_as_the_variant_says() -> None:
    """Ten weights of 0.5 in a layer of extents (2, 5), and a larger one in a layer of (1, 1). Times the root of the
    extents' sum they are 0.5 * 2.65 = 1.32; 0.9 * 1.41 = 1.27 goes first, 1.2 * 1.41 = 1.70 does not."""
    for single, first_goes in ((0.9, False), (1.2, True)):
        model = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(1, 1, bias=False))
        model[0].weight.data.fill_(0.5)
        model[1].weight.data.fill_(single)
        mask = Mask.ones({f"{i}.weight": model[i].weight for i in (0, 1)})
        options = ST3Options(schedule=Cubic(**AT_ONCE), scaled=True)
        pruner = ST3(1 / 11, options)
        pruner.start(model, mask, Plan(1, 1))
        found = pruner.finish(model, mask, 0)
        assert found.counts() == ({"0.weight": 9, "1.weight": 1} if first_goes else {"0.weight": 10, "1.weight": 0})


def test_sigma_gives_each_layer_its_own_threshold() -> None:
    """Scaled by the root of 2 and of 8, both layers' threshold is the size 0.2 * 2 ** 0.5 before it is scaled back."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(4, 4, bias=False))
    model[0].weight.data.fill_(0.2)
    model[1].weight.data.fill_(1.0)
    mask = Mask.ones({f"{i}.weight": model[i].weight for i in (0, 1)})
    pruner = ST3(1 / 17, ST3Options(schedule=Cubic(**AT_ONCE), scaled=True))
    pruner.start(model, mask, Plan(1, 1))
    pruner.finish(model, mask, 0)
    assert float(model[0].weight.detach()) == 0
    assert torch.allclose(model[1].weight, torch.full((4, 4), 1 - 0.2 * 2**0.5 / 8**0.5), rtol=1e-5)


def test_schedule_of_the_paper() -> None:
    """1 - (1 - (epoch - 5) / 45)^3 of the sparsity, from epoch 5 to 50 of 100, at every step."""
    settings = ST3.papers["st3"]
    steps = 2503
    layer, mask = linear([1.0, 2.0, 3.0, 4.0])
    pruner = ST3(0.9, ST3Options(**settings.options))
    pruner.start(layer, mask, Plan(100, steps))
    for epoch in range(100):
        for step in (0, 1, 1250, steps - 1):
            now = min(max(epoch + step / steps - 5, 0), 45)
            assert pruner.sparsity_at(epoch * steps + step) == pytest.approx(0.9 * (1 - (1 - now / 45) ** 3), abs=1e-4)
    assert pruner.sparsity_at(5 * steps - 1) == 0 and pruner.sparsity_at(50 * steps) == 0.9
    assert not pruner.settled(50 * steps - 1) and pruner.settled(50 * steps)
    assert ST3(0.9).options.schedule.start == 0.05 and ST3(0.9).options.schedule.end == 0.5


def test_in_training_pruned_weights_learn_and_the_last_network_answers_as_the_forward_pass() -> None:
    model, data = toy_network(), toy_data()
    pruner = ST3(0.7)
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    out, raw, moved = [], {}, 0

    def after(done: int, total: int, how: str) -> None:
        nonlocal moved
        forward = pruner.forward_
        out.append(sum(int((w == 0).sum()) for w in forward.values()) / fit.mask.total)
        for name, weight in forward.items():
            now = model.get_parameter(name).detach()
            if name in raw:
                moved += int(((weight == 0) & (raw[name] != now)).sum())
            raw[name] = now.clone()

    fit.progress = after
    fitted = fit.run()
    assert out[0] == 0 and out[-1] == pytest.approx(0.7, abs=1e-3) and out == sorted(out)
    assert moved > 2000, "weights that are zero in the forward pass change all the same"
    assert fitted.mask.total - fitted.mask.kept == round(0.7 * fitted.mask.total)

    forward, kept = pruner._thresholded(_with(raw), fit.mask, 0.7)
    assert kept == fitted.mask
    for name, weight in forward.items():
        assert torch.allclose(weight, model.get_parameter(name), rtol=1e-5), "what went forward is what is stored now"


def _with(weights: dict[str, Tensor]) -> nn.Module:
    model = toy_network()
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)
    return model


def test_only_epochs_after_the_last_raise_may_be_best() -> None:
    model, data = toy_network(), toy_data()
    recipe = Recipe(epochs=4, batch_size=8, lr=1e-6, momentum=0.0, weight_decay=0.0, select="best")
    fitted = Fit(model, ST3(0.9), Mask.ones(prunable(model, head=True)), data, data, recipe).run()
    assert fitted.epoch >= 2 and fitted.mask.sparsity == pytest.approx(0.9, abs=1e-3)
    assert fitted.history[0]["sparsity"] < 0.7


def test_nothing_to_prune_and_too_sparse() -> None:
    layer, mask = linear([1.0, 2.0, 3.0, 4.0])
    pruner = ST3(0.0)
    pruner.start(layer, mask, Plan(2, 2))
    assert pruner.finish(layer, mask, 0) == mask and layer.weight.tolist() == [[1, 2, 3, 4]]
    sparse = Mask({"weight": torch.tensor([[True, True, False, False]])})
    with pytest.raises(UserError, match="already has"):
        ST3(0.25).start(layer, sparse, Plan(2, 2))
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        ST3(0.5).start(layer, mask, Plan(2, 2))


def test_what_sigma_compares_is_the_layers() -> None:
    with pytest.raises(ValidationError, match="scaled compares layers, and erk gives each its share"):
        ST3.Options(scaled=True, allocation="erk")


def test_each_layer_has_its_own_threshold_where_each_has_its_share() -> None:
    """Of (1, 2) and (10, 20) the larger ones stay; thresholds 1 and 10."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False))
    model.get_parameter("0.weight").data = torch.tensor([[1.0, 2.0]])
    model.get_parameter("1.weight").data = torch.tensor([[10.0, 20.0]])
    mask = Mask.ones(dict(model.named_parameters()))
    pruner = ST3(0.5, ST3Options(allocation="uniform", keep_dense=(), schedule=Cubic(**AT_ONCE)))
    pruner.start(model, mask, Plan(1, 1))
    pruner.finish(model, mask, 0)
    factor = 1.01 / (2 / 3 + 0.01)
    assert model.get_parameter("0.weight").tolist() == [pytest.approx([0, factor], rel=1e-4)]
    assert model.get_parameter("1.weight").tolist() == [pytest.approx([0, 10 * factor], rel=1e-4)]
