"""ExactOBS against plain linear algebra: what every removal costs is found by solving for the rest, again and again."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune import removal
from budwood.prune.exact_obs import ExactOBS, cut, solve
from budwood.prune.inputs import products
from budwood.prune.layerwise import Layer, Layerwise, cheapest, damped, to_rows
from budwood.prune.magnitude import Magnitude
from budwood.prune.removal import Trace, trace
from budwood.prune.sparsegpt import SparseGPT, sweep
from budwood.prune.structure import parse, ungroup
from budwood.prune.wanda import Wanda
from budwood.testing.pruners import sparse_mask, toy_data, toy_network
from budwood.train.data import batches_from

SINGLE = parse("unstructured")


def correlated(columns: int, count: int = 400, seed: int = 0) -> Tensor:
    """Inputs (count, columns) float64, each near a mix of few others."""
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(count, max(2, columns // 3), generator=random, dtype=torch.float64)
    mixed = few @ torch.randn(few.shape[1], columns, generator=random, dtype=torch.float64)
    return mixed + 0.3 * torch.randn(count, columns, generator=random, dtype=torch.float64)


def layer_of(weight: Tensor, hessian: Tensor, kept: Tensor | None = None) -> Layer:
    """weight (R, D), hessian (D, D): a layer of one group, H as it is."""
    kept = torch.ones_like(weight, dtype=torch.bool) if kept is None else kept
    dead = torch.zeros(1, weight.shape[1], dtype=torch.bool)
    return Layer("layer", (weight * kept)[None].double(), kept[None], hessian[None].double(), dead)


def random_layer(rows: int, columns: int, seed: int = 0, density: float = 1.0) -> Layer:
    x = correlated(columns, seed=seed)
    random = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(rows, columns, generator=random, dtype=torch.float64)
    return layer_of(weight, 2 * x.T @ x, torch.rand(rows, columns, generator=random) < density)


def best(weight: Tensor, hessian: Tensor, stays: list[int]) -> tuple[float, Tensor]:
    """The least squared error of a row (D,) that keeps these columns, and the row."""
    found = torch.zeros_like(weight)
    if stays:
        found[stays] = torch.linalg.solve(hessian[stays][:, stays], (hessian @ weight)[stays])
    change = found - weight
    return float(change @ hessian @ change) / 2, found


def squared_error(layer: Layer, weight: Tensor) -> float:
    change = (weight - layer.weight)[0]
    return float(((change @ layer.hessian[0]) * change).sum()) / 2


def slowly(weight: Tensor, hessian: Tensor, kept: Tensor, pattern: str) -> tuple[list[int], list[float], list[Tensor]]:
    """Blocks of a row in the order in which they go, what each adds to the error, and the row after each."""
    structure = parse(pattern)
    size = structure.size if structure.kind == "block" else 1
    stays, order, losses, rows, error = kept.nonzero().flatten().tolist(), [], [], [], 0.0
    while True:
        tried = {}
        for block in sorted({column // size for column in stays}):
            group = [column for column in range(len(weight)) if column // structure.size == block // structure.size]
            zeros = len([column for column in group if column not in stays])
            if structure.kind != "n:m" or zeros < structure.size - structure.most:
                tried[block] = best(weight, hessian, [column for column in stays if column // size != block])
        if not tried:
            return order, losses, rows
        block = min(tried, key=lambda block: tried[block][0])
        order.append(block)
        losses.append(tried[block][0] - error)
        rows.append(tried[block][1])
        error = tried[block][0]
        stays = [column for column in stays if column // size != block]


@pytest.mark.parametrize("density", [1.0, 0.6])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:4", "1x4", "1x2", "1x3"])
def test_removals_are_those_of_plain_linear_algebra(pattern: str, density: float) -> None:
    """Order, losses and the weights after every third removal, also where a row had zeros before."""
    layer = random_layer(3, 12, density=density)
    found = trace(layer, parse(pattern))
    for row in range(3):
        weight, kept = layer.weight[0, row], layer.kept[0, row]
        order, losses, rows = slowly(weight, layer.hessian[0], kept, pattern)
        steps = len(order)
        assert found.order[row].tolist() == order + [-1] * (found.order.shape[1] - steps)
        assert found.losses[row, :steps].tolist() == pytest.approx(losses, rel=1e-6, abs=1e-8)
        assert bool(torch.isinf(found.losses[row, steps:]).all())
        for after in rows[::3]:
            mask = layer.kept.clone()
            mask[0, row] = after != 0
            assert torch.allclose(solve(layer, mask)[0, row], after, atol=1e-8)


def test_groups_have_an_h_each() -> None:
    layers = [random_layer(2, 6, seed) for seed in (0, 5)]
    both = Layer(
        "both",
        torch.cat([x.weight for x in layers]),
        torch.cat([x.kept for x in layers]),
        torch.cat([x.hessian for x in layers]),
        torch.cat([x.dead for x in layers]),
    )
    found = trace(both, SINGLE)
    for i, layer in enumerate(layers):
        assert torch.equal(found.order[2 * i : 2 * i + 2], trace(layer, SINGLE).order)


def test_rows_a_few_at_a_time_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(5, 12, density=0.7)
    found = trace(layer, SINGLE)
    monkeypatch.setattr(removal, "MEMORY", 2 * 12 * 12 * 8)
    few = trace(layer, SINGLE)
    assert torch.equal(few.order, found.order) and torch.allclose(few.losses, found.losses)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 16), share=st.floats(0, 1), pattern=st.sampled_from([1, 2]))
def test_losses_add_up_to_the_squared_error_of_the_outputs(seed: int, columns: int, share: float, pattern: int) -> None:
    """For every row and number of removals: the sum is |w X - w' X|^2, with the weights solved for at the end."""
    columns *= pattern
    structure = parse("1x2" if pattern == 2 else "unstructured")
    layer, x = random_layer(2, columns, seed), correlated(columns, seed=seed)
    found = trace(layer, structure)
    count = round(share * found.order.shape[1])
    kept = layer.kept.clone()
    for row in range(2):
        for block in found.order[row, :count].tolist():
            kept[0, row, block * pattern : (block + 1) * pattern] = False
    outputs = x @ (solve(layer, kept) - layer.weight)[0].T
    assert outputs.square().sum(0).tolist() == pytest.approx(
        found.losses[:, :count].sum(1).tolist(), rel=1e-5, abs=1e-7
    )


def test_one_update_by_hand() -> None:
    """H = ((2, 1), (1, 2)), so H^-1 = ((2, -1), (-1, 2)) / 3. Of w = (3, 1) the scores are 9 / (2/3) / 2 = 6.75 and
    1 / (2/3) / 2 = 0.75, so the second goes, and the first becomes 3 + 1 * (1/3) / (2/3) = 3.5. It is then alone:
    its removal costs 3.5^2 * 2 / 2 = 12.25."""
    layer = layer_of(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    found = trace(layer, SINGLE)
    assert found.order.tolist() == [[1, 0]]
    assert found.losses.flatten().tolist() == pytest.approx([0.75, 12.25])
    kept = cut(layer, found, SINGLE, 1)
    assert kept.tolist() == [[[True, False]]]
    assert solve(layer, kept).flatten().tolist() == pytest.approx([3.5, 0.0])


def test_the_cheapest_removals_of_all_rows_are_made() -> None:
    """A later removal cannot be had without the one before: the second row's 0.1 costs 5 as well."""
    layer = layer_of(torch.ones(2, 3), torch.eye(3))
    found = Trace(torch.tensor([[2, 1, 0], [0, 1, 2]]), torch.tensor([[1.0, 2.0, 9.0], [5.0, 0.1, 6.0]]))
    counted = [[int(row.sum()) for row in cut(layer, found, SINGLE, count)[0]] for count in range(7)]
    assert counted == [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3], [2, 3], [3, 3]]


def test_cheapest_stops_with_the_removal_that_is_enough() -> None:
    losses, sizes = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([2, 2, 1, 2])
    assert cheapest(losses, sizes, 0).tolist() == [False] * 4
    assert cheapest(losses, sizes, 1).tolist() == [False, True, False, False]
    assert cheapest(losses, sizes, 4).tolist() == [False, True, False, True]
    assert cheapest(losses, sizes, 5).tolist() == [False, True, True, True]
    assert cheapest(losses, sizes, 99).tolist() == [True] * 4


def test_of_equal_weights_the_first_stay() -> None:
    layer = layer_of(torch.ones(2, 4), torch.eye(4))
    assert cut(layer, trace(layer, SINGLE), SINGLE, 3)[0].int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("pattern", ["unstructured", "1x4"])
def test_a_row_kept_whole_stays_to_the_bit(pattern: str, density: float) -> None:
    layer = random_layer(3, 12, density=density)
    method = ExactOBS(0.0, ExactOBS.Options(pattern=pattern))
    weight, kept = method.settle(layer, int(layer.kept.sum()))
    assert torch.equal(weight, layer.weight) and torch.equal(kept, layer.kept)


def test_nothing_left_to_remove() -> None:
    layer = layer_of(torch.ones(2, 4), torch.eye(4), torch.zeros(2, 4, dtype=torch.bool))
    weight, kept = ExactOBS(0.5).settle(layer, 0)
    assert not bool(kept.any()) and not bool(weight.any())


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("pattern", ["unstructured", "1x4"])
@pytest.mark.parametrize(("relu", "factor"), [(True, 1.05), (False, 1.5)])
def test_several_removals_at_a_time_come_near(
    pattern: str, sparsity: float, relu: bool, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in wide layers, the squared error is not far above that of one by one; a sweep's is. Where two thirds of the
    inputs are nearly given by the others, it is farther."""
    x = correlated(192)
    x = (x / 8 + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)).relu() if relu else x
    layer = layer_of(random_layer(12, 192).weight[0], 2 * x.T @ x)
    wanted, errors, masks = round((1 - sparsity) * layer.weight.numel()), [], []
    for border, rounds in ((192, 1), (191, 64)):
        monkeypatch.setattr(removal, "BORDER", border)
        monkeypatch.setattr(removal, "ROUNDS", rounds)
        weight, kept = ExactOBS(0.5, ExactOBS.Options(pattern=pattern)).settle(layer, wanted)
        assert wanted - 4 < int(kept.sum()) <= wanted
        masks.append(kept)
        errors.append(squared_error(layer, weight))
    assert errors[1] < factor * errors[0] < squared_error(layer, sweep(layer, parse(pattern), wanted)[0])
    assert pattern == "1x4" or not torch.equal(*masks)


@pytest.mark.parametrize(("width", "together"), [(576, 1), (577, 9)])
def test_one_by_one_up_to_576_inputs_a_64th_beyond(width: int, together: int) -> None:
    """The border that docs/explain/methods.md states: what goes next is the least of those left, once each has been
    looked at again."""
    x = correlated(width, count=1000)
    layer = layer_of(torch.randn(1, width, generator=torch.Generator().manual_seed(1)), 2 * x.T @ x)
    weight, stays, wanted = layer.weight[0, 0].clone(), torch.ones(width, dtype=torch.bool), []
    for _ in range(18 // together):
        left = stays.nonzero().flatten()
        inverse = torch.linalg.inv(layer.hessian[0][left][:, left])
        least = (weight[left] ** 2 / inverse.diagonal()).argsort()[:together]
        wanted += left[least].tolist()
        stays[left[least]] = False
        weight = best(layer.weight[0, 0], layer.hessian[0], stays.nonzero().flatten().tolist())[1]
    assert trace(layer, SINGLE).order[0, :18].tolist() == wanted


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1x2"])
@pytest.mark.parametrize("rounds", [1, 5])
def test_losses_of_several_removals_are_exact(pattern: str, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is removed at a time, the losses so far are the error of the best row without what is gone."""
    layer, structure = random_layer(3, 24, density=0.8), parse(pattern)
    monkeypatch.setattr(removal, "BORDER", 0)
    monkeypatch.setattr(removal, "ROUNDS", rounds)
    found = trace(layer, structure)
    size = structure.size if structure.kind == "block" else 1
    for row in range(3):
        stays, so_far = set(layer.kept[0, row].nonzero().flatten().tolist()), 0.0
        for block, loss in zip(found.order[row].tolist(), found.losses[row].tolist(), strict=True):
            if block < 0:
                continue
            stays -= set(range(block * size, (block + 1) * size))
            so_far += loss
            assert so_far == pytest.approx(best(layer.weight[0, row], layer.hessian[0], sorted(stays))[0], rel=1e-6)
        if structure.kind == "n:m":
            kept = torch.zeros(24, dtype=torch.bool)
            kept[sorted(stays)] = True
            before = layer.kept[0, row].reshape(-1, 4).sum(1)
            assert torch.equal(kept.reshape(-1, 4).sum(1), before.clamp(max=2))
        else:
            assert not stays


def test_rows_of_a_weight_have_the_input_channels_last() -> None:
    weight = torch.arange(48).reshape(4, 3, 2, 2)
    rows = to_rows(weight, 2)
    assert rows.shape == (2, 2, 12)
    assert rows[1, 0, :6].tolist() == [weight[2, i, 0, j] for j in (0, 1) for i in range(3)]
    assert torch.equal(ungroup(rows, weight.shape), weight)


def test_damping_is_relative_to_the_mean_of_the_live_inputs() -> None:
    """The mean of 4 and 2 is 3; the dead input has that as well."""
    found = damped(torch.diag(torch.tensor([4.0, 0.0, 2.0]).double())[None], 0.1)
    assert torch.allclose(found[0].diagonal(), torch.tensor([4.3, 3.3, 2.3]).double())


def test_damping_where_there_are_fewer_inputs_than_columns() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).double()
    hessian = (2 * x.T @ x)[None]
    assert torch.equal(damped(hessian, 0.0), damped(hessian, 0.01))
    full = hessian + torch.eye(8)
    assert torch.equal(damped(full, 0.0), full)
    assert torch.equal(damped(torch.zeros(1, 2, 2).double(), 0.0), torch.eye(2).double()[None])


# -- whole networks -----------------------------------------------------------------------------------------------


def toy_plan(**facts: Any) -> Plan:
    return Plan(0, 0, batches=batches_from(toy_data(), 0, 0, torch.device("cpu")), **facts)


def dense_mask(model: nn.Module) -> Mask:
    return Mask.ones(prunable(model, head=True))


def correlated_plan() -> Plan:
    """Images (16, 4, 6, 6) whose neighbours, in place and in channel, are alike; not negative, as behind a ReLU."""
    random = torch.Generator().manual_seed(0)
    images = torch.nn.functional.avg_pool2d(torch.randn(16, 4, 8, 8, generator=random), 3, stride=1)
    images = (images + 0.5 * images.roll(1, dims=1)).relu()

    def batches(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield images[:size], torch.zeros(len(images[:size]))

    return Plan(0, 0, batches=batches)


LAYERS = {
    "plain": lambda: nn.Conv2d(4, 8, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2, stride=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
}


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_are_nearer_than_those_of_magnitude_and_of_the_sweep(kind: str, sparsity: float) -> None:
    """exact-obs <= sparsegpt <= magnitude, with as many weights, on the calibration images."""
    plan, errors = correlated_plan(), []
    images = next(plan.batches(16, 0))[0]
    for method in (ExactOBS, SparseGPT, Magnitude):
        torch.manual_seed(0)
        model = nn.Sequential(LAYERS[kind]())
        outputs = model(images).detach()
        known = {"images": 16} if issubclass(method, Layerwise) else {}
        pruner = method(sparsity, method.Options(keep_dense=(), **known))
        found = pruner.start(model, dense_mask(model), plan)
        found.apply_(model)
        assert found.total - found.kept == round(sparsity * found.total)
        errors.append(float((model(images) - outputs).square().sum().detach()))
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(("damping", "first"), [(0.0, 3.5), (1.0, 3.25)])
@pytest.mark.parametrize("method", [ExactOBS, SparseGPT])
def test_damping_by_hand(method: type[Layerwise], damping: float, first: float) -> None:
    """H is like ((2, 1), (1, 2)), so the first weight becomes 3 + 1/2; with its mean diagonal added it is like
    ((4, 1), (1, 4)): 3 + 1/4. The last weight is pruned."""
    images = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Identity())
    model.get_parameter("0.weight").data = torch.tensor([[3.0, 1.0]])
    plan = Plan(0, 0, batches=lambda size, salt: itertools.repeat((images, torch.zeros(3))))
    options = method.Options(images=3, damping=damping, keep_dense=())
    method(0.5, options).start(model, dense_mask(model), plan)
    kept = model.get_parameter("0.weight")[0, 0]
    # SparseGPT goes from left to right: what comes before does not move.
    assert float(kept.detach()) == pytest.approx(first if method is ExactOBS else 3.0)


def test_weights_of_dead_inputs_go_first_and_stay_as_they_are() -> None:
    """The second channel is always zero."""
    images = torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 0

    def batches(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield images[:size], torch.zeros(len(images[:size]))

    for share, method in [(0.25, ExactOBS), (0.2, ExactOBS), (0.25, SparseGPT), (0.2, SparseGPT)]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 8, 3))
        before = model[0].weight.detach().clone()
        pruner = method(share, method.Options(keep_dense=(), images=8, damping=0.0))
        found = pruner.start(model, dense_mask(model), Plan(0, 0, batches=batches))["0.weight"]
        after, live = model[0].weight.detach(), torch.tensor([True, False, True, True])
        assert bool(found[:, live].all())
        assert torch.equal(after[:, 1], before[:, 1] * found[:, 1])
        assert torch.allclose(after[:, live][found[:, live]], before[:, live][found[:, live]], atol=1e-5)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("method", [ExactOBS, SparseGPT])
@pytest.mark.parametrize(
    ("allocation", "pattern", "steps"),
    [("uniform", "unstructured", 3), ("global", "unstructured", 6), ("erk", "1x4", 2)],
)
def test_a_killed_run_goes_on_with_the_next_layer_to_the_same_bits(
    method: type[Layerwise], allocation: Any, pattern: str, steps: int, tmp_path: Path
) -> None:
    keep: Any = ("first",) if pattern == "1x4" else ()
    options = method.Options(allocation=allocation, pattern=pattern, images=32, keep_dense=keep)
    whole, told = toy_network(), []
    mask = method(0.7, options).start(
        whole, dense_mask(whole), toy_plan(progress=lambda done, total: told.append((done, total)))
    )
    passes = 2 if allocation == "global" else 1  # over the images, each followed by the layers
    layers = [(i + 1, steps) for i in range(steps)]
    parts = [layers[i : i + steps // passes] for i in range(0, steps, steps // passes)]
    assert told == [entry for part in parts for entry in [(32, 32), *part]]
    for killed in range(1, steps):
        scratch = tmp_path / f"{killed}"

        def stop(done: int, total: int, killed: int = killed) -> None:
            if done == killed:
                raise _Killed

        model = toy_network()
        with pytest.raises(_Killed):
            method(0.7, options).start(model, dense_mask(model), toy_plan(scratch=scratch, progress=stop))
        files = {path: path.stat().st_mtime_ns for path in scratch.iterdir()}
        assert len(files) == killed
        model = toy_network()
        again = method(0.7, options).start(model, dense_mask(model), toy_plan(scratch=scratch))
        assert again == mask
        assert all(torch.equal(p, whole.get_parameter(n)) for n, p in model.named_parameters())
        assert all(path.stat().st_mtime_ns == time for path, time in files.items())


@pytest.mark.parametrize("method", [ExactOBS, SparseGPT])
def test_global_prunes_most_where_it_costs_the_least(method: type[Layerwise]) -> None:
    """The sum of the relative errors is below that of the same sparsity everywhere, and the total is exact."""
    errors = {}
    for allocation in ("uniform", "global"):
        model = toy_network()
        dense = {name: p.detach().clone() for name, p in model.named_parameters()}
        options = method.Options(allocation=allocation, images=32, keep_dense=())
        found = method(0.7, options).start(model, dense_mask(model), toy_plan())
        assert found.total - found.kept == round(0.7 * found.total)
        total = 0.0
        for name, hessian in products(toy_network(), list(found), toy_plan(), 32):
            old = to_rows(dense[name], 1)[0].double()
            change = to_rows(model.get_parameter(name).detach(), 1)[0].double() - old
            place = to_rows(torch.arange(old.shape[1]).reshape(dense[name][:1].shape), 1).flatten()
            h = hessian[0][place][:, place]
            total += float(((change @ h) * change).sum() / ((old @ h) * old).sum())
        errors[allocation] = total
    assert errors["global"] < errors["uniform"]


@pytest.mark.parametrize("method", [ExactOBS, SparseGPT])
def test_blocks_of_several_layers_are_exact_to_a_block_together(method: type[Layerwise]) -> None:
    """576 and 160 weights: 30 % of each are no whole blocks."""
    model = toy_network()
    options = method.Options(pattern="1x4", images=32, keep_dense=("first",))
    mask = dense_mask(model).without(["0.weight"])
    found = method(0.7, options).start(model, mask, toy_plan())
    assert 0 <= round(0.3 * found.total) - found.kept < 4


@pytest.mark.parametrize("method", [ExactOBS, SparseGPT, Wanda])
def test_what_blocks_leave_goes_past_a_layer_that_is_dense(method: type[ExactOBS | SparseGPT | Wanda]) -> None:
    """ERK leaves the two small layers dense; what the large ones lack for a whole block is not lost there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 20, 3), nn.Conv2d(20, 4, 1), nn.Conv2d(4, 28, 3), nn.Conv2d(28, 4, 1), nn.Conv2d(4, 36, 3)
    )
    plan = Plan(0, 0, batches=lambda size, salt: itertools.repeat((torch.randn(size, 4, 9, 9), torch.zeros(size))))
    options = {"allocation": "erk", "pattern": "1x4", "images": 8, "keep_dense": ()}
    for percent in range(70, 81):
        found = method(percent / 100, method.Options(**options)).start(
            model, Mask.ones(prunable(model, head=True)), plan
        )
        wanted = found.total - round(percent / 100 * found.total)
        assert 0 <= wanted - found.kept < 4, f"{wanted - found.kept} too few at {percent} %"


@pytest.mark.parametrize("method", [ExactOBS, SparseGPT])
def test_sparsity_zero_changes_nothing(method: type[Layerwise]) -> None:
    model, before = toy_network(), toy_network()
    found = method(0.0, method.Options(images=32, keep_dense=())).start(model, dense_mask(model), toy_plan())
    assert found.kept == found.total
    assert all(torch.equal(p, before.get_parameter(n)) for n, p in model.named_parameters())


@pytest.mark.parametrize("method", [ExactOBS, SparseGPT])
def test_what_was_pruned_stays_pruned(method: type[Layerwise]) -> None:
    model = toy_network()
    before = sparse_mask(dense_mask(model))
    before.apply_(model)
    found = method(0.7, method.Options(images=32, keep_dense=())).start(model, before, toy_plan())
    assert not found.revived_since(before) and found.holds(model)
    with pytest.raises(UserError, match="already has"):
        method(0.3, method.Options(images=32, keep_dense=())).start(model, before, toy_plan())


@pytest.mark.parametrize("method", [ExactOBS, SparseGPT])
def test_weights_that_overflowed_are_refused(method: type[Layerwise]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        model[1].weight[0] = torch.nan
    with pytest.raises(UserError, match="weights of 1 are not finite"):
        method(0.5, method.Options(images=32, keep_dense=())).start(model, dense_mask(model), toy_plan())


@pytest.mark.parametrize("method", [ExactOBS, SparseGPT])
def test_without_images_it_says_so(method: type[Layerwise]) -> None:
    model = toy_network()
    with pytest.raises(UserError, match="looks at images"):
        method(0.5, method.Options(keep_dense=())).start(model, dense_mask(model), Plan(0, 0))
