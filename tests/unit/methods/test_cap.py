"""CAP against a loop that inverts what is left of a block after every removal."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune import cap
from budwood.prune.cap import CAP, CAPOptions, rises
from budwood.prune.fisher import by_gradients, by_products
from budwood.prune.structure import groups
from budwood.prune.woodfisher import WoodFisher, WoodFisherOptions

Array = np.ndarray[Any, Any]


def fisher(c: int, seed: int, count: int = 9, dampening: float = 0.05) -> Array:
    g = np.random.default_rng(seed).normal(size=(count, c))
    found: Array = dampening * np.eye(c) + g.T @ g / count
    return found


def rise(matrix: Array, before: Array, after: Array) -> float:
    """How much the quadratic form rises from one set of weights to another."""
    return float((after - before) @ matrix @ (after - before)) / 2


def minimum(matrix: Array, weights: Array, kept: Array) -> Array:
    """The weights under the mask that are nearest, as the matrix measures: solved in what is kept, without any
    inverse's update."""
    found = np.zeros_like(weights)
    if kept.any():
        inner = matrix[np.ix_(kept, kept)]
        found[kept] = weights[kept] + np.linalg.solve(inner, matrix[np.ix_(kept, ~kept)] @ weights[~kept])
    return found


def emptied(matrix: Array, weights: Array, live: Array, size: int, several: tuple[int, int] | None = None) -> Array:
    """What the loss has risen when each group goes: at every step all that may go are tried, by minimising anew."""
    left, now, total = live.copy(), weights.copy(), 0.0
    found = np.zeros(len(live))
    while left.any():
        may = [q for q in range(len(live)) if left[q]]
        if several is not None:
            m, n = several
            full = [q for q in may if left[q // m * m : q // m * m + m].sum() > n]
            may = full or may
        tried = {}
        for q in may:
            without = left.copy()
            without[q] = False
            kept = np.repeat(without, size)
            # What is left of the block has no part in what has gone: only the weights of now count.
            present = np.repeat(left, size)
            inner = minimum(matrix[np.ix_(present, present)], now[present], kept[present])
            after = np.zeros_like(now)
            after[present] = inner
            tried[q] = (rise(matrix, now, after), after)
        best = min(tried, key=lambda q: tried[q][0])
        total += tried[best][0]
        found[best], now = total, tried[best][1]
        left[best] = False
    return found


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 5), size=st.integers(1, 3), seed=st.integers(0, 99), holes=st.booleans())
def test_removals_are_those_of_the_slow_loop(count: int, size: int, seed: int, holes: bool) -> None:
    random = np.random.default_rng(seed)
    matrices, weights = [fisher(count * size, seed + i) for i in range(2)], random.normal(size=(2, count * size))
    live = random.random((2, count)) < (0.6 if holes else 2.0)
    for i in range(2):  # what is pruned already: zero, and apart from the others
        gone = ~np.repeat(live[i], size)
        weights[i, gone] = 0
        matrices[i][gone] = matrices[i][:, gone] = 0
        matrices[i][gone, gone] = 0.05
    inverse = torch.from_numpy(np.stack([np.linalg.inv(m) for m in matrices]))
    found = rises(inverse, torch.from_numpy(weights), torch.from_numpy(live), size, None)
    expected = np.stack([emptied(m, w, a, size) for m, w, a in zip(matrices, weights, live, strict=True)])
    assert np.allclose(found.numpy(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("m", "n"), [(4, 2), (4, 1), (2, 1)])
def test_of_m_neighbours_the_last_n_go_after_all_others(m: int, n: int) -> None:
    matrix, weights = fisher(8, 5), np.random.default_rng(6).normal(size=8)
    weights[:4] *= 0.1  # the least costly ones are neighbours
    live = np.array([True] * 6 + [False, True])
    weights[6], matrix[6], matrix[:, 6] = 0, 0, 0
    matrix[6, 6] = 0.05
    inverse = torch.from_numpy(np.linalg.inv(matrix))[None]
    found = rises(inverse, torch.from_numpy(weights)[None], torch.from_numpy(live)[None], 1, (m, n))[0].numpy()
    assert np.allclose(found, emptied(matrix, weights, live, 1, (m, n)), rtol=1e-7, atol=1e-9)
    assert not np.allclose(found, emptied(matrix, weights, live, 1), rtol=1e-3), "the case must show a difference"


def test_two_weights_by_hand() -> None:
    """F = ((2, -3), (-3, 10)), w = (3, 1): as in WoodFisher's case the second goes first, for 2.75, and the first
    becomes 1.5; it alone is worth 1.5^2 * 2 / 2 = 2.25, and has 5 then: all of w F w / 2."""
    inverse = torch.linalg.inv(torch.tensor([[[2.0, -3.0], [-3.0, 10.0]]], dtype=torch.float64))
    found = rises(inverse, torch.tensor([[3.0, 1.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool), 1, None)
    assert found[0].tolist() == pytest.approx([5.0, 2.75])


@pytest.mark.parametrize("form", ["gradients", "products"])
def test_a_nearly_singular_block_keeps_its_digits(form: str) -> None:
    """Gradients that differ in the tenth digit, dampening 1e-8: when all is gone the loss has risen by w F w / 2, and
    on the way it never falls."""
    random = np.random.default_rng(0)
    g = random.normal(size=(1, 12)) + 1e-10 * random.normal(size=(40, 12))
    weights, rows = random.normal(size=12), torch.from_numpy(g)[None]
    inverse = by_gradients(rows, 40, 1e-8) if form == "gradients" else by_products(rows.mT @ rows, 40, 1e-8)
    live = torch.ones(1, 12, dtype=torch.bool)
    found = rises(inverse.dense(), torch.from_numpy(weights)[None], live, 1, None)[0]
    assert bool(torch.isfinite(found).all()) and float(found.min()) >= 0
    whole = (1e-8 * weights @ weights + np.square(g @ weights).mean()) / 2
    assert float(found.max()) == pytest.approx(whole, rel=1e-5)


# -- the whole method ----------------------------------------------------------------------------------------------

NAMES = ["0.weight", "2.weight"]


def network() -> nn.Sequential:
    """128 and 80 weights, in float64; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(8, 4, 2), nn.Flatten(), nn.Linear(16, 5)).double()


def draw(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(salt)
    while True:
        images = torch.randn(size, 8, 3, 3, dtype=torch.float64, generator=random)
        yield images, torch.randint(0, 5, (size,), generator=random)


def blocks(mask: Mask, name: str, size: int, block: int) -> Iterator[tuple[Array, Array, Array, Array]]:
    """(places in the order of the groups, F, weights, kept) of every block that is cut from what `mask` leaves."""
    model = network()
    mask.apply_(model)
    batches, rows = draw(4, 0), []
    for _ in range(30):
        images, targets = next(batches)
        (g,) = torch.autograd.grad(F.cross_entropy(model(images).float(), targets), [model.get_parameter(name)])
        rows.append(ordered(g, size).float().double().numpy())
    weights, kept = ordered(model.get_parameter(name).detach(), size).numpy(), ordered(mask[name], size).numpy()
    living = np.flatnonzero(kept.reshape(-1, size).any(1))
    for start in range(0, len(living), block // size):
        at = (living[start : start + block // size][:, None] * size + np.arange(size)).flatten()
        g = np.stack(rows)[:, at] * kept[at]
        yield at, 0.02 * np.eye(len(at)) + g.T @ g / 30, weights[at], kept[at]


def ordered(values: Tensor, size: int) -> Tensor:
    return groups(values, size).flatten() if size > 1 else values.flatten()


def holes(sparse: bool) -> Mask:
    random = torch.Generator().manual_seed(9)
    shapes = {name: network().get_parameter(name).shape for name in NAMES}
    return Mask({n: torch.rand(s, generator=random) < (0.6 if sparse else 2.0) for n, s in shapes.items()})


PATTERNS = {"unstructured": (1, 0.65), "1x4": (4, 0.65), "2:4": (4, 0.5)}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "some pruned before"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_step_is_that_of_the_slow_loop(pattern: str, sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is the cut through all blocks' losses, and the weights are the minimum of each block under it."""
    monkeypatch.setattr(cap, "CACHED", 300)  # a block or two at a time
    size, sparsity = PATTERNS[pattern]
    mask, model = holes(sparse), network()
    mask.apply_(model)
    chosen = CAPOptions(gradients=30, batch=4, block=12, dampening=0.02, pattern=pattern, keep_dense=())
    found = CAP(sparsity, chosen).start(model, mask, Plan(0, 0, batches=draw))
    together = 4 if pattern == "1x4" else 1
    stayed, went = [], []
    for name in NAMES:
        new, after = ordered(found[name], size).numpy(), ordered(model.get_parameter(name).detach(), size).numpy()
        for at, matrix, weights, kept in blocks(mask, name, size, 12):
            live = kept.reshape(-1, together).any(1)
            losses = emptied(matrix, weights, live, together, (4, 2) if pattern == "2:4" else None)
            keeps = new[at].reshape(-1, together).any(1)
            stayed += list(losses[live & keeps])
            went += list(losses[live & ~keeps])
            right = np.zeros(len(at))
            right[kept] = minimum(matrix[np.ix_(kept, kept)], weights[kept], new[at][kept])
            assert np.allclose(after[at], right, rtol=1e-7, atol=1e-9)
    assert went and stayed
    if pattern == "2:4":
        assert max(ordered(found[name], 4).reshape(-1, 4).sum(1).max() for name in NAMES) == 2
    else:
        assert max(went) < min(stayed)


def test_of_two_weights_that_stand_for_each_other_only_one_goes() -> None:
    """The gradient is (10, 10, 0), dampening 0.01: either of the first two makes up for the other, and WoodFisher
    finds both cheap (0.01 and 0.012 against 2^2 * 0.01 / 2 = 0.02). Together they are not: CAP takes the first and the
    third, and the second becomes 2.1 to within the dampening."""

    class Logit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1, bias=False)
            self.layer.weight.data = torch.tensor([[1.0, 1.1, 2.0]])

        def forward(self, images: Tensor) -> Tensor:
            logit: Tensor = self.layer(images)
            return torch.cat([logit, torch.zeros_like(logit)], 1)

    def same(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield torch.tensor([[10.0, 10.0, 0.0]]), torch.ones(1, dtype=torch.long)

    common = {"gradients": 1, "batch": 1, "block": 3, "dampening": 0.01}
    kept = {}
    for kind, options in ((CAP, CAPOptions(**common)), (WoodFisher, WoodFisherOptions(**common))):
        model = Logit()
        found = kind(2 / 3, options).start(model, Mask.ones(prunable(model, head=True)), Plan(0, 0, batches=same))
        kept[kind] = found["layer.weight"][0].tolist(), model.layer.weight[0].tolist()
    assert kept[WoodFisher][0] == [False, False, True]
    assert kept[CAP][0] == [False, True, False] and kept[CAP][1] == pytest.approx([0.0, 2.1, 0.0], abs=1e-3)


def test_the_authors_settings_are_valid() -> None:
    """Fifteen updates every 20 of 300 epochs, from 40 to 90 %."""
    paper = CAP.papers["resnet50d"]
    moments = CAPOptions(**paper.options).schedule.at(paper.sparsity, 300)
    assert list(moments) == list(range(0, 281, 20)) and moments[0] == pytest.approx(0.4) and moments[280] == 0.9
