"""SparseGPT against a plain loop over the columns that inverts the rest of H again for each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.prune import sparsegpt
from budwood.prune.allocation import spread
from budwood.prune.layerwise import Layer
from budwood.prune.sparsegpt import SparseGPT, sweep
from budwood.prune.structure import parse
from budwood.testing.pruners import toy_data, toy_network
from budwood.train.data import batches_from


def random_layer(rows: int, columns: int, seed: int = 0, density: float = 1.0, groups: int = 1) -> Layer:
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(groups, 300, max(2, columns // 3), generator=random, dtype=torch.float64)
    x = few @ torch.randn(groups, few.shape[2], columns, generator=random, dtype=torch.float64)
    x = x + torch.randn(x.shape, generator=random, dtype=torch.float64)
    weight = torch.randn(groups, rows, columns, generator=random, dtype=torch.float64)
    kept = torch.rand(weight.shape, generator=random) < density
    return Layer("layer", weight * kept, kept, 2 * x.mT @ x, torch.zeros(groups, columns, dtype=torch.bool))


def slowly(weight: Tensor, hessian: Tensor, kept: Tensor, pattern: str, span: int, counts: list[int]) -> Tensor:
    """The swept weights (R, D). counts: how many weights each span of columns keeps."""
    structure = parse(pattern)
    size = structure.size if structure.kind == "block" else 1
    w, stays = weight.clone(), kept.clone()
    for i in range(w.shape[1]):
        rest = torch.linalg.inv(hessian[i:, i:])
        if structure.kind != "n:m" and i % span == 0:
            scores = {}
            for row in range(len(w)):
                for at in range(i, min(i + span, w.shape[1]), size):
                    own = torch.linalg.inv(hessian[at:, at:])[:size, :size]
                    block = (w * kept)[row, at : at + size]
                    if bool(kept[row, at : at + size].any()):
                        scores[row, at] = float(block @ torch.linalg.inv(own) @ block)
            left = counts[i // span]
            for row, at in sorted(scores, key=lambda key: -scores[key]):
                left -= int(kept[row, at : at + size].sum())
                if left < 0:
                    stays[row, at : at + size] = False
        if structure.kind == "n:m" and i % structure.size == 0:
            for row in range(len(w)):
                score = {
                    at: float(w[row, at] ** 2 / torch.linalg.inv(hessian[at:, at:])[0, 0])
                    for at in range(i, i + structure.size)
                    if bool(kept[row, at])
                }
                for at in sorted(score, key=lambda at: -score[at])[structure.most :]:
                    stays[row, at] = False
        for row in range(len(w)):
            if not bool(stays[row, i]):
                w[row, i:] -= w[row, i] / rest[0, 0] * rest[0]
                w[row, i] = 0
    return w


@pytest.mark.parametrize("density", [1.0, 0.7])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4", "1x2", "1x4"])
def test_a_sweep_is_that_of_the_plain_loop(pattern: str, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of 8 columns, the last shorter; of 4 rows of 20 weights a half stays."""
    monkeypatch.setattr(sparsegpt, "SPAN", 8)
    layer = random_layer(4, 20, density=density)
    present = [int(layer.kept[..., a : a + 8].sum()) for a in (0, 8, 16)]
    count = round(0.5 * sum(present))
    weight, kept, _ = sweep(layer, parse(pattern), count)
    counts = spread(count, present)
    if pattern != "unstructured" and density == 1.0:
        assert [value % 4 for value in counts] == [0, 0, 0]
    if pattern in ("1x2", "1x4") and density < 1:
        counts = [int(kept[..., a : a + 8].sum()) for a in (0, 8, 16)]
        assert 0 <= count - sum(counts) < parse(pattern).size
    slow = slowly(layer.weight[0], layer.hessian[0], layer.kept[0], pattern, 8, counts)
    assert torch.allclose(weight[0], slow, atol=1e-8)
    assert torch.equal(kept[0], slow != 0)


def test_groups_have_an_h_each_and_share_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsegpt, "SPAN", 4)
    layer = random_layer(3, 8, groups=2)
    weight, kept, _ = sweep(layer, parse("unstructured"), 24)
    assert [int(kept[..., :4].sum()), int(kept[..., 4:].sum())] == [12, 12]
    for g in range(2):
        alone = Layer("one", layer.weight[g : g + 1], kept[g : g + 1], layer.hessian[g : g + 1], layer.dead[g : g + 1])
        assert torch.allclose(sweep(alone, parse("unstructured"), int(kept[g].sum()))[0][0], weight[g])


def test_one_sweep_by_hand() -> None:
    """H = ((2, 1), (1, 2)), H^-1 = ((2, -1), (-1, 2)) / 3. The scores of w = (1, 3) are 1 / (2/3) = 1.5 and, given the
    first column, 9 / (1/2) = 18. The first goes, and the second becomes 3 + 1 * (1/3) / (2/3) = 3.5."""
    hessian = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]).double()
    weight = torch.tensor([[[1.0, 3.0]]]).double()
    layer = Layer(
        "hand", weight, torch.ones_like(weight, dtype=torch.bool), hessian, torch.zeros(1, 2, dtype=torch.bool)
    )
    found, kept, scores = sweep(layer, parse("unstructured"), 1)
    assert kept.tolist() == [[[False, True]]]
    assert found.flatten().tolist() == pytest.approx([0.0, 3.5])
    assert scores.flatten().tolist() == pytest.approx([1.5, 18.0])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), rows=st.integers(1, 5), blocks=st.integers(1, 12), share=st.floats(0, 1),
    pattern=st.sampled_from(["unstructured", "1x2", "1x3"]), density=st.sampled_from([1.0, 0.6]),
)  # fmt: skip
def test_counts_are_exact_to_a_block(
    seed: int, rows: int, blocks: int, share: float, pattern: str, density: float
) -> None:
    structure = parse(pattern)
    layer = random_layer(rows, blocks * structure.size, seed, density)
    count = round(share * int(layer.kept.sum()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsegpt, "SPAN", 7)
        weight, kept, _ = sweep(layer, structure, count)
    assert 0 <= count - int(kept.sum()) < structure.size
    assert not bool((kept & ~layer.kept).any()) and torch.equal(weight != 0, kept)


def test_of_equal_weights_the_first_stay() -> None:
    weight = torch.ones(1, 2, 4).double()
    layer = Layer("equal", weight, weight > 0, torch.eye(4).double()[None], torch.zeros(1, 4, dtype=torch.bool))
    assert sweep(layer, parse("unstructured"), 5)[1].int().tolist() == [[[1, 1, 1, 1], [1, 0, 0, 0]]]
    assert sweep(layer, parse("2:4"), 0)[1].int().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0]]]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 100), min_size=1, max_size=20), share=st.floats(0, 1))
def test_a_count_is_spread_whole_and_in_proportion(sizes: list[int], share: float) -> None:
    total = round(share * sum(sizes))
    parts = spread(total, sizes)
    assert sum(parts) == total and all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))
    assert all(abs(part - total * size / max(1, sum(sizes))) < 1 for part, size in zip(parts, sizes, strict=True))


def test_every_span_of_a_network_loses_its_share() -> None:
    """Uniform over layers, in 8 x 8 x 3 x 3 weights; the kept weights move, and batch norm stays as it was."""
    model, before = toy_network(), toy_network()
    mask = Mask.ones({"3.weight": model[3].weight})
    plan = Plan(0, 0, batches=batches_from(toy_data(), 0, 0, torch.device("cpu")))
    found = SparseGPT(0.75, SparseGPT.Options(images=32, keep_dense=())).start(model, mask, plan)
    assert found.kept == 144
    assert bool((model[3].weight != before[3].weight)[found["3.weight"]].any())
    rest = {name: value for name, value in model.state_dict().items() if name != "3.weight"}
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in rest.items())


def test_a_linear_layer_on_maps() -> None:
    """Inputs (N, H, W, C), as ConvNeXt's: the columns are the last axis."""
    x = torch.randn(4, 3, 3, 8, generator=torch.Generator().manual_seed(0))

    def batches(size: int, salt: int):  # type: ignore[no-untyped-def]
        while True:
            yield x, torch.zeros(4)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    outputs, pruned = model[0](x).detach(), SparseGPT(0.5, SparseGPT.Options(images=4, keep_dense=()))
    found = pruned.start(model, Mask.ones({"0.weight": model[0].weight}), Plan(0, 0, batches=batches))
    error = float((model[0](x) - outputs).square().sum().detach())
    with torch.no_grad():
        model[0].weight.copy_(nn.Sequential(nn.Linear(8, 6))[0].weight)
    assert found.kept == 24 and error < float(outputs.square().sum())
