"""The cubic schedule against its formula worked by hand, and GMP step by step."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.gmp import GMP, POST_TRAINING
from budwood.prune.schedule import Cubic
from budwood.prune.scored import GradualOptions

BATCH = (torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.long))


def test_by_hand() -> None:
    """From 5 to 90 % in 8 updates at epochs 1, 6, ..., 36 of 100: 90 - 85 (1 - i/7)^3 percent."""
    found = Cubic(start=0.01, end=0.36, updates=8, initial=0.05).at(0.9, 100)
    by_hand = {1: 5.0, 6: 36.47, 11: 59.02, 16: 74.14, 21: 83.31, 26: 88.02, 31: 89.75, 36: 90.0}
    assert {epoch: round(100 * sparsity, 2) for epoch, sparsity in found.items()} == by_hand


def test_as_the_post_training_recipe_of_woodfisher_measured_it() -> None:
    """Start 1, end 40, from 5 to 90 %, pruned every fifth epoch: what its authors' plots show to 0.3 percentage points
    (the formula gives 33.7 at epoch 6 and 89.9 at epoch 36)."""
    curve = Cubic(start=0.01, end=0.40, updates=40, initial=0.05).at(0.9, 100)
    assert 100 * curve[6] == pytest.approx(33.7, abs=0.05) and 100 * curve[36] == pytest.approx(89.9, abs=0.05)
    measured = {1: 5.2, 6: 33.8, 11: 55.1, 16: 70.2, 21: 80.2, 26: 86.1, 31: 89.0, 36: 90.0}
    found = Cubic(**POST_TRAINING).at(0.9, 100)  # type: ignore[arg-type]
    assert set(found) == set(measured) and found[36] == 0.9
    for epoch, percent in measured.items():
        assert 100 * found[epoch] == pytest.approx(percent, abs=0.3)


cubics = st.builds(
    lambda a, b, updates, initial, every: Cubic(
        start=min(a, b), end=max(a, b), updates=updates, initial=initial, every=every
    ),
    st.floats(0, 1), st.floats(0, 1), st.integers(1, 40), st.floats(0, 0.99), st.integers(1, 9),
)  # fmt: skip


@given(cubics, st.floats(0, 0.99), st.integers(1, 300))
def test_never_falls_ends_at_the_target_and_inside_the_training(cubic: Cubic, final: float, steps: int) -> None:
    found = cubic.at(final, steps)
    moments = sorted(found)
    values = [found[moment] for moment in moments]
    assert moments[0] >= 0 and moments[-1] < steps and len(moments) <= cubic.updates
    assert values == sorted(values) and values[-1] == final and all(0 <= value <= final for value in values)


@pytest.mark.parametrize(
    "wrong", [{"start": 0.5, "end": 0.4}, {"updates": 0}, {"end": 1.1}, {"initial": 1.0}, {"x": 1}]
)
def test_impossible_schedules(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Cubic(**wrong)  # type: ignore[arg-type]


# -- GMP ------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def trace(pruner: GMP, model: nn.Module, mask: Mask, steps: int) -> list[Mask]:
    """The masks in force after each step of a training in which the weights drift."""
    mask = pruner.start(model, mask, Plan(1, steps))
    masks = [mask]
    for step in range(steps):
        mask = pruner.update(model, mask, step, BATCH)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
        mask.apply_(model)
        masks.append(mask)
    return masks


def test_gmp_step_by_step() -> None:
    """4 updates over steps 2, 4, 6, 8 of 10 from 10 to 80 %: 80 - 70 (1 - i/3)^3 percent of the 248 weights."""
    model = network()
    schedule = Cubic(start=0.2, end=0.8, updates=4, initial=0.1)
    masks = trace(GMP(0.8, GradualOptions(schedule=schedule)), model, Mask.ones(prunable(model, head=True)), 10)
    removed = [mask.total - mask.kept for mask in masks]
    by_hand = [round(248 * s) for s in (0.1, 0.8 - 0.7 * 8 / 27, 0.8 - 0.7 / 27, 0.8)]
    assert by_hand == [25, 147, 192, 198]
    assert removed == [0, 0, 0, 25, 25, 147, 147, 192, 192, 198, 198]
    assert not any(later.revived_since(earlier) for earlier, later in itertools.pairwise(masks))


def test_gmp_removes_the_smallest_of_the_weights_of_now() -> None:
    model = network()
    weights = prunable(model, head=True)
    pruner = GMP(0.5, GradualOptions(schedule=Cubic(start=0.5, end=0.5, updates=1)))
    mask = pruner.start(model, Mask.ones(weights), Plan(1, 2))
    with torch.no_grad():
        for weight in weights.values():  # the order turns round: small ones become large
            weight.copy_(1 / weight)
    found = pruner.update(model, pruner.update(model, mask, 0, BATCH), 1, BATCH)
    magnitudes = torch.cat([w.detach().abs().flatten() for w in weights.values()])
    kept = torch.cat([found[name].flatten() for name in weights])
    assert magnitudes[kept].min() >= magnitudes[~kept].max() and int(kept.sum()) == 124


def test_gmp_is_settled_at_its_last_update_only() -> None:
    model = network()
    pruner = GMP(0.8, GradualOptions(schedule=Cubic(start=0.2, end=0.8, updates=4)))
    pruner.start(model, Mask.ones(prunable(model, head=True)), Plan(1, 10))
    assert [pruner.settled(step) for step in range(10)] == [False] * 8 + [True] * 2


def test_gmp_without_training_prunes_at_once() -> None:
    model = network()
    mask = GMP(0.8).start(model, Mask.ones(prunable(model, head=True)), Plan(0, 0))
    assert mask.total - mask.kept == 198


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.floats(0.01, 0.99), cubics)
def test_gmp_ends_exactly_however_short_the_training(steps: int, sparsity: float, schedule: Cubic) -> None:
    model = network()
    masks = trace(GMP(sparsity, GradualOptions(schedule=schedule)), model, Mask.ones(prunable(model, head=True)), steps)
    assert masks[-1].total - masks[-1].kept == round(248 * sparsity)
    assert all(later.kept <= earlier.kept for earlier, later in itertools.pairwise(masks))


def test_gmp_goes_on_from_a_sparse_network() -> None:
    model = network()
    given_mask = Mask({n: torch.rand(w.shape) < 0.6 for n, w in prunable(model, head=True).items()})
    given_mask.apply_(model)
    masks = trace(GMP(0.8, GradualOptions(schedule=Cubic(updates=5))), model, given_mask, 10)
    assert masks[0] == given_mask and masks[-1].total - masks[-1].kept == 198
    assert all(not mask.revived_since(given_mask) for mask in masks)
    with pytest.raises(UserError, match="already"):
        GMP(0.1).start(model, given_mask, Plan(1, 10))
