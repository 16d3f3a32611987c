"""STR (Kusupati et al. 2020): soft thresholds that are learned."""

import copy
import math

import pytest
import torch
from torch import nn

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
    decay_of,
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
    assert pruner.finish(layer, mask)["weight"].tolist() == [[True, False, True]]


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
    with pytest.raises(AssertionError):  # nothing is left of the head, so the last mask is all zeros
        assert fit.run().mask.kept > 0
    assert logits == pytest.approx(decayed(-0.5, recipe, 4), rel=1e-4)
    assert logits[-1] == pytest.approx(-0.5 * math.exp(-decay_of(recipe, 4)), rel=0.01)


def test_decay_of_a_training_against_the_closed_form() -> None:
    """wd * sum(lr) / (1 - momentum): 1000 steps at 0.256, or about half of that under a cosine."""
    flat = PAPER.model_copy(update={"schedule": "constant", "warmup_epochs": 0})
    assert decay_of(flat, 10) == pytest.approx(2.251757813e-5 * 0.256 * 1000 / 0.125, rel=0.01)
    cosine = PAPER.model_copy(update={"warmup_epochs": 0})
    assert decay_of(cosine, 10) == pytest.approx(2.251757813e-5 * 0.256 * 500.5 / 0.125, rel=0.02)
    assert decay_of(flat.model_copy(update={"weight_decay": 0.0}), 10) == 0


def test_decay_of_the_papers_training() -> None:
    """5005 steps in each of 100 epochs; the rate of an epoch is 0.256 (e + 1) / 5 in the first five, then a cosine to
    zero in 95 (RAIVNLab/STR, utils/schedulers.py)."""
    rates = [0.256 * (e + 1) / 5 for e in range(5)]
    rates += [0.5 * (1 + math.cos(math.pi * e / 95)) * 0.256 for e in range(95)]
    assert 2.251757813e-5 * 5005 * sum(rates) / 0.125 == pytest.approx(PAPER_DECAY, rel=1e-3)


def test_the_rule_gives_the_papers_start_at_the_papers_decay() -> None:
    assert start_of(0.9023, PAPER_DECAY, PAPER_CROSSING) == pytest.approx(-3200, rel=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.5, 3.0])
def test_with_more_decay_s_ends_where_the_papers_did(factor: float) -> None:
    decay = factor * PAPER_DECAY
    end = start_of(0.9023, decay, PAPER_CROSSING) * math.exp(-decay)
    assert end == pytest.approx(-3200 * math.exp(-PAPER_DECAY), rel=1e-6)


@pytest.mark.parametrize("factor", [0.01, 0.3, 0.8])
def test_with_less_decay_s_passes_the_threshold_after_the_same_share_of_it(factor: float) -> None:
    share = math.log(3200 / -PAPER_CROSSING) / PAPER_DECAY
    decay = factor * PAPER_DECAY
    assert start_of(0.9023, decay, PAPER_CROSSING) * math.exp(-share * decay) == pytest.approx(PAPER_CROSSING)


def test_half_the_density_takes_twice_the_decay_after_the_crossing() -> None:
    """Counted from where s passes the threshold, in a training with decay enough for both."""
    left = {}
    for density in (0.0977, 0.04885):
        end = start_of(1 - density, 40.0, PAPER_CROSSING) * math.exp(-40.0)
        left[density] = math.log(PAPER_CROSSING / end)
    assert left[0.0977] == pytest.approx(PAPER_DECAY - math.log(3200 / -PAPER_CROSSING), rel=1e-6)
    assert left[0.04885] == pytest.approx(2 * left[0.0977], rel=1e-6)


def test_the_rule_in_a_training_that_is_followed_to_its_end() -> None:
    """A tenth of the epochs, of fewer steps, with as much more weight decay: s takes the course of the authors'."""
    recipe = PAPER.model_copy(update={"epochs": 10, "warmup_epochs": 1, "weight_decay": 6e-4})
    decay = decay_of(recipe, 2000)
    assert decay > PAPER_DECAY
    course = decayed(start_of(0.9023, decay, PAPER_CROSSING), recipe, 2000)
    assert course[-1] == pytest.approx(-3200 * math.exp(-PAPER_DECAY), rel=1e-6) and course == sorted(course)


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95, 0.99])
def test_it_never_starts_beyond_the_threshold_that_prunes_enough(sparsity: float) -> None:
    starts = [start_of(sparsity, decay, -3.0) for decay in (0.0, 0.1, 1.0, 5.0, 12.0, 30.0)]
    assert starts[0] == -3.0 and starts == sorted(starts, reverse=True)
    more = [start_of(wanted, 12.0, -3.0) for wanted in (0.5, 0.8, 0.9, 0.95)]
    assert more == sorted(more), "more sparsity, more decay after the crossing, so a nearer start"


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
    pruner = STR(0.6)
    recipe = Recipe(epochs=60, batch_size=8, lr=0.1, momentum=0.5, weight_decay=0.05, select="best")
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe)
    stored: list[nn.Module] = []
    fit.progress = lambda done, total, loss: stored.append(copy.deepcopy(fit.model)) if done == total else None
    fitted = fit.run()

    sparsities = [row["sparsity"] for row in fitted.history]
    assert fitted.epoch == 59, "only the last network has the final sparsity"
    assert sparsities[0] < 0.3 and abs(sparsities[-1] - 0.6) < 0.2, "it is steered to about what was asked for"
    assert len({round(float(p.detach()), 6) for p in pruner.parameters()}) == 3, "each layer has learned its own"
    raw = {name: stored[0].get_parameter(name) for name in fitted.mask}
    assert Mask.from_zeros(raw).sparsity == 0, "stored weights stay dense while it trains"
    images = data.tensors[0]
    with torch.no_grad():
        forward = pruner.forward_weights(raw, fitted.mask)
        wanted = torch.func.functional_call(stored[0].eval(), forward, (images,))
        assert torch.equal(model.eval()(images), wanted), "a plain network that answers as the thresholded one did"
    assert fitted.mask == Mask.from_zeros({n: model.get_parameter(n) for n in fitted.mask})
