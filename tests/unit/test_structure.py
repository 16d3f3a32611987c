"""Patterns: groups along the input channels, N:M and blocks against slow loops, exactness, what cannot be."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import build
from budwood.models.profile import layers
from budwood.prune.allocation import mask_by_score, str_budget
from budwood.prune.magnitude import Magnitude
from budwood.prune.scored import ScoreOptions
from budwood.prune.structure import groups, parse, protected, ungroup

SHAPES = [(4, 8, 3, 3), (3, 8), (5, 16, 1, 1)]


def scores_of(shapes: list[tuple[int, ...]], seed: int, few_values: bool = False) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    found = {f"{k}.weight": torch.rand(shape, generator=random) for k, shape in enumerate(shapes)}
    return {n: (3 * s).floor() for n, s in found.items()} if few_values else found


def test_groups_lie_along_the_input_channels() -> None:
    """Weight (1, 4, 1, 2) with its number as value: the two taps of a kernel are not neighbours, the channels are."""
    weight = torch.arange(8.0).reshape(1, 4, 1, 2)
    assert groups(weight, 2).tolist() == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert torch.equal(ungroup(groups(weight, 4), weight.shape), weight)


@pytest.mark.parametrize("pattern", ["0:4", "4:4", "5:4", "1x1", "1x0", "2x2", "2:4 ", "", "N:M", "-1:4"])
def test_no_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"between 1 and|write unstructured"):
        parse(pattern)


def test_two_of_four_by_hand() -> None:
    """Of 5, 1, 2, 4 the 5 and the 4 stay; of 3, 3, 3, 0 the first two; of 0, -1, -2, -3 the first two."""
    score = torch.tensor([[5.0, 1, 2, 4, 3, 3, 3, 0, 0, -1, -2, -3]])
    wanted = [[True, False, False, True, True, True, False, False, True, True, False, False]]
    assert protected(score, 2, 4).tolist() == wanted
    found = mask_by_score({"a": score}, Mask.ones({"a": score}), 0.5, "global", "2:4")
    assert found["a"].tolist() == wanted


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["2:4", "4:8", "1:4", "1:2"]), st.floats(0, 1), st.integers(0, 99), st.booleans(),
    st.sampled_from(["global", "uniform"]),
)  # fmt: skip
def test_on_the_way_to_n_of_m(pattern: str, way: float, seed: int, ties: bool, allocation: str) -> None:
    """At every sparsity up to 1 - N/M: exact to one weight, no group with fewer than N left, nested when raised."""
    structure = parse(pattern)
    scores = scores_of(SHAPES, seed, ties)
    final = 1 - structure.most / structure.size
    part = mask_by_score(scores, Mask.ones(scores), way * final, allocation, pattern)  # type: ignore[arg-type]
    assert part.total - part.kept == round(way * final * part.total)
    for kept in part.values():
        assert int(groups(kept, structure.size).sum(1).min()) >= structure.most
    whole = mask_by_score(scores, part, final, allocation, pattern)  # type: ignore[arg-type]
    assert not whole.revived_since(part)
    for name, kept in whole.items():
        rows, values = groups(kept, structure.size), groups(scores[name], structure.size)
        assert (rows.sum(1) == structure.most).all()
        for row, value in zip(rows.numpy(), values.numpy(), strict=True):
            best = np.argsort(-value, kind="stable")[: structure.most]
            assert set(np.flatnonzero(row)) == set(best)


def test_a_sparse_network_gets_sparser_than_n_of_m() -> None:
    """Groups that have one weight left keep one, although two would be allowed; no other group gets three for it."""
    kept = torch.ones(2, 8, dtype=torch.bool)
    kept[0, :3] = False
    score = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
    found = mask_by_score({"a": score}, Mask({"a": kept}), 0.5, "global", "2:4")
    assert groups(found["a"], 4).sum(1).tolist() == [1, 2, 2, 2]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([2, 4]), st.floats(0, 0.99), st.integers(0, 99), st.booleans())
def test_blocks_as_a_sorted_list_says(size: int, sparsity: float, seed: int, ties: bool) -> None:
    scores = scores_of(SHAPES, seed, ties)
    found = mask_by_score(scores, Mask.ones(scores), sparsity, "global", f"1x{size}")
    total = found.total
    assert 0 <= total - round(sparsity * total) - found.kept < size
    every = [(float(row.sum()), n, k) for n, s in scores.items() for k, row in enumerate(groups(s, size))]
    best = sorted(range(len(every)), key=lambda i: -every[i][0])[: found.kept // size]  # sorted is stable
    wanted = {every[i][1:] for i in best}
    for name, kept in found.items():
        for k, row in enumerate(groups(kept, size)):
            assert row.tolist() == [((name, k) in wanted)] * size


def test_blocks_miss_the_sparsity_by_less_than_one_in_all_layers_together() -> None:
    """Twenty layers of 12 weights in blocks of four: each alone would keep 4 of the 6 that are its share."""
    scores = scores_of([(1, 12)] * 20, 0)
    found = mask_by_score(scores, Mask.ones(scores), 0.5, "uniform", "1x4")
    assert 0 <= 120 - found.kept < 4


def test_blocks_of_a_sparse_network_hold_what_is_left_of_them() -> None:
    """Blocks (9), (1, 1), (5, 5): pruned to 3 of 6 weights, the first (with one weight left) and the last stay."""
    score = torch.tensor([[9.0, 7, 1, 1, 5, 5]])
    given_mask = Mask({"a": torch.tensor([[True, False, True, True, True, True]])})
    found = mask_by_score({"a": score}, given_mask, 0.5, "global", "1x2")
    assert found["a"].tolist() == [[True, False, False, False, True, True]]


def test_what_cannot_be() -> None:
    scores = scores_of(SHAPES, 0)
    dense = Mask.ones(scores)
    with pytest.raises(UserError, match=r"2:4 leaves no more than 0.5 zeros, 0.9 cannot be reached"):
        mask_by_score(scores, dense, 0.9, "global", "2:4")
    with pytest.raises(
        UserError, match=r"1x3 does not divide the 8 input channels of 0, which fall into groups of 2, 4, 8; choose"
    ):
        mask_by_score(scores, dense, 0.5, "global", "1x3")
    with pytest.raises(UserError, match="not finite"):
        mask_by_score(scores | {"1.weight": torch.full((3, 8), torch.nan)}, dense, 0.5, "global", "1x4")


def test_layers_that_a_pattern_does_not_divide_can_be_left_out() -> None:
    """EfficientNet-B0's squeeze-excite has layers of 6 and 10 inputs: refused, until they are left out by name."""
    network = build("timm:efficientnet_b0", 10)
    with pytest.raises(UserError, match=r"2:4 does not divide .* --option keep_dense=first,depthwise,undivided"):
        Magnitude(0.5, ScoreOptions(pattern="2:4")).check(network.module, network.mask, 0)
    options = ScoreOptions(pattern="2:4", keep_dense=("first", "depthwise", "undivided"))
    found = Magnitude(0.5, options).start(network.module, network.mask, Plan(0, 0))
    inputs = {name: kept.shape[1] for name, kept in found.items() if int(kept.sum()) == kept.numel()}
    assert set(inputs.values()) == {1, 3, 6, 10} and sum(width in (6, 10) for width in inputs.values()) == 4
    assert all(2 * int(kept.sum()) == kept.numel() for name, kept in found.items() if name not in inputs)


# -- STR's budgets ----------------------------------------------------------------------------------------------


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    from budwood.models.network import prunable

    with torch.device("meta"):
        model = torchvision.models.resnet50()
    return {name: tuple(weight.shape) for name, weight in prunable(model, head=True).items()}


def test_str_at_a_published_total_is_the_published_table() -> None:
    """90.23 %: rows of the authors' file, read off by eye."""
    shapes = resnet50_shapes()
    density = str_budget(shapes, 0.9023)
    published = {
        "conv1": 59.8, "layer1.0.conv1": 83.28, "layer2.0.conv2": 93.91, "layer3.5.conv3": 93.14,
        "layer4.2.conv3": 80.29, "layer4.0.downsample.0": 96.79, "fc": 64.5,
    }  # fmt: skip
    for name, percent in published.items():
        assert 100 * (1 - density[f"{name}.weight"]) == pytest.approx(percent, abs=0.02)
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    assert sum(density[n] * sizes[n] for n in shapes) / sum(sizes.values()) == pytest.approx(1 - 0.9023, abs=1e-9)


@pytest.mark.parametrize(("sparsity", "macs"), [(0.8127, 705e6), (0.9023, 343e6), (0.9515, 162e6), (0.9805, 73e6)])
def test_str_costs_the_operations_that_it_published(sparsity: float, macs: float) -> None:
    """Table 1 of the paper: with every row of the budget."""
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    density = str_budget(resnet50_shapes(), sparsity)
    found = sum(layer.flops_dense / 2 * density[f"{layer.name}.weight"] for layer in layers(model, Mask({}), 224))
    assert found == pytest.approx(macs, rel=0.005)


def test_str_between_two_totals_lies_between_them() -> None:
    shapes = resnet50_shapes()
    low, middle, high = (str_budget(shapes, s) for s in (0.8127, 0.85, 0.877))
    for name in shapes:
        assert min(low[name], high[name]) - 0.01 <= middle[name] <= max(low[name], high[name]) + 0.01
    everywhere = itertools.pairwise([str_budget(shapes, s)["layer4.1.conv2.weight"] for s in (0.8, 0.85, 0.9, 0.95)])
    assert all(a > b for a, b in everywhere)


def test_str_beyond_its_totals_and_for_other_networks() -> None:
    with pytest.raises(UserError, match=r"up to 0.991, not 0.995"):
        str_budget(resnet50_shapes(), 0.995)
    half, least = str_budget(resnet50_shapes(), 0.7955 / 2), str_budget(resnet50_shapes(), 0.7955)
    assert all(1 - half[name] == pytest.approx((1 - least[name]) / 2, abs=1e-3) for name in half)
    with pytest.raises(UserError, match="ResNet-50 alone, which has no layer features"):
        str_budget({"features.weight": (3, 3)}, 0.9)
