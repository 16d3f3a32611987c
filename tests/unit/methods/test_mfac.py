"""M-FAC: the same as the explicit inverse of the Fisher matrix, in blocks of any size."""

from collections.abc import Callable, Iterator
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
from budwood.prune import fisher
from budwood.prune.fisher import Cut, LayerFisher, by_gradients
from budwood.prune.mfac import MFAC, MFACOptions
from budwood.prune.schedule import Cubic, exponential
from budwood.testing.pruners import RECIPE, sparse_mask, toy_data, toy_network
from budwood.train.data import batches_from
from budwood.train.fit import PRUNING, Fit


def explicit(gradients: Tensor, dampening: float, block: int) -> Tensor:
    """The inverse of dampening + mean of g g^T, zero outside of the blocks. gradients: (m, d) float64."""
    count, size = gradients.shape
    fisher = dampening * torch.eye(size, dtype=torch.float64) + gradients.T @ gradients / count
    at = torch.arange(size) // block
    return torch.linalg.inv(torch.where(at[:, None] == at, fisher, 0.0))


def inverted(gradients: Tensor, x: Tensor, dampening: float, block: int, folder: Path) -> tuple[Tensor, Tensor]:
    """The diagonal of F^-1, and F^-1 x, by the gradients' files."""
    count, weights = gradients.shape
    layer = LayerFisher(Cut(torch.ones(weights, dtype=torch.bool), 1, block), folder / "0", count)
    for gradient in gradients:
        layer.add(gradient)
    diagonal, product = torch.zeros_like(layer.cut.padded(x)), torch.zeros_like(layer.cut.padded(x))
    for at, inverse in layer.inverses(dampening, torch.device("cpu")):
        diagonal[at], product[at] = inverse.diagonal(), inverse.times(layer.cut.padded(x)[at])
    return layer.cut.back(diagonal), layer.cut.back(product)


CASES = [(3, 7, 7), (5, 12, 4), (5, 12, 5), (9, 12, 4), (9, 13, 6), (4, 1, 1), (1, 5, 1), (6, 6, 6), (64, 72, 64)]
"""Gradients, weights, block: also more gradients than weights, and a last block that is shorter."""


@pytest.mark.parametrize("chunk", [1, 50, 2**24])
@pytest.mark.parametrize(("count", "size", "block"), CASES)
def test_diagonal_and_products_are_those_of_the_explicit_inverse(
    count: int, size: int, block: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "CHUNK", chunk)
    random = torch.Generator().manual_seed(count * size)
    gradients = torch.randn(count, size, generator=random)
    inverse = explicit(gradients.double(), 0.1, block)
    x = torch.randn(size, generator=random, dtype=torch.float64)
    diagonal, product = inverted(gradients, x, 0.1, block, tmp_path)
    assert torch.allclose(diagonal, inverse.diagonal(), rtol=1e-9)
    assert torch.allclose(product, inverse @ x, atol=1e-9)


@pytest.mark.parametrize("size", [1.0, 10.0])
@pytest.mark.parametrize("dampening", [1e-5, 1e-7])
@pytest.mark.parametrize(("weights", "block"), [(8, 128), (64, 128), (64, 64), (72, 64)])
def test_products_keep_their_digits_where_gradients_span_all_weights(
    weights: int, block: int, dampening: float, size: float, tmp_path: Path
) -> None:
    """64 gradients of a block of 64 weights or of 8, with the last block of 72 too: F^-1 x is then far smaller than
    x / dampening, from which Woodbury's identity takes the rest away."""
    random = torch.Generator().manual_seed(weights)
    gradients = size * torch.randn(64, weights, generator=random)
    x = torch.randn(weights, generator=random, dtype=torch.float64)
    diagonal, product = inverted(gradients, x, dampening, block, tmp_path)
    inverse = explicit(gradients.double(), dampening, block)
    for at in torch.arange(weights).split(block):
        expected = (inverse @ x)[at]
        assert float((product[at] - expected).norm() / expected.norm()) < 1e-4
    assert torch.allclose(diagonal, inverse.diagonal(), rtol=1e-4)


def test_vectors_are_those_of_the_papers_recursion() -> None:
    """F_i^-1 x = F_(i-1)^-1 x - u_i (u_i^T x) / (m + g_i^T u_i) with u_i = F_(i-1)^-1 g_i: one after the other there,
    and all at once here."""
    gradients = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inverse, wanted = torch.eye(6, dtype=torch.float64) / 0.5, []
    for gradient in gradients:
        u = inverse @ gradient
        wanted.append(u / (4 + gradient @ u).sqrt())
        inverse = inverse - torch.outer(wanted[-1], wanted[-1])
    assert torch.allclose(by_gradients(gradients[None], 4, 0.5).root[0], 0.5**0.5 * torch.stack(wanted))


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
    options = MFACOptions(gradients=1, batch=1, dampening=1.0, block=4, recomputations=1)
    mask = Mask.ones({"weight": layer.weight})
    found = MFAC(0.25, options).start(layer, mask, plan(torch.ones(1, 2), torch.tensor([0])))
    assert found["weight"].tolist() == [[True, False], [True, True]]
    assert torch.allclose(layer.weight.data, torch.tensor([[3 + 1 / 7, 0], [2 - 1 / 7, 2 - 1 / 7]]))


def test_the_order_is_not_that_of_the_magnitudes() -> None:
    """The second input is always zero, so its weights may go though they are the greater ones: of the first two, any
    step in the direction of the gradient is dear. Nothing else moves, as zero goes with nothing."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1.2], [1.0, 1.2]])
    options = MFACOptions(gradients=1, batch=1, dampening=1e-3, block=4, recomputations=1)
    images = torch.tensor([[4.0, 0.0]])
    found = MFAC(0.5, options).start(layer, Mask.ones({"weight": layer.weight}), plan(images, torch.tensor([0])))
    assert found["weight"].tolist() == [[True, False], [True, False]]
    assert torch.equal(layer.weight.data, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def plainly(model: nn.Module, mask: Mask, targets: list[float], options: MFACOptions, draw: Any) -> Mask:
    """M-FAC as a loop over dense matrices, a layer after the other. `model` is pruned in place."""
    for salt, target in enumerate(targets):
        weights = {name: model.get_parameter(name) for name in mask}
        batches = draw(options.batch, salt)
        model.eval()
        rows = []
        for _ in range(options.gradients):
            images, classes = next(batches)
            rows.append(torch.autograd.grad(F.cross_entropy(model(images), classes), list(weights.values())))
        inverses, scores = {}, []
        for i, (name, weight) in enumerate(weights.items()):
            alive, w = mask[name].flatten(), weight.detach().flatten().double()
            g = torch.stack([row[i].flatten() for row in rows]).double()[:, alive]
            inverses[name] = explicit(g, options.dampening, options.block)
            scores.append(
                torch.full_like(w, -torch.inf).masked_scatter(alive, w[alive] ** 2 / (2 * inverses[name].diagonal()))
            )
        every = torch.cat(scores)
        threshold = every.sort().values[round(target * len(every))]
        kept = {name: (score >= threshold).reshape(mask[name].shape) for name, score in zip(mask, scores, strict=True)}
        for name, inverse in inverses.items():
            alive, w = mask[name].flatten(), weights[name].detach().flatten().double()
            left, stays = w[alive].clone(), kept[name].flatten()[alive]
            for q in (~stays).nonzero().flatten():
                left -= w[alive][q] / inverse[q, q] * inverse[:, q]
            w[alive] = left * stays
            weights[name].data = w.reshape(mask[name].shape).float()
        mask = Mask(kept)
    return mask


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("block", [1000, 50, 7])
def test_a_pruning_is_that_of_the_plain_loop(block: int, parts: int, sparse: bool) -> None:
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
    fit.progress = lambda done, total, how: (
        None if how.startswith(PRUNING) else sparsities.append(round(fit.mask.sparsity, 2))
    )
    fitted = fit.run()
    assert [i for i, count in enumerate(moved) if count] == [5, 10]
    assert sparsities == [0.0] * 5 + [round(0.7 - 0.7 / 8, 2)] * 5 + [0.7] * 6
    assert fitted.mask.holds(model)


def test_every_update_of_a_training_has_gradients_of_its_own_in_every_part(salts_of: Callable[..., list[int]]) -> None:
    """Two parts at each of three updates, the first of which has nothing to prune: images for the salts of the second
    and the third, step 5 and step 10."""
    assert salts_of(MFAC, MFACOptions(**MFAC.brief)) == [10, 11, 20, 21]


def test_a_gradient_that_is_not_finite_is_one_line_and_changes_nothing() -> None:
    layer = nn.Linear(4, 2, bias=False)
    options, before = MFACOptions(gradients=2, batch=1, recomputations=1), layer.weight.detach().clone()
    with pytest.raises(UserError, match="cannot be inverted") as error:
        bad = plan(torch.full((1, 4), torch.nan), torch.tensor([0]))
        MFAC(0.5, options).start(layer, Mask.ones({"weight": layer.weight}), bad)
    assert "\n" not in str(error.value) and torch.equal(layer.weight, before)


def test_the_authors_settings_are_valid() -> None:
    """Three updates at the epochs 0, 2 and 4 of 10, the first to 50 %."""
    paper = MFAC.papers["cifar10"]
    moments = MFACOptions(**paper.options).schedule.at(paper.sparsity, 10)
    assert list(moments) == [0, 2, 4] and moments[0] == 0.5 and moments[4] == 0.875
    assert next(iter(MFAC.papers)) == "cifar10"


def test_momentum_begins_anew_with_every_update() -> None:
    """At the steps of an update the momentum is that step's gradient alone, at others it is not."""
    model, data = toy_network(), toy_data()
    options = MFACOptions(
        gradients=4, batch=4, block=50, recomputations=1, schedule=Cubic(start=0.2, end=0.8, updates=3)
    )
    recipe = RECIPE.model_copy(update={"weight_decay": 0.0})
    training = Fit(model, MFAC(0.7, options), Mask.ones(prunable(model, head=True)), data, data, recipe)
    alone: list[int] = []

    def watch(done: int, total: int, how: str) -> None:
        norm = model.get_parameter("1.weight")  # not in the mask
        if not how.startswith(PRUNING) and torch.equal(training.optimizer.state[norm]["momentum_buffer"], norm.grad):
            alone.append(done - 1)

    training.progress = watch
    training.run()
    assert isinstance(training.pruner, MFAC)
    assert alone == sorted({0, *training.pruner.moments_}) and len(alone) == 4
