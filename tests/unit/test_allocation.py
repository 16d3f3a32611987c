"""Allocations: ERK as its authors have it, masks exact to one weight, ties by position, conventions."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.models.profile import layers
from budwood.prune.allocation import CONVENTIONS, Allocation, erk, kept_dense, mask_by_score, uniform
from budwood.prune.gmp import GMP
from budwood.prune.magnitude import Magnitude
from budwood.prune.scored import ScoreOptions

GOLDEN = Path(__file__).parents[1] / "golden" / "erk_resnet50.csv"
ALLOCATIONS: list[Allocation] = ["global", "uniform", "erk"]
RESNET50_WEIGHTS = 25_502_912


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in prunable(model, head=True).items()}


def golden() -> Iterator[dict[str, str]]:
    with GOLDEN.open() as file:
        yield from csv.DictReader(line for line in file if not line.startswith("#"))


# -- ERK ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sparsity", "column"), [(0.8, "at_80"), (0.9, "at_90"), (0.95, "at_95")])
def test_erk_of_resnet50_layer_by_layer(sparsity: float, column: str) -> None:
    densities = erk(shapes_of(on_meta("resnet50")), sparsity)
    rows = list(golden())
    assert [f"{row['layer']}.weight" for row in rows] == list(densities) and len(rows) == 54
    for row in rows:
        assert 100 * (1 - densities[f"{row['layer']}.weight"]) == pytest.approx(float(row[column]), abs=0.051), row


def test_erk_of_resnet50_as_published_at_90() -> None:
    densities = erk(shapes_of(on_meta("resnet50")), 0.9)
    for row in golden():
        assert 100 * (1 - densities[f"{row['layer']}.weight"]) == pytest.approx(float(row["published_90"]), abs=0.51), (
            row
        )


@pytest.mark.parametrize(("sparsity", "share"), [(0.8, 0.42), (0.9, 0.24), (0.95, 0.12)])
def test_erk_of_resnet50_costs_the_flops_of_the_paper(sparsity: float, share: float) -> None:
    model = on_meta("resnet50")
    densities = erk(shapes_of(model), sparsity)
    found = layers(model, Mask({}), 224)
    dense = sum(layer.flops_dense for layer in found)
    sparse = sum(layer.flops_dense * densities[f"{layer.name}.weight"] for layer in found)
    assert sparse / dense == pytest.approx(share, abs=0.015)


def test_erk_by_hand() -> None:
    """Weights a (2, 2) and b (10, 40): raw densities 4/4 and 50/400. At 55 % the budget is 0.45 * 404 = 181.8, the
    factor 181.8 / 54 > 1, so a is dense, and b gets the remaining 177.8 of 400."""
    assert erk({"a": (2, 2), "b": (10, 40)}, 0.55) == pytest.approx({"a": 1.0, "b": 177.8 / 400})
    assert erk({"a": (2, 2), "b": (10, 40)}, 0.9) == pytest.approx({"a": 40.4 / 54, "b": 40.4 / 54 / 8})


sizes = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5)
sparsities = st.floats(0, 0.999)


@settings(deadline=None)
@given(sizes, sparsities)
def test_erk_spends_its_budget_and_never_more_than_a_layer_has(shapes: list[tuple[int, ...]], sparsity: float) -> None:
    named = {str(i): shape for i, shape in enumerate(shapes)}
    counts = {name: torch.Size(shape).numel() for name, shape in named.items()}
    densities = erk(named, sparsity)
    assert all(0 < density <= 1 for density in densities.values())
    kept = sum(densities[name] * counts[name] for name in named)
    assert kept == pytest.approx((1 - sparsity) * sum(counts.values()), rel=1e-6)
    thin = {n: sum(named[n]) / counts[n] / densities[n] for n in named if densities[n] < 1}
    assert not thin or max(thin.values()) == pytest.approx(min(thin.values())), "one factor for all that are not dense"


# -- masks ----------------------------------------------------------------------------------------------------


def random_case(shapes: list[tuple[int, ...]], seed: int, ties: bool) -> tuple[dict[str, Tensor], Mask]:
    random = torch.Generator().manual_seed(seed)
    scores = {f"l{i}": torch.rand(shape, generator=random) for i, shape in enumerate(shapes)}
    if ties:
        scores = {name: (4 * score).floor() for name, score in scores.items()}
    return scores, Mask({n: torch.rand(s.shape, generator=random) < 0.8 for n, s in scores.items()})


def slow_global(scores: dict[str, Tensor], mask: Mask, budget: int) -> set[tuple[str, int]]:
    """The `budget` best of a plain list; Python's sort is stable, so the first of equals stay first."""
    listed = [
        (name, i, value)
        for name, score in scores.items()
        for i, (value, kept) in enumerate(zip(score.flatten().tolist(), mask[name].flatten().tolist(), strict=True))
        if kept
    ]
    return {(name, i) for name, i, _ in sorted(listed, key=lambda entry: -entry[2])[:budget]}


@settings(deadline=None)
@given(shapes=sizes, sparsity=sparsities, seed=st.integers(0, 999), ties=st.booleans())
def test_global_is_what_a_sorted_list_says(
    shapes: list[tuple[int, ...]], sparsity: float, seed: int, ties: bool
) -> None:
    scores, mask = random_case(shapes, seed, ties)
    budget = mask.total - round(sparsity * mask.total)
    if budget > mask.kept:
        with pytest.raises(UserError, match="already"):
            mask_by_score(scores, mask, sparsity, "global")
        return
    found = mask_by_score(scores, mask, sparsity, "global")
    kept = {(name, i) for name in found for i in found[name].flatten().nonzero().flatten().tolist()}
    assert kept == slow_global(scores, mask, budget)


@settings(deadline=None)
@given(
    shapes=sizes,
    sparsity=sparsities,
    seed=st.integers(0, 999),
    ties=st.booleans(),
    allocation=st.sampled_from(ALLOCATIONS),
)
def test_exact_to_one_weight_and_nothing_comes_back(
    shapes: list[tuple[int, ...]], sparsity: float, seed: int, ties: bool, allocation: Allocation
) -> None:
    scores, mask = random_case(shapes, seed, ties)
    budget = mask.total - round(sparsity * mask.total)
    if budget > mask.kept:
        with pytest.raises(UserError, match="already"):
            mask_by_score(scores, mask, sparsity, allocation)
        return
    found = mask_by_score(scores, mask, sparsity, allocation)
    assert found.kept == budget and found.shapes() == mask.shapes() and found.revived_since(mask) == {}
    for name, score in scores.items():  # within a layer the best are kept, and of equals the first
        order = sorted(mask[name].flatten().nonzero().flatten().tolist(), key=lambda i: (-float(score.flatten()[i]), i))
        assert sorted(order[: found.counts()[name]]) == found[name].flatten().nonzero().flatten().tolist()


@settings(deadline=None)
@given(shapes=sizes, sparsity=sparsities, seed=st.integers(0, 99))
def test_from_dense_every_layer_gets_its_share_to_one_weight(
    shapes: list[tuple[int, ...]], sparsity: float, seed: int
) -> None:
    scores, _ = random_case(shapes, seed, ties=False)
    named = {name: tuple(score.shape) for name, score in scores.items()}
    for allocation, densities in (("uniform", uniform(named, sparsity)), ("erk", erk(named, sparsity))):
        counts = mask_by_score(scores, Mask.ones(scores), sparsity, allocation).counts()  # type: ignore[arg-type]
        for name, score in scores.items():
            assert abs(counts[name] - densities[name] * score.numel()) < 1 + 1e-6


def test_what_a_sparse_layer_cannot_take_goes_to_the_others() -> None:
    scores = {"a": torch.rand(10), "b": torch.rand(10)}
    mask = Mask({"a": torch.arange(10) < 2, "b": torch.ones(10, dtype=torch.bool)})
    found = mask_by_score(scores, mask, 0.5, "uniform")
    assert found.counts() == {"a": 2, "b": 8}


def test_layers_without_scores_stay_as_they_are() -> None:
    mask = Mask({"a": torch.ones(10, dtype=torch.bool), "b": torch.arange(10) < 3})
    found = mask_by_score({"a": torch.rand(10)}, mask, 0.5, "global")
    assert found.counts() == {"a": 5, "b": 3} and torch.equal(found["b"], mask["b"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite(bad: float) -> None:
    scores = {"a": torch.tensor([1.0, bad, 2.0])}
    with pytest.raises(UserError, match="scores of a are not finite"):
        mask_by_score(scores, Mask.ones(scores), 0.5, "global")


def test_half_a_weight_more_than_there_is_asks_for_a_higher_sparsity() -> None:
    weights = {"a": torch.rand(10)}
    mask = Mask({"a": torch.arange(10) < 3})
    assert mask_by_score(weights, mask, 0.7, "global") == mask
    with pytest.raises(UserError, match="already has 70"):
        mask_by_score(weights, mask, 0.6, "global")


@pytest.mark.slow
def test_resnet50_as_a_whole() -> None:
    """25.5 million scores: float32 can no longer count them, the mask must."""
    random = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(w.shape, generator=random) for n, w in prunable(on_meta("resnet50"), head=True).items()}
    ones = Mask.ones(scores)
    assert ones.total == RESNET50_WEIGHTS
    for allocation in ALLOCATIONS:
        assert mask_by_score(scores, ones, 0.9, allocation).kept == RESNET50_WEIGHTS - 22_952_621


# -- conventions ----------------------------------------------------------------------------------------------


def test_kept_dense_of_mobilenet_v2() -> None:
    model = on_meta("mobilenet_v2")
    assert kept_dense(model, ("first",)) == {"features.0.0.weight"}
    assert kept_dense(model, ("classifier",)) == {"classifier.1.weight"}
    depthwise = kept_dense(model, ("depthwise",))
    weights = dict(model.named_parameters())
    assert len(depthwise) == 17 and all(weights[name].shape[1:] == (1, 3, 3) for name in depthwise)
    assert kept_dense(model, CONVENTIONS["uniform"]) == depthwise | {"features.0.0.weight", "classifier.1.weight"}
    assert kept_dense(model, ()) == set()


def test_a_first_convolution_of_one_channel_and_grouped_ones_are_not_depthwise() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 2, 1)
    )
    assert kept_dense(model, ("depthwise",)) == {"2.weight"}


@pytest.mark.parametrize("method", [Magnitude, GMP])
def test_conventions_by_allocation(method: type[Magnitude]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(16, 5)
    )
    mask = Mask.ones(prunable(model, head=True))

    def counts(**options: object) -> dict[str, int]:
        pruner = method(0.5, method.Options(**options))
        return pruner.start(model, mask, Plan(0, 0)).counts()

    assert counts(allocation="uniform") == {"0.weight": 216, "1.weight": 72, "2.weight": 64, "4.weight": 80}
    # Groups of four: depthwise layers have none and stay dense, as the first does.
    if method is Magnitude:
        assert counts(pattern="2:4") == {"0.weight": 216, "1.weight": 72, "2.weight": 64, "4.weight": 40}
    everywhere = {"0.weight": 108, "1.weight": 36, "2.weight": 64, "4.weight": 40}
    assert counts(allocation="uniform", keep_dense=()) == everywhere
    assert counts(keep_dense=("first",), allocation="uniform")["0.weight"] == 216
    for allocation in ("global", "erk"):
        assert sum(counts(allocation=allocation).values()) == 496 - 248


def test_nothing_left_to_prune_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    for allocation in ALLOCATIONS:
        pruner = Magnitude(0.5, ScoreOptions(allocation=allocation, keep_dense=("first", "classifier")))
        with pytest.raises(UserError, match="nothing to prune"):
            pruner.start(model, Mask.ones(prunable(model, head=True)), Plan(0, 0))
