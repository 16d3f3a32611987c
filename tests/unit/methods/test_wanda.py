"""Wanda by hand, row by row."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.magnitude import Magnitude
from budwood.prune.wanda import Wanda, best_of_rows
from budwood.testing.pruners import sparse_mask, toy_data, toy_network
from budwood.train.data import batches_from


def plan_of(images: Tensor) -> Plan:
    def batches(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for part in images.split(size):
                yield part, torch.zeros(len(part))

    return Plan(0, 0, batches=batches)


def linear(weight: list[list[float]]) -> nn.Sequential:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return nn.Sequential(layer, nn.Identity())


def pruned(model: nn.Module, images: Tensor, sparsity: float, **options: Any) -> Mask:
    mask = Mask.ones(prunable(model, head=True))
    known = {"images": len(images), "keep_dense": ()} | options
    return Wanda(sparsity, Wanda.Options(**known)).start(model, mask, plan_of(images))


def test_the_example_of_the_paper() -> None:
    """Figure 1 of the paper: inputs of the norms 1, 2, 8, 3; each row loses its lower half by |w| |x|, which is not the
    half of small weights."""
    weight = [[4.0, 0.0, 1.0, -1.0], [3.0, -2.0, -1.0, -3.0], [-3.0, 1.0, 0.0, 2.0]]
    found = pruned(linear(weight), torch.diag(torch.tensor([1.0, 2.0, 8.0, 3.0])), 0.5)["0.weight"]
    scores = [[4, 0, 8, 3], [3, 4, 8, 9], [3, 2, 0, 6]]
    wanted = [[value in sorted(row)[2:] for value in row] for row in scores]
    assert (
        found.tolist() == wanted == [[True, False, True, False], [False, False, True, True], [True, False, False, True]]
    )


def test_weights_that_overflowed_are_refused() -> None:
    with pytest.raises(UserError, match=r"scores of 0\.weight are not finite"):
        pruned(linear([[1.0, torch.nan], [2.0, 1.0]]), torch.ones(3, 2), 0.5)


def test_norms_are_over_all_images() -> None:
    """|x_1| = sqrt(3^2 + 4^2) = 5, |x_2| = 4.9: of equal weights the first stays, though the second has the largest
    input."""
    assert pruned(linear([[1.0, 1.0]]), torch.tensor([[3.0, 4.9], [4.0, 0.0]]), 0.5)["0.weight"].tolist() == [
        [True, False]
    ]


def test_a_layer_as_one_group() -> None:
    """The scores are 1, 2 and 3, 4: the first row loses both."""
    model = linear([[1.0, 2.0], [3.0, 4.0]])
    assert pruned(model, torch.eye(2), 0.5)["0.weight"].tolist() == [[False, True], [False, True]]
    assert pruned(model, torch.eye(2), 0.5, group="layer")["0.weight"].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("groups", [1, 2])
def test_scores_of_a_convolution(groups: int) -> None:
    """By a plain loop over taps and places, stride 2, padding 1."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups), torch.randn(3, 4, 6, 6)
    pruner = Wanda(0.5, Wanda.Options(images=3, keep_dense=()))
    pruner.plan_ = plan_of(x)
    model = nn.Sequential(layer)
    found = pruner.scores(model, Mask.ones(prunable(model, head=True)), 0.5, 0)["0.weight"]
    padded = nn.functional.pad(x, (1,) * 4).double()
    for o in range(6):
        for i in range(4 // groups):
            channel = i + (o // (6 // groups)) * (4 // groups)
            for a in range(3):
                for b in range(3):
                    seen = padded[:, channel, a : a + 5 : 2, b : b + 5 : 2]
                    wanted = float(layer.weight[o, i, a, b].detach().abs()) * float(seen.square().sum().sqrt())
                    assert float(found[o, i, a, b]) == pytest.approx(wanted, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000), rows=st.integers(1, 6), blocks=st.integers(1, 8), size=st.sampled_from([1, 2, 3]),
    share=st.floats(0, 1), density=st.sampled_from([1.0, 0.5]),
)  # fmt: skip
def test_rows_lose_the_same_share_and_the_count_is_exact(
    seed: int, rows: int, blocks: int, size: int, share: float, density: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, blocks * size, generator=random)
    kept = torch.rand(scores.shape, generator=random) < density
    count = round(share * int(kept.sum()))
    found = best_of_rows(scores, kept, count, size)
    assert 0 <= count - int(found.sum()) < size and not bool((found & ~kept).any())
    for row in range(rows):
        present, stays = int(kept[row].sum()), int(found[row].sum())
        assert abs(stays - present * count / max(1, int(kept.sum()))) < size + 1
        if size == 1 and 0 < stays < present:
            assert scores[row, found[row]].min() >= scores[row, kept[row] & ~found[row]].max()


def test_blocks_go_whole_and_by_their_sum() -> None:
    scores = torch.tensor([[5.0, 0.0, 3.0, 3.0], [1.0, 1.0, 0.0, 1.5]])
    kept = torch.ones(2, 4, dtype=torch.bool)
    assert best_of_rows(scores, kept, 4, 2).int().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_of_equal_weights_the_first_stay() -> None:
    kept = torch.ones(3, 4, dtype=torch.bool)
    assert best_of_rows(torch.ones(3, 4), kept, 7, 1).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]


def test_n_of_m_is_among_neighbours() -> None:
    model = linear([[1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 7.0, 6.0]])
    images = torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    assert pruned(model, images, 0.5, pattern="2:4")["0.weight"].int().tolist() == [[1, 0, 0, 1, 1, 1, 0, 0]]


def test_weights_of_dead_inputs_go_first() -> None:
    assert pruned(linear([[9.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, 1.0]]), 1 / 3)["0.weight"].tolist() == [
        [False, True, True]
    ]


def test_what_was_pruned_stays_pruned() -> None:
    model = toy_network()
    before = sparse_mask(Mask.ones(prunable(model, head=True)))
    before.apply_(model)
    plan = Plan(0, 0, batches=batches_from(toy_data(), 0, 0, torch.device("cpu")))
    found = Wanda(0.7, Wanda.Options(images=32, keep_dense=())).start(model, before, plan)
    assert not found.revived_since(before) and found.total - found.kept == round(0.7 * found.total)
    with pytest.raises(UserError, match="already has"):
        Wanda(0.2, Wanda.Options(images=32, keep_dense=())).start(model, before, plan)


def test_sparsity_zero() -> None:
    assert pruned(linear([[1.0, 2.0]]), torch.eye(2), 0.0).sparsity == 0


def test_outputs_are_nearer_than_those_of_magnitude() -> None:
    """Inputs of very different sizes."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, 5, 5, generator=random) * torch.logspace(-1, 1, 16)[:, None, None]
    errors = []
    for method in (Wanda, Magnitude):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(16, 8, 3))
        outputs = model(x).detach()
        known = {"images": 64} if method is Wanda else {}
        pruner = method(0.6, method.Options(keep_dense=(), **known))
        found = pruner.start(model, Mask.ones(prunable(model, head=True)), plan_of(x))
        found.apply_(model)
        assert found.total - found.kept == round(0.6 * found.total)
        errors.append(float((model(x) - outputs).square().sum().detach()))
    assert errors[0] < 0.5 * errors[1]


def test_global_rows_are_refused() -> None:
    with pytest.raises(ValidationError, match="group=layer"):
        Wanda.Options(allocation="global")
    assert Wanda.Options(allocation="global", group="layer").group == "layer"
