"""WoodFisher against dense linear algebra, cases worked out by hand, and its published schedule."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.cap import CAP
from budwood.prune.fisher_pruner import FisherPruner
from budwood.prune.mfac import MFAC
from budwood.prune.obert import OBert
from budwood.prune.schedule import Cubic
from budwood.prune.woodfisher import WoodFisher, WoodFisherOptions
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.data import batches_from
from budwood.train.fit import PRUNING, Fit

NAMES = ["0.weight", "2.weight"]
Draw = Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]


def network() -> nn.Sequential:
    """64 and 80 weights, in float64; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 5)).double()


def draw(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Other images for every salt."""
    random = torch.Generator().manual_seed(salt)
    while True:
        images = torch.randn(size, 4, 3, 3, dtype=torch.float64, generator=random)
        yield images, torch.randint(0, 5, (size,), generator=random)


def rows_of(model: nn.Module, count: int, size: int, salt: int) -> dict[str, np.ndarray[Any, Any]]:
    """The gradients of `count` batches, one a row, as they are stored: in float32."""
    batches = draw(size, salt)
    found = []
    for _ in range(count):
        images, targets = next(batches)
        loss = F.cross_entropy(model(images).float(), targets)
        found.append(torch.autograd.grad(loss, [model.get_parameter(name) for name in NAMES]))
    return {
        name: np.stack([row[i].flatten().float().double().numpy() for row in found]) for i, name in enumerate(NAMES)
    }


def blocks_of(kept: Tensor, size: int) -> Iterator[np.ndarray[Any, Any]]:
    """Places of `size` remaining weights after each other."""
    places = kept.flatten().nonzero().flatten().numpy()
    for start in range(0, len(places), size):
        yield places[start : start + size]


def by_hand(
    model: nn.Module, mask: Mask, sparsity: float, count: int, block: int, dampening: float, scale: float, salt: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks and weights after a step: every F formed and inverted, every weight's update added by itself."""
    rows = rows_of(model, count, 4, salt)
    weights = {name: model.get_parameter(name).detach().flatten().numpy().copy() for name in NAMES}
    scores = {name: np.full(len(weights[name]), -np.inf) for name in NAMES}
    inverses: list[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    for name in NAMES:
        for at in blocks_of(mask[name], block):
            g = rows[name][:, at]
            inverse = np.linalg.inv(dampening * np.eye(len(at)) + sum(np.outer(r, r) for r in g) / count)
            inverses.append((name, at, inverse))
            for i, q in enumerate(at):
                scores[name][q] = weights[name][q] ** 2 / (2 * inverse[i, i])
    every = np.concatenate([scores[name] for name in NAMES])
    keep = len(every) - round(sparsity * len(every))
    threshold = np.sort(every)[::-1][keep - 1]
    moved = {name: values.copy() for name, values in weights.items()}
    for name, at, inverse in inverses:
        for i, q in enumerate(at):
            if scores[name][q] < threshold:
                moved[name][at] -= scale * weights[name][q] * inverse[:, i] / inverse[i, i]
    masks = {name: torch.from_numpy(scores[name] >= threshold).reshape(mask[name].shape) for name in NAMES}
    return masks, {n: torch.from_numpy(moved[n]).reshape(masks[n].shape) * masks[n] for n in NAMES}


def halves(sparse: bool) -> Mask:
    random = torch.Generator().manual_seed(9)
    shapes = {name: p.shape for name, p in network().named_parameters() if name in NAMES}
    return Mask({n: torch.rand(s, generator=random) < (0.7 if sparse else 2.0) for n, s in shapes.items()})


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "some pruned before"])
@pytest.mark.parametrize("scale", [1.0, 0.9])
@pytest.mark.parametrize("count", [5, 30], ids=["fewer gradients than weights", "more"])
def test_a_step_is_that_of_dense_linear_algebra(count: int, scale: float, sparse: bool) -> None:
    model, other, mask = network(), network(), halves(sparse)
    mask.apply_(model), mask.apply_(other)
    masks, weights = by_hand(other, mask, 0.6, count, 10, 0.02, scale, salt=0)
    options = WoodFisherOptions(gradients=count, batch=4, block=10, dampening=0.02, update_scale=scale)
    found = WoodFisher(0.6, options).start(model, mask, Plan(0, 0, batches=draw))
    for name in NAMES:
        assert torch.equal(found[name], masks[name])
        assert torch.allclose(model.get_parameter(name), weights[name], rtol=1e-8, atol=1e-10)
    moved = torch.cat([(model.get_parameter(n) - other.get_parameter(n)).detach()[found[n]].abs() for n in NAMES])
    assert float(moved.max()) > 0.01, "the case must show an update"


def test_recomputations_are_steps_after_each_other() -> None:
    """Three passes to 60 %: 20, 40, 60 %, each with gradients of the network that the one before left."""
    model, other, mask = network(), network(), halves(False)
    masks = {name: mask[name] for name in NAMES}
    for salt, sparsity in enumerate([0.2, 0.4, 0.6]):
        masks, weights = by_hand(other, Mask(masks), sparsity, 5, 10, 0.02, 1.0, salt)
        with torch.no_grad():
            for name in NAMES:
                other.get_parameter(name).copy_(weights[name])
    options = WoodFisherOptions(gradients=5, batch=4, block=10, dampening=0.02, recomputations=3)
    found = WoodFisher(0.6, options).start(model, mask, Plan(0, 0, batches=draw))
    assert all(torch.equal(found[name], masks[name]) for name in NAMES)
    assert all(torch.allclose(model.get_parameter(n), other.get_parameter(n), rtol=1e-7) for n in NAMES)


class Logit(nn.Module):
    """Two classes of logits w x and 0."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.layer = nn.Linear(len(weights), 1, bias=False)
        self.layer.weight.data = torch.tensor([weights])

    def forward(self, images: Tensor) -> Tensor:
        logit: Tensor = self.layer(images)
        return torch.cat([logit, torch.zeros_like(logit)], 1)


def pruned_once(weights: list[float], image: list[float], keep: int, **options: Any) -> tuple[list[bool], list[float]]:
    """The mask and the weights of a `Logit` after one step with dampening 1, on one image of class 1, the zero."""

    def same(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield torch.tensor([image]).expand(size, -1), torch.ones(size, dtype=torch.long)

    model = Logit(*weights)
    pruner = WoodFisher(
        1 - keep / len(weights), WoodFisherOptions(**{"gradients": 1, "batch": 1, "dampening": 1.0} | options)
    )
    found = pruner.start(model, Mask.ones(prunable(model, head=True)), Plan(0, 0, batches=same))
    return found["layer.weight"][0].tolist(), model.layer.weight[0].tolist()


def test_one_step_by_hand() -> None:
    """w = (3, 1), image (2, -6), class 1: logits (0, 0), so the gradient is x / 2 = (1, -3). F = I + g g^T =
    ((2, -3), (-3, 10)), F^-1 = ((10, 3), (3, 2)) / 11. The scores are 9 / (20/11) = 4.95 and 1 / (4/11) = 2.75: the
    second goes, and the first becomes 3 - 1 * 3/2 = 1.5."""
    mask, weights = pruned_once([3.0, 1.0], [2.0, -6.0], keep=1)
    assert mask == [True, False] and weights == pytest.approx([1.5, 0.0])


def test_the_update_by_hand_at_other_scales() -> None:
    """The same case: 3 - 0.9 * 1.5 = 1.65; and 3, where the update is turned off."""
    assert pruned_once([3.0, 1.0], [2.0, -6.0], keep=1, update_scale=0.9)[1] == pytest.approx([1.65, 0.0])
    assert pruned_once([3.0, 1.0], [2.0, -6.0], keep=1, update_scale=0.0) == ([True, False], [3.0, 0.0])


def test_weights_of_other_blocks_stay_where_they_are() -> None:
    """Blocks of one weight: F_qq = 2 and 10, scores 9 * 2 / 2 = 9 and 1 * 10 / 2 = 5, no update."""
    assert pruned_once([3.0, 1.0], [2.0, -6.0], keep=1, block=1) == ([True, False], [3.0, 0.0])


def test_the_order_of_the_scores_is_not_that_of_the_magnitudes() -> None:
    """The gradient is nearly (8, 0): the first weight is half as large, and worth 1 * 65 / 2 against 4 / 2."""
    mask, _ = pruned_once([1.0, 2.0], [8.0, 0.0], keep=1)
    assert mask == [True, False]


@pytest.mark.parametrize("kind", [WoodFisher, MFAC, OBert, CAP])
def test_without_the_update_it_is_optimal_brain_damage(kind: type[FisherPruner]) -> None:
    """The same mask, and no kept weight moves; with it they do."""
    options = {"gradients": 5, "batch": 4, "block": 10, "dampening": 0.02, "recomputations": 1}
    moving, still = network(), network()
    masks = [
        kind(0.6, kind.Options(**options, update_scale=scale)).start(model, halves(False), Plan(0, 0, batches=draw))
        for model, scale in ((moving, 1.0), (still, 0.0))
    ]
    assert masks[0] == masks[1]
    for name in NAMES:
        old = network().get_parameter(name)
        assert torch.equal(still.get_parameter(name)[masks[1][name]], old[masks[1][name]])
        assert not torch.equal(moving.get_parameter(name)[masks[1][name]], old[masks[1][name]])


def test_labels_that_mean_nothing_are_not_looked_at() -> None:
    """Every label as class 0 and as class 4 comes to the same network where they are not to be trusted."""

    def with_class(number: int) -> Draw:
        def labelled(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
            return ((images, torch.full_like(targets, number)) for images, targets in draw(size, salt))

        return labelled

    def pruned(number: int, labelled: bool) -> Tensor:
        model, options = network(), WoodFisherOptions(gradients=5, batch=4, block=10, dampening=0.02)
        plan = Plan(0, 0, batches=with_class(number), labelled=labelled)
        WoodFisher(0.6, options).start(model, halves(False), plan)
        return model.get_parameter("0.weight").detach()

    assert torch.equal(pruned(0, False), pruned(4, False))
    assert not torch.equal(pruned(0, True), pruned(4, True))


def test_the_schedule_is_the_published_one() -> None:
    """At epochs 1, 6, ... 36 of 100 the authors' ResNet-50 of 90 % has these zeros (plotmaker of their repository)."""
    published = {1: 0.052, 6: 0.338, 11: 0.551, 16: 0.703, 21: 0.802, 26: 0.861, 31: 0.890, 36: 0.900}
    schedule = WoodFisherOptions().schedule
    assert schedule == Cubic(**WoodFisher.papers["resnet50"].options["schedule"])
    ours = schedule.at(0.9, 100)
    assert list(ours) == list(published) and ours[36] == 0.9
    assert all(abs(ours[epoch] - zeros) < 0.003 for epoch, zeros in published.items())


def test_the_schedule_of_mobilenet_is_the_published_one() -> None:
    """Zeros at epochs 4, 8, ... 24 of the authors' run that ends at 75.4 % (plotmaker/str_gradual_pruning_*_75.py)."""
    published = {4: 0.0549, 8: 0.3961, 12: 0.6031, 16: 0.7093, 20: 0.7485, 24: 0.7541}
    ours = Cubic(**WoodFisher.papers["mobilenetv1"].options["schedule"]).at(0.7541, 100)
    assert list(ours) == list(published)
    assert all(abs(ours[epoch] - zeros) < 0.006 for epoch, zeros in published.items())


@pytest.mark.parametrize("variant", WoodFisher.papers)
def test_the_authors_settings_are_valid(variant: str) -> None:
    paper = WoodFisher.papers[variant]
    pruner = WoodFisher(paper.sparsity, WoodFisherOptions(**paper.options))
    assert paper.sparsity in paper.results or variant == "resnet50-flops"
    assert pruner.options.gradients == 400


def test_weights_that_cost_more_go_earlier_by_the_power_of_what_they_cost() -> None:
    """The toy's first layer has 36 output places for 6 x 6 images, its head one: 72 operations a weight and 2."""
    model = toy_network()
    scores = {name: torch.rand(model.get_parameter(name).shape) for name in ("0.weight", "3.weight", "8.weight")}
    pruner, model_ = make_flops(0.3), toy_network()
    pruner.start(model_, Mask.ones(prunable(model_, head=True)), Plan(0, 0, batches=toy_draw()))
    found = pruner.compared(model, scores)
    for name, operations in (("0.weight", 72), ("3.weight", 72), ("8.weight", 2)):
        torch.testing.assert_close(found[name], scores[name] / operations**0.3)
    costs = [2 * 36, 2 * 36, 2]
    flops = []
    for power in (0.0, 0.3):
        model = toy_network()
        mask = Mask.ones(prunable(model, head=True))
        kept = make_flops(power).start(model, mask, Plan(0, 0, batches=toy_draw())).counts()
        flops.append(sum(cost * count for cost, count in zip(costs, kept.values(), strict=True)))
    assert flops[1] < flops[0]


def toy_draw() -> Any:
    return batches_from(toy_data(), 0, 0, torch.device("cpu"))


def make_flops(power: float) -> WoodFisher:
    return WoodFisher(0.7, WoodFisherOptions(gradients=6, batch=4, block=50, flops_power=power))


@pytest.mark.parametrize("options", [{"allocation": "uniform"}, {"pattern": "2:4"}])
def test_operations_do_not_count_where_layers_are_not_compared(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="flops_power compares layers"):
        WoodFisherOptions(flops_power=0.3, **options)


def test_in_training_kept_weights_move_and_the_mask_holds() -> None:
    """Three updates in sixteen steps, after 2, 6 and 11; at each most of the kept weights move."""
    model, data = toy_network(), toy_data()
    moved: dict[int, float] = {}

    class Watched(WoodFisher):
        def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
            before = {n: model.get_parameter(n).detach().clone() for n in mask}
            found = super().update(model, mask, step, batch)
            count = sum(int((model.get_parameter(n) != before[n])[found[n]].sum()) for n in found)
            if found is not mask:
                moved[step] = count / found.kept
            return found

    pruner = Watched(
        0.7, WoodFisherOptions(**WoodFisher.brief | {"schedule": Cubic(start=0.1, end=0.7, updates=3, initial=0.2)})
    )
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    sparsities: list[float] = []
    fit.progress = lambda done, total, how: None if how.startswith(PRUNING) else sparsities.append(fit.mask.sparsity)
    fitted = fit.run()
    assert list(moved) == [2, 6, 11] and min(moved.values()) > 0.9
    assert sparsities[1] == 0 and abs(sparsities[2] - 0.2) < 1 / 952 and abs(sparsities[11] - 0.7) < 1 / 952
    assert fitted.mask.holds(model) and np.isfinite([row["val_loss"] for row in fitted.history]).all()
