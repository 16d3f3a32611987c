"""oBERT's groups against dense linear algebra: saliency, mask and update."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.obert import OBert, OBertOptions
from budwood.prune.structure import groups, ungroup
from budwood.prune.woodfisher import WoodFisher, WoodFisherOptions

NAMES = ["0.weight", "2.weight"]
COMMON: dict[str, Any] = {"gradients": 30, "batch": 4, "block": 10, "dampening": 0.02}


def network() -> nn.Sequential:
    """128 and 80 weights, in float64; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(8, 4, 2), nn.Flatten(), nn.Linear(16, 5)).double()


def draw(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Other images for every salt."""
    random = torch.Generator().manual_seed(salt)
    while True:
        images = torch.randn(size, 8, 3, 3, dtype=torch.float64, generator=random)
        yield images, torch.randint(0, 5, (size,), generator=random)


def in_groups(name: str, count: int, size: int, salt: int, model: nn.Module) -> np.ndarray[Any, Any]:
    """The gradients of `count` batches, one a row, in the order of the groups along the input channels."""
    batches, found = draw(4, salt), []
    for _ in range(count):
        images, targets = next(batches)
        loss = F.cross_entropy(model(images).float(), targets)
        (gradient,) = torch.autograd.grad(loss, [model.get_parameter(name)])
        found.append(groups(gradient, size).flatten().float().double().numpy())
    return np.stack(found)


def by_hand(
    model: nn.Module, mask: Mask, sparsity: float, size: int, block: int, salt: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks and weights after a step of 30 gradients: a group's saliency by the inverse of the inverse's own square,
    every group's update added by itself. Blocks are cut from the groups that have a weight left."""
    masks, weights, every = {}, {}, []
    for name in NAMES:
        kept = groups(mask[name], size).numpy()
        values = groups(model.get_parameter(name).detach(), size).numpy().flatten()
        rows = in_groups(name, 30, size, salt, model) * kept.flatten()
        weights[name] = values.copy()
        masks[name] = kept.copy()
        living = np.flatnonzero(kept.any(1))
        for start in range(0, len(living), block // size):
            at = living[start : start + block // size]
            inside = (at[:, None] * size + np.arange(size)).flatten()
            g = rows[:, inside]
            inverse = np.linalg.inv(0.02 * np.eye(len(inside)) + g.T @ g / 30)
            for i, q in enumerate(at):
                own = slice(i * size, i * size + size)
                weight = values[q * size : q * size + size]
                share = np.linalg.inv(inverse[own, own]) @ weight
                every.append((weight @ share / 2, name, q, inside, -inverse[:, own] @ share))
    total = sum(mask[name].numel() for name in NAMES)
    budget, held = total - round(sparsity * total), 0
    for _saliency, name, q, inside, moves in sorted(every, key=lambda entry: -entry[0]):
        present = int(masks[name][q].sum())
        if held + present <= budget:
            held += present
            continue
        held = budget  # what comes after goes as well
        masks[name][q] = False
        weights[name][inside] += moves
    shapes = {name: mask[name].shape for name in NAMES}
    found = {n: ungroup(torch.from_numpy(masks[n]), shapes[n]) for n in NAMES}
    return found, {n: ungroup(torch.from_numpy(weights[n]).reshape(-1, size), shapes[n]) * found[n] for n in NAMES}


def holes(sparse: bool) -> Mask:
    """A mask that leaves some groups of four with fewer weights, and some with none."""
    random = torch.Generator().manual_seed(9)
    shapes = {name: network().get_parameter(name).shape for name in NAMES}
    return Mask({n: torch.rand(s, generator=random) < (0.6 if sparse else 2.0) for n, s in shapes.items()})


def options(pattern: str = "unstructured", **others: Any) -> OBertOptions:
    # keep_dense: a pattern leaves the first convolution out of itself.
    return OBertOptions(**COMMON | {"recomputations": 1, "pattern": pattern, "keep_dense": ()} | others)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "some pruned before"])
@pytest.mark.parametrize(("pattern", "size", "block"), [("1x4", 4, 8), ("1x2", 2, 10)])
def test_a_step_of_groups_is_that_of_dense_linear_algebra(pattern: str, size: int, block: int, sparse: bool) -> None:
    """Fisher blocks of 10 weights are rounded down to whole groups: 8 with 1x4."""
    model, other, mask = network(), network(), holes(sparse)
    mask.apply_(model)
    mask.apply_(other)
    masks, weights = by_hand(other, mask, 0.65, size, block)
    found = OBert(0.65, options(pattern)).start(model, mask, Plan(0, 0, batches=draw))
    for name in NAMES:
        assert torch.equal(found[name], masks[name])
        assert torch.allclose(model.get_parameter(name), weights[name], rtol=1e-8, atol=1e-10)
    moved = torch.cat([(model.get_parameter(n) - other.get_parameter(n)).detach()[found[n]].abs() for n in NAMES])
    assert float(moved.max()) > 0.01, "the case must show an update"


def test_single_weights_are_those_of_woodfisher() -> None:
    one, other = network(), network()
    found = OBert(0.6, options()).start(one, holes(False), Plan(0, 0, batches=draw))
    assert found == WoodFisher(0.6, WoodFisherOptions(**COMMON)).start(other, holes(False), Plan(0, 0, batches=draw))
    assert all(torch.allclose(one.get_parameter(n), other.get_parameter(n), rtol=1e-10) for n in NAMES)


def test_a_group_is_not_the_sum_of_its_weights() -> None:
    """WoodFisher, which adds up single saliencies, keeps other blocks of 1x4."""
    shared = {"pattern": "1x4", "keep_dense": ()}
    found = OBert(0.6, options("1x4")).start(network(), holes(False), Plan(0, 0, batches=draw))
    other = WoodFisher(0.6, WoodFisherOptions(**COMMON, **shared))
    assert found != other.start(network(), holes(False), Plan(0, 0, batches=draw))


def test_recomputations_are_passes_with_gradients_of_their_own() -> None:
    """Two passes to 60 %: one to 30 %, and one from the network that it left, with other images."""
    model, other, mask = network(), network(), holes(False)
    masks, weights = by_hand(other, mask, 0.3, 4, 8, salt=0)
    with torch.no_grad():
        for name in NAMES:
            other.get_parameter(name).copy_(weights[name])
    masks, weights = by_hand(other, Mask(masks), 0.6, 4, 8, salt=1)
    found = OBert(0.6, options("1x4", recomputations=2)).start(model, mask, Plan(0, 0, batches=draw))
    assert all(torch.equal(found[name], masks[name]) for name in NAMES)
    assert all(torch.allclose(model.get_parameter(n), weights[n], rtol=1e-7, atol=1e-10) for n in NAMES)
    once = OBert(0.6, options("1x4")).start(network(), mask, Plan(0, 0, batches=draw))
    assert once != found


class Logit(nn.Module):
    """Two classes of logits w x and 0."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.layer = nn.Linear(len(weights), 1, bias=False)
        self.layer.weight.data = torch.tensor([weights])

    def forward(self, images: Tensor) -> Tensor:
        logit: Tensor = self.layer(images)
        return torch.cat([logit, torch.zeros_like(logit)], 1)


def test_one_step_of_groups_by_hand() -> None:
    """w = (2, 1 | 1, 1), image (2, 0 | -4, 0), class 1: logits 0, so the gradient is x / 2 = (1, 0, -2, 0). With
    dampening 1, weights 0 and 2 share ((2, -2), (-2, 5)), whose inverse is ((5, 2), (2, 2)) / 6; the others have 1.
    The saliencies of the groups are (4 * 6/5 + 1) / 2 = 2.9 and (1 * 6/2 + 1) / 2 = 2: the second goes, and weight 0
    becomes 2 - (2/6) * (6/2) * 1 = 1; weight 1 stays."""

    def same(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield torch.tensor([[2.0, 0.0, -4.0, 0.0]]), torch.ones(1, dtype=torch.long)

    model = Logit(2.0, 1.0, 1.0, 1.0)
    chosen = OBertOptions(gradients=1, batch=1, block=4, dampening=1.0, recomputations=1, pattern="1x2", keep_dense=())
    mask = Mask.ones(prunable(model, head=True))
    found = OBert(0.5, chosen).start(model, mask, Plan(0, 0, batches=same))
    assert found["layer.weight"][0].tolist() == [True, True, False, False]
    assert model.layer.weight[0].tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_a_fisher_block_is_at_least_one_group() -> None:
    found = OBert(0.5, options("1x4", block=1)).start(network(), holes(False), Plan(0, 0, batches=draw))
    assert abs(found.sparsity - 0.5) < 4 / found.total


@pytest.mark.parametrize("variant", OBert.papers)
def test_the_authors_settings_are_valid(variant: str) -> None:
    """Seven updates every 4 of 30 epochs, from 70 to 90 %."""
    paper = OBert.papers[variant]
    moments = OBertOptions(**paper.options).schedule.at(paper.sparsity, 30)
    assert list(moments) == list(range(2, 27, 4)) and moments[2] == pytest.approx(0.7) and moments[26] == 0.9


def test_an_update_of_a_training_is_one_pass(salts_of: Callable[..., list[int]]) -> None:
    """Three updates, the first of which has nothing to prune; `recomputations` is for pruning at once."""
    salts = salts_of(OBert, OBertOptions(**OBert.brief | {"recomputations": 5}))
    assert len(salts) == len(set(salts)) == 2
