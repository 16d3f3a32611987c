"""STR (Kusupati et al. 2020): soft thresholds that are learned."""

import copy
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.prune.soft_threshold import (
    PAPER,
    PAPER_CROSSING,
    PAPER_DECAY,
    STR,
    STROptions,
    crossing_of,
    pull_of,
    start_of,
)
from budwood.testing.pruners import toy_data, toy_network
from budwood.train.fit import Fit
from budwood.train.optim import learning_rate


def test_one_update_by_hand() -> None:
    """Threshold 0.2, weights 0.5, -0.1, -0.4: forward 0.3, 0, -0.2. With the loss 1, 2, 3 times them, the gradient is
    1, 0, 3 for w, and for s -0.2 * 0.8 (1 * 1 + 3 * -1) = 0.32."""
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[0.5, -0.1, -0.4]])
    mask = Mask.ones({"weight": layer.weight})
    pruner = STR(0.5, STROptions(initial=math.log(0.2 / 0.8)))
    assert pruner.start(layer, mask, Plan(1, 1)) is mask
    weight = pruner.forward_weights({"weight": layer.weight}, mask)["weight"]
    assert weight.tolist() == [pytest.approx([0.3, 0, -0.2])]
    (weight * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    (logit,) = pruner.parameters()
    assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[1, 0, 3]]
    assert float(logit.grad) == pytest.approx(0.32)  # type: ignore[arg-type]
    torch.optim.SGD([*layer.parameters(), logit], lr=0.1).step()
    assert float(logit.detach()) == pytest.approx(math.log(0.25) - 0.032)
    assert pruner.finish(layer, mask, 0)["weight"].tolist() == [[True, False, True]]


def decayed(first: float, recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """s after every step of an SGD that is written out plainly, with no gradient but that of the weight decay."""
    s, momentum, course = first, 0.0, []
    for step in range(recipe.epochs * steps_per_epoch):
        momentum = recipe.momentum * momentum + recipe.weight_decay * s
        s -= learning_rate(recipe, step, steps_per_epoch) * momentum
        course.append(s)
    return course


def test_s_under_decay_alone() -> None:
    """All weights lie below the threshold, so no gradient reaches s: what moves it in the real loop is the decay,
    step for step, and in all it is the closed form (momentum lags behind it by a few steps)."""
    model, data, logits = toy_network(), toy_data(), []
    mask = Mask.ones({"8.weight": model.get_parameter("8.weight")})
    recipe = Recipe(epochs=40, batch_size=8, lr=0.2, momentum=0.5, weight_decay=0.02, select="last")
    pruner = STR(0.5, STROptions(initial=-0.5))
    fit = Fit(model, pruner, mask, data, data, recipe)
    fit.progress = lambda *_: logits.append(float(pruner.parameters()[0].detach()))
    assert fit.run().mask.kept == 0, "nothing is left of the head"
    assert logits == pytest.approx(decayed(-0.5, recipe, 4), rel=1e-4)
    assert logits[-1] == pytest.approx(-0.5 * math.exp(-0.02 * pull_of(recipe, 4)), rel=0.02)


def test_a_decay_of_its_own_is_that_of_a_plain_loop() -> None:
    """The loop multiplies s by exp(-(0.3 - 0.02) lr / (1 - 0.5)) and then does SGD with 0.02. Nothing else moves s:
    all weights lie below the threshold."""
    model, data, logits = toy_network(), toy_data(), []
    mask = Mask.ones({"8.weight": model.get_parameter("8.weight")})
    recipe = Recipe(epochs=5, batch_size=8, lr=0.2, momentum=0.5, weight_decay=0.02, select="last")
    pruner = STR(0.5, STROptions(initial=-0.5, decay=0.3))
    fit = Fit(model, pruner, mask, data, data, recipe)
    fit.progress = lambda *_: logits.append(float(pruner.parameters()[0].detach()))
    assert fit.run().mask.kept == 0, "nothing is left of the head"
    s, momentum, course = -0.5, 0.0, []
    for step in range(20):
        lr = learning_rate(recipe, step, 4)
        s *= math.exp(-0.28 * lr / 0.5)
        momentum = 0.5 * momentum + 0.02 * s
        s -= lr * momentum
        course.append(s)
    assert logits == pytest.approx(course, rel=1e-4) and logits[-1] > -0.5 * math.exp(-0.9 * 0.3 * pull_of(recipe, 4))


def test_a_training_that_decays_as_the_authors_did_is_left_to_it() -> None:
    """Fewer steps of as much more weight decay, 11.8 powers of e in all: s is moved by the optimizer alone."""
    recipe = PAPER.model_copy(update={"epochs": 10, "warmup_epochs": 0, "weight_decay": 0.0575})
    assert recipe.weight_decay * pull_of(recipe, 20) == pytest.approx(PAPER_DECAY, rel=0.01)
    pruner = STR(0.5)
    layer = nn.Linear(10, 10, bias=False)
    mask = Mask.ones({"weight": layer.weight})
    pruner.start(layer, mask, Plan(10, 20, recipe=recipe))
    before = pruner.parameters()[0].item()
    assert pruner.update(layer, mask, 0, (torch.zeros(1), torch.zeros(1))) is mask
    assert pruner.parameters()[0].item() == before
    pruner.start(layer, mask, Plan(10, 20, recipe=recipe.model_copy(update={"weight_decay": 5e-4})))
    before = pruner.parameters()[0].item()
    pruner.update(layer, mask, 0, (torch.zeros(1), torch.zeros(1)))
    assert 0 > pruner.parameters()[0].item() > before, "and one of little weight decay is not"


def test_decay_of_the_papers_training() -> None:
    """5005 steps in each of 100 epochs; the rate of an epoch is 0.256 (e + 1) / 5 in the first five, then a cosine to
    zero in 95 (RAIVNLab/STR, utils/schedulers.py)."""
    rates = [0.256 * (e + 1) / 5 for e in range(5)]
    rates += [0.5 * (1 + math.cos(math.pi * e / 95)) * 0.256 for e in range(95)]
    assert 2.251757813e-5 * 5005 * sum(rates) / 0.125 == pytest.approx(PAPER_DECAY, rel=1e-3)


def test_the_rule_gives_the_papers_start_in_the_papers_training() -> None:
    wd = PAPER.weight_decay
    assert start_of(0.9023, wd, PAPER_DECAY / wd, PAPER_CROSSING) == pytest.approx(-3200, rel=1e-6)


def watched(fit: Fit, mask: Mask) -> list[float]:
    """Gets, while `fit` runs, the share of zeros in the weights that its forward passes use, after every step."""
    zeros: list[float] = []

    def look(done: int, total: int, loss: str) -> None:
        weights = fit.pruner.forward_weights({name: fit.model.get_parameter(name) for name in mask}, mask)
        assert weights is not None
        zeros.append(Mask.from_zeros(weights).sparsity)

    fit.progress = look
    return zeros


@pytest.mark.parametrize("lr", [0.01, 0.05])
def test_what_is_asked_for_in_a_short_training_of_default_settings(lr: float) -> None:
    """10 epochs of 20 steps on digits. Uncorrected, 50, 80 and 95 % come to 42, 60 and 74 at learning rate 0.05."""
    images, classes = load_digits(return_X_y=True)
    images, classes = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(classes)
    train, val = TensorDataset(images[:640], classes[:640]), TensorDataset(images[1200:], classes[1200:])
    for asked in (0.5, 0.8, 0.95):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
            )  # fmt: skip
        recipe = Recipe(lr=lr)
        assert (recipe.epochs, recipe.batch_size) == (10, 32)
        mask, pruner = Mask.ones(prunable(model, head=True)), STR(asked)
        fit = Fit(model, pruner, mask, train, val, recipe)
        forward = watched(fit, mask)
        fitted = fit.run()
        assert abs(fitted.mask.kept - (1 - asked) * fitted.mask.total) <= 1
        assert forward[40] < 0.1 and all(abs(zeros - asked) < 0.05 for zeros in forward[150:]), "they rise slowly"
        assert all(bool(part.any()) for part in fitted.mask.values()), "every layer keeps something"
        if asked < 0.9:
            assert fitted.history[-1]["val_top1"] > 0.55, "and it has learned something"


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_training_of_few_steps_meets_it_too(epochs: int) -> None:
    model, data = toy_network(), toy_data()
    recipe = Recipe(epochs=epochs, batch_size=len(data), lr=0.1, ema=0.5)
    fitted = Fit(model, STR(0.7), Mask.ones(prunable(model, head=True)), data, data, recipe).run()
    assert abs(fitted.mask.kept - 0.3 * fitted.mask.total) <= 1


def test_a_single_weight_can_be_ranked() -> None:
    layer = nn.Linear(1, 1, bias=False)
    mask = Mask.ones({"weight": layer.weight})
    pruner = STR(0.5)
    pruner.start(layer, mask, Plan(1, 1, recipe=Recipe(epochs=1)))
    pruner.update(layer, mask, 0, (torch.zeros(1), torch.zeros(1)))
    assert pruner.finish(layer, mask, 0).kept in (0, 1) and math.isfinite(pruner.parameters()[0].item())


def test_corrections_by_hand() -> None:
    """Sizes 0.1, 0.2 to 0.8 in one layer and 0.06, 0.11 to 0.41 in another, all s at logit(0.01). Half of the 16
    weights are to go: the threshold has to lie between 0.3 and 0.31. A quarter of the way from a fifth of the training
    to three fifths it moves by a quarter."""
    logit = lambda p: math.log(p / (1 - p))  # noqa: E731
    layers = nn.ModuleDict({"a": nn.Linear(8, 1, bias=False), "b": nn.Linear(8, 1, bias=False)})
    layers["a"].weight.data = torch.arange(1, 9)[None] / 10
    layers["b"].weight.data = -torch.arange(1, 9)[None] / 20 - 0.01
    mask = Mask.ones(dict(layers.named_parameters()))
    recipe = Recipe(epochs=101, batch_size=1, weight_decay=0.0, select="last")
    pruner, batch = STR(0.5, STROptions(decay=0.0)), (torch.zeros(1), torch.zeros(1))
    pruner.start(layers, mask, Plan(101, 1, recipe=recipe))
    for p in pruner.parameters():
        p.data.fill_(logit(0.01))
    pruner.update(layers, mask, 20, batch)
    assert pruner.parameters()[0].item() == pytest.approx(logit(0.01))
    assert pruner.finish(copy.deepcopy(layers), mask, 20).kept == 16, "before all of it is corrected it is as it is"
    pruner.update(layers, mask, 30, batch)
    below, above = logit(0.3), logit(0.31)
    wanted = logit(0.01) + 0.25 * ((below + above) / 2 - logit(0.01))
    assert [p.item() for p in pruner.parameters()] == [pytest.approx(wanted)] * 2
    assert not pruner.settled(59)
    state = {name: value.clone() for name, value in pruner.state().items()}
    pruner.update(layers, mask, 60, batch)
    assert [p.item() for p in pruner.parameters()] == [pytest.approx((below + above) / 2)] * 2
    assert pruner.settled(60) and pruner.finish(copy.deepcopy(layers), mask, 60).kept == 8
    layers["a"].weight.data += 0.3  # the last step
    assert pruner.finish(copy.deepcopy(layers), mask, 60).kept == 8
    pruner.load_state(state)
    assert pruner.finish(copy.deepcopy(layers), mask, 30).kept == 16


def test_with_a_start_of_one_s_own_nothing_is_corrected() -> None:
    layer = nn.Linear(8, 1, bias=False)
    mask, recipe = Mask.ones({"weight": layer.weight}), Recipe(epochs=10, batch_size=1, weight_decay=0.0, select="last")
    pruner = STR(0.5, STROptions(initial=-50.0))
    pruner.start(layer, mask, Plan(10, 1, recipe=recipe))
    for step in range(10):
        pruner.update(layer, mask, step, (torch.zeros(1), torch.zeros(1)))
    assert pruner.parameters()[0].item() == -50 and pruner.finish(layer, mask, 9).kept == 8


def test_crossing_is_the_quantile() -> None:
    weights = {"a": torch.arange(1, 51) / 1000.0, "b": -torch.arange(51, 101) / 1000.0}
    assert crossing_of(weights, 0.8) == pytest.approx(math.log(0.08 / 0.92))
    assert math.isfinite(crossing_of({"a": torch.zeros(5)}, 0.5)), "also of a network of zeros"
    assert crossing_of({"a": torch.full((5,), 3.0)}, 0.5) < 0, "and of one of large weights"


def test_without_a_training_to_go_by() -> None:
    with pytest.raises(UserError, match="initial"):
        STR(0.5).start(toy_network(), Mask.ones(prunable(toy_network())), Plan(1, 1))


def test_sparsity_grows_and_the_last_network_is_the_thresholded_one() -> None:
    model, data = toy_network(), toy_data()
    pruner = STR(0.6, STROptions(initial=-900.0, decay=0.25))
    recipe = Recipe(epochs=60, batch_size=8, lr=0.1, momentum=0.5, weight_decay=0.05, select="best")
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe)
    stored: list[nn.Module] = []
    fit.progress = lambda done, total, loss: stored.append(copy.deepcopy(fit.model)) if done == total else None
    fitted = fit.run()

    sparsities = [row["sparsity"] for row in fitted.history]
    assert fitted.epoch == 59, "only the last network has the final sparsity"
    assert sparsities[0] < 0.3 and abs(sparsities[-1] - 0.6) < 0.2, "a start that comes to about that"
    assert len({round(float(p.detach()), 6) for p in pruner.parameters()}) == 3, "each layer has learned its own"
    raw = {name: stored[0].get_parameter(name) for name in fitted.mask}
    assert Mask.from_zeros(raw).sparsity == 0, "stored weights stay dense while it trains"
    images = data.tensors[0]
    with torch.no_grad():
        forward = pruner.forward_weights(raw, fitted.mask)
        wanted = torch.func.functional_call(stored[0].eval(), forward, (images,))
        assert torch.equal(model.eval()(images), wanted), "a plain network that answers as the thresholded one did"
    assert fitted.mask == Mask.from_zeros({n: model.get_parameter(n) for n in fitted.mask})
