"""M-FAC: the same as the explicit inverse of the Fisher matrix, in blocks or not, in pages or not."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune import woodbury
from budwood.prune.mfac import MFAC, MFACOptions
from budwood.prune.schedule import exponential
from budwood.prune.woodbury import Fisher
from budwood.testing.pruners import RECIPE, sparse_mask, toy_data, toy_network
from budwood.train.data import batches_from
from budwood.train.fit import Fit


def explicit(gradients: Tensor, dampening: float, block: int | None) -> Tensor:
    """The inverse of dampening + mean of g g^T, zero outside of the blocks. gradients: (m, d) float64."""
    count, size = gradients.shape
    fisher = dampening * torch.eye(size, dtype=torch.float64) + gradients.T @ gradients / count
    at = torch.arange(size) // (block or size)
    return torch.linalg.inv(torch.where(at[:, None] == at, fisher, 0.0))


def filled(gradients: Tensor, dampening: float, block: int | None, folder: Path) -> Fisher:
    fisher = Fisher(len(gradients), gradients.shape[1], block, dampening, folder)
    for gradient in gradients:
        fisher.add(gradient)
    return fisher


CASES = [(3, 7, None), (5, 12, 4), (5, 12, 5), (9, 12, 4), (9, 13, 6), (4, 1, None), (1, 5, 1), (6, 6, 6)]
"""Gradients, weights, block: also more gradients than weights, and a last block that is shorter."""


@pytest.mark.parametrize("page", [1, 10, 30, 2**25])
@pytest.mark.parametrize(("count", "size", "block"), CASES)
def test_diagonal_and_products_are_those_of_the_explicit_inverse(
    count: int, size: int, block: int | None, page: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(woodbury, "PAGE", page)
    random = torch.Generator().manual_seed(count * size)
    gradients = torch.randn(count, size, generator=random)
    inverse = explicit(gradients.double(), 0.1, block)
    x = torch.randn(size, generator=random, dtype=torch.float64)
    with filled(gradients, 0.1, block, tmp_path) as fisher:
        assert torch.allclose(fisher.invert(), inverse.diagonal(), rtol=1e-9)
        assert torch.allclose(fisher.product(x), inverse @ x, atol=1e-5)
        assert torch.allclose(fisher.product(2 * x), inverse @ x * 2, atol=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_diagonal_stays_exact_where_gradients_are_far_greater_than_the_dampening(tmp_path: Path) -> None:
    """1 - sum of squares is about 1e-9 there, which float32 does not know."""
    gradients = 30 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with filled(gradients, 1e-6, None, tmp_path) as fisher:
        assert torch.allclose(fisher.invert(), explicit(gradients.double(), 1e-6, None).diagonal(), rtol=1e-4)


def test_vectors_are_those_of_the_papers_recursion(tmp_path: Path) -> None:
    """F_i^-1 x = F_(i-1)^-1 x - u_i (u_i^T x) / (m + g_i^T u_i) with u_i = F_(i-1)^-1 g_i."""
    gradients = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    inverse, wanted = torch.eye(6, dtype=torch.float64) / 0.5, []
    for gradient in gradients.double():
        u = inverse @ gradient
        wanted.append(u / (4 + gradient @ u).sqrt())
        inverse = inverse - torch.outer(wanted[-1], wanted[-1])
    with filled(gradients, 0.5, None, tmp_path) as fisher:
        fisher.invert()
        (parts,) = fisher._groups()
        assert torch.allclose(fisher._read(parts[0], 4)[0], 0.5**0.5 * torch.stack(wanted), atol=1e-6)


def plan(images: Tensor, targets: Tensor, **more: Any) -> Plan:
    """Without a training; the batches are these images, always."""

    def batches(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield images, targets

    return Plan(0, 0, batches=batches, **more)


def test_one_step_by_hand() -> None:
    """W = ((3, 1), (2, 2)) and x = (1, 1), class 0: both logits are 4, so the gradient is (-1, -1, 1, 1) / 2. With
    dampening 1, F^-1 = I - g g^T / 2: 7/8 on the diagonal, -1/8 between weights of one row, 1/8 between rows. The 1
    goes, and takes with it -8/7 of its column: W = ((3 + 1/7, 0), (2 - 1/7, 2 - 1/7))."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0, 1.0], [2.0, 2.0]])
    options = MFACOptions(gradients=1, batch=1, dampening=1.0, block=None, recomputations=1)
    mask = Mask.ones({"weight": layer.weight})
    found = MFAC(0.25, options).start(layer, mask, plan(torch.ones(1, 2), torch.tensor([0])))
    assert found["weight"].tolist() == [[True, False], [True, True]]
    assert torch.allclose(layer.weight.data, torch.tensor([[3 + 1 / 7, 0], [2 - 1 / 7, 2 - 1 / 7]]))


def test_the_order_is_not_that_of_the_magnitudes() -> None:
    """The second input is always zero, so its weights may go though they are the greater ones: of the first two, any
    step in the direction of the gradient is dear. Nothing else moves, as zero goes with nothing."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1.2], [1.0, 1.2]])
    options = MFACOptions(gradients=1, batch=1, dampening=1e-3, block=None, recomputations=1)
    images = torch.tensor([[4.0, 0.0]])
    found = MFAC(0.5, options).start(layer, Mask.ones({"weight": layer.weight}), plan(images, torch.tensor([0])))
    assert found["weight"].tolist() == [[True, False], [True, False]]
    assert torch.equal(layer.weight.data, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def plainly(model: nn.Module, mask: Mask, targets: list[float], options: MFACOptions, draw: Any) -> Mask:
    """M-FAC as a loop over dense matrices, all layers in one vector. `model` is pruned in place."""
    names = list(mask)
    for salt, target in enumerate(targets):
        weights = [model.get_parameter(name) for name in names]
        alive = torch.cat([mask[name].flatten() for name in names])
        batches, rows = draw(options.batch, salt), []
        model.eval()
        for _ in range(options.gradients):
            images, classes = next(batches)
            loss = F.cross_entropy(model(images), classes)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])[alive])
        inverse = explicit(torch.stack(rows).double(), options.dampening, options.block)
        w = torch.cat([weight.detach().flatten() for weight in weights]).double()
        score = w[alive] ** 2 / (2 * inverse.diagonal())
        going = len(score) - (len(w) - round(target * len(w)))
        gone = score.argsort()[:going]
        left = w[alive] - sum(w[alive][q] / inverse[q, q] * inverse[:, q] for q in gone)
        left[gone] = 0
        w[alive] = left
        kept = alive.clone()
        kept[alive.nonzero().flatten()[gone]] = False
        sizes = [weight.numel() for weight in weights]
        with torch.no_grad():
            for weight, part in zip(weights, w.split(sizes), strict=True):
                weight.copy_(part.reshape(weight.shape))
        mask = Mask({n: k.reshape(x.shape) for n, k, x in zip(names, kept.split(sizes), weights, strict=True)})
    return mask


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("block", [None, 50, 7])
def test_a_pruning_is_that_of_the_plain_loop(block: int | None, parts: int, sparse: bool) -> None:
    options = MFACOptions(gradients=10, batch=4, dampening=1e-3, block=block, recomputations=parts)
    draw = batches_from(toy_data(), 0, 0, torch.device("cpu"))
    ours, other = toy_network(), toy_network()
    mask = Mask.ones(prunable(ours, head=True))
    mask = sparse_mask(mask) if sparse else mask
    for model in (ours, other):
        mask.apply_(model)
    expected = plainly(other, mask, exponential(mask.sparsity, 0.8, parts), options, draw)
    found = MFAC(0.8, options).start(ours, mask, Plan(0, 0, batches=draw))
    assert found == expected and abs(found.sparsity - 0.8) < 1 / found.total
    for name in found:
        assert torch.allclose(ours.get_parameter(name), other.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_each_part_leaves_the_same_share() -> None:
    assert exponential(0.0, 0.875, 3) == pytest.approx([0.5, 0.75, 0.875])
    assert exponential(0.5, 0.9, 2) == pytest.approx([1 - 0.5 * 0.2**0.5, 0.9])
    assert exponential(0.3, 0.7, 1) == [0.7] and exponential(0.5, 0.5, 2) == [0.5, 0.5]


def test_nothing_to_prune_takes_no_images_and_changes_nothing() -> None:
    model = toy_network()
    mask = Mask.ones(prunable(model, head=True))
    assert MFAC(0.0).start(model, mask, Plan(0, 0)) is mask
    assert all(torch.equal(t, toy_network().state_dict()[n]) for n, t in model.state_dict().items())


def test_schedule_has_the_curve_and_weights_move_at_its_moments_alone() -> None:
    """Three updates over 60 % of 16 steps: 0, 5 and 10; the density after each by 0.7 - 0.7 (1 - p)^3."""
    model, data = toy_network(), toy_data()
    moved: list[int] = []

    class Watched(MFAC):
        def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
            before = {n: model.get_parameter(n).detach().clone() for n in mask}
            found = super().update(model, mask, step, batch)
            moved.append(sum(int((model.get_parameter(n) != before[n])[found[n]].sum()) for n in found))
            return found

    fit = Fit(model, Watched(0.7, MFACOptions(**MFAC.brief)), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    sparsities: list[float] = []
    fit.progress = lambda *_: sparsities.append(round(fit.mask.sparsity, 2))
    fitted = fit.run()
    assert [i for i, count in enumerate(moved) if count] == [5, 10]
    assert sparsities == [0.0] * 5 + [round(0.7 - 0.7 / 8, 2)] * 5 + [0.7] * 6
    assert fitted.mask.holds(model)


def test_gradients_that_are_too_large_for_the_disk_are_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"4e\+06 GB of disk.*lower --option gradients"):
        Fisher(10**6, 10**9, None, 1e-5, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_half_way_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The file may not grow beyond 40 kB, and ten gradients of 952 weights come to 38 kB, eleven to 42 kB."""
    model = toy_network()
    mask, before = Mask.ones(prunable(model, head=True)), toy_network().state_dict()
    options = MFACOptions(gradients=11, batch=4, recomputations=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(UserError, match="lower --option gradients"):
            MFAC(0.5, options).start(model, mask, Plan(0, 0, batches=_draw(), scratch=tmp_path / "scratch"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def _draw() -> Any:
    return batches_from(toy_data(), 0, 0, torch.device("cpu"))


def test_a_gradient_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"), Fisher(1, 2, None, 1e-5, tmp_path) as fisher:
        fisher.add(torch.tensor([0.0, torch.nan]))
