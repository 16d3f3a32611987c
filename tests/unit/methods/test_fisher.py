"""Blocks of the Fisher matrix: their inverses, the files they come from, and what is left of these."""

import itertools
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune import fisher, fisher_pruner
from budwood.prune.fisher import Cut, Inverse, LayerFisher, averaged, by_gradients, by_products, workspace
from budwood.prune.woodfisher import WoodFisher, WoodFisherOptions
from budwood.testing.pruners import sparse_mask, toy_data, toy_network
from budwood.train.data import batches_from


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plainly(rows: Tensor, dampening: float) -> np.ndarray[Any, Any]:
    """The inverse of dampening + the mean of g g^T. rows: (N, c)."""
    g = rows.numpy()
    return np.linalg.inv(dampening * np.eye(g.shape[1]) + g.T @ g / len(g))


def whole(inverse: Inverse, vectors: Tensor, size: int) -> list[Tensor]:
    return [inverse.dense(), inverse.diagonal(), inverse.times(vectors), inverse.within(size)]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 12), groups=st.integers(1, 4), size=st.integers(1, 3), seed=st.integers(0, 99))
def test_both_forms_are_the_inverse(count: int, groups: int, size: int, seed: int) -> None:
    rows, vectors = random(2, count, groups * size, seed=seed), random(2, groups * size, seed=seed + 1)
    expected = torch.from_numpy(np.stack([plainly(block, 0.03) for block in rows]))
    corners = [[e[q : q + size, q : q + size] for q in range(0, groups * size, size)] for e in expected]
    wanted = [expected, expected.diagonal(dim1=1, dim2=2), (expected @ vectors[..., None])[..., 0]]
    wanted.append(torch.stack([torch.stack(block) for block in corners]))
    for inverse in (by_gradients(rows, count, 0.03), by_products(rows.mT @ rows, count, 0.03)):
        for found, right in zip(whole(inverse, vectors, size), wanted, strict=True):
            assert torch.allclose(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [4, 40])
def test_nearly_dependent_gradients_stay_finite(count: int) -> None:
    """Gradients that differ in the tenth digit, and a dampening of 1e-8: the diagonal is positive, and both forms are
    near the inverse made with four times the digits' distance."""
    rows = random(1, 1, 12).expand(1, count, 12) + 1e-10 * random(1, count, 12, seed=1)
    one, other = by_gradients(rows, count, 1e-8), by_products(rows.mT @ rows, count, 1e-8)
    assert all(bool(torch.isfinite(t).all()) for i in (one, other) for t in whole(i, random(1, 12), 4))
    assert float(one.diagonal().min()) > 0 and float(other.diagonal().min()) > 0
    g = rows[0, 0]  # all but one of the directions are left to the dampening: (I - g g^T / g^2) / dampening
    expected = (1 - g.square() / g.square().sum()) / 1e-8
    assert torch.allclose(one.diagonal()[0], expected, rtol=1e-5)
    assert torch.allclose(other.diagonal()[0], expected, rtol=1e-5)


def test_one_weight_the_gradients_leave_nothing_of_has_a_positive_diagonal() -> None:
    """1 / (dampening + g^2) is lost in the rounding of (1 - 1) / dampening; it is known all the same."""
    rows = torch.full((1, 1, 1), 1e9, dtype=torch.float64)
    assert by_gradients(rows, 1, 1e-8).diagonal().item() == pytest.approx(1e-18)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_refused(bad: float) -> None:
    rows = torch.full((1, 3, 2), bad, dtype=torch.float64)
    with pytest.raises(UserError, match="cannot be inverted"):
        by_gradients(rows, 3, 1e-5)
    with pytest.raises(UserError, match="cannot be inverted"):
        by_products(rows.mT @ rows, 3, 1e-5)


# -- a layer's blocks and files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 7, 30, 70, 200], ids=["few", "block", "whole", "two folds", "four folds"])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_layer_gives_the_inverses_of_its_blocks(
    tmp_path: Path, count: int, pruned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are 7 remaining weights each in the order of the flattened weight, the last one what is left."""
    monkeypatch.setattr(fisher, "CHUNK", 2 * 7 * 70)  # a block or two at a time
    kept = torch.rand(3, 4, 2, 1, generator=torch.Generator().manual_seed(1)) < (0.7 if pruned else 2.0)
    gradients = random(count, 3, 4, 2, 1).float()
    layer = LayerFisher(Cut(kept, 1, 7), tmp_path / "x", count)
    for gradient in gradients:
        layer.add(gradient)
    flat = gradients.double().flatten(1)[:, kept.flatten()]
    seen = 0
    for at, inverse in layer.inverses(0.01, torch.device("cpu")):
        for block, matrix in zip(range(at.start, at.stop), inverse.dense(), strict=True):
            expected = torch.from_numpy(plainly(flat[:, 7 * block : 7 * block + 7], 0.01))
            own = len(expected)
            assert torch.allclose(matrix[:own, :own], expected, rtol=1e-8, atol=1e-8)
            assert not matrix[:own, own:].any(), "what fills up the last block must not touch it"
            seen += own
    assert seen == int(kept.sum())
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= layer.bytes


def test_groups_lie_along_the_input_channels_and_in_one_block() -> None:
    values = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3, 1)
    cut = Cut(torch.ones(2, 4, 3, 1, dtype=torch.bool), 2, 5)
    assert cut.block == 4 and cut.blocks == 6
    assert cut.padded(cut.flat(values))[0].tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("size", [1, 2])
def test_there_and_back(size: int) -> None:
    kept = torch.rand(3, 4, 3, 1, generator=torch.Generator().manual_seed(2)) < 0.4
    values = random(3, 4, 3, 1)
    cut = Cut(kept, size, 6)
    assert torch.equal(cut.back(cut.padded(cut.flat(values))), values * kept)
    assert torch.equal(cut.back(cut.present), kept)


def test_groups_without_a_weight_take_no_room() -> None:
    kept = torch.zeros(2, 4, dtype=torch.bool)
    kept[1, 1] = True
    assert Cut(kept, 2, 8).count == 2 and Cut(kept, 1, 8).count == 1


def test_a_layer_without_weights_has_no_blocks(tmp_path: Path) -> None:
    layer = LayerFisher(Cut(torch.zeros(2, 4, dtype=torch.bool), 1, 8), tmp_path / "x", 3)
    layer.add(torch.ones(2, 4))
    assert list(layer.inverses(1.0, torch.device("cpu"))) == [] and layer.bytes == 0
    assert not layer.cut.back(layer.cut.present.double()).any()


# -- gradients and the disk ----------------------------------------------------------------------------------------


def test_a_mini_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    """40 images go through the network in two parts of 20."""
    model, data = toy_network(), toy_data(40)
    plan = Plan(1, 1, batches=batches_from(data, 0, 0, torch.device("cpu")))
    found = list(averaged(model, ["0.weight", "8.weight"], plan, 2, 40, 3))
    weights = [model.get_parameter(n) for n in ("0.weight", "8.weight")]
    images, targets = data.tensors
    expected = torch.autograd.grad(F.cross_entropy(model.eval()(images), targets), weights)
    for row in found:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(row, expected, strict=True))


def test_a_shorter_part_counts_for_less() -> None:
    """Of 50 images in parts of 20 the third has 10, and makes a mini-batch with 20 of the next epoch."""
    model, names = toy_network(), ["0.weight", "8.weight"]
    plan = Plan(1, 1, batches=batches_from(toy_data(50), 0, 0, torch.device("cpu")))
    assert plan.batches is not None
    _, found = averaged(model, names, plan, 2, 40, 3)
    parts = list(itertools.islice(plan.batches(20, 3), 2, 4))
    assert [len(images) for images, _ in parts] == [10, 20]
    images, targets = (torch.cat(both) for both in zip(*parts, strict=True))
    weights = [model.get_parameter(name) for name in names]
    expected = torch.autograd.grad(F.cross_entropy(model.eval()(images), targets), weights)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_the_folder_is_fresh_and_goes_in_any_case(tmp_path: Path) -> None:
    plan = Plan(1, 1, scratch=tmp_path / "scratch")
    left = tmp_path / "scratch" / "fisher0" / "0.rows"
    left.parent.mkdir(parents=True)
    left.write_text("of a run that was killed")
    with workspace(plan) as folder:
        assert folder == left.parent and not list(folder.iterdir())
    assert not folder.exists()
    with pytest.raises(RuntimeError), workspace(Plan(1, 1)) as elsewhere:
        (elsewhere / "0.rows").write_text("much")
        raise RuntimeError
    assert not elsewhere.exists()


def make(**options: Any) -> WoodFisher:
    chosen = {"gradients": 6, "batch": 4, "block": 30, "dampening": 1e-3} | options
    return WoodFisher(0.5, WoodFisherOptions(**chosen))


def at_once(pruner: WoodFisher, mask: Mask | None = None, **plan: Any) -> tuple[Mask, nn.Module]:
    model = toy_network()
    mask = Mask.ones(prunable(model, head=True)) if mask is None else mask
    mask.apply_(model)
    draw = batches_from(toy_data(), 0, 0, torch.device("cpu"))
    return pruner.start(model, mask, Plan(0, 0, batches=draw, **plan)), model


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write longer files, as it does where the disk is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with files_of_at_most(2000), pytest.raises(UserError, match=f"cannot be kept in {tmp_path}") as error:
        at_once(make(), scratch=tmp_path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_only_what_is_written_is_a_full_disk(tmp_path: Path) -> None:
    """A photograph that is gone while gradients are drawn is another matter."""

    def gone(size: int, salt: int) -> Any:
        raise FileNotFoundError("photo.jpg")

    with pytest.raises(FileNotFoundError, match=r"photo\.jpg"):
        make().start(toy_network(), Mask.ones(prunable(toy_network())), Plan(0, 0, batches=gone, scratch=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_broken_off_goes_on_with_the_next_pass(tmp_path: Path) -> None:
    """Three passes of 6 gradients and twice 3 layers; broken off in the third. What is read is not drawn again."""
    found, model = at_once(make(recomputations=3))
    told: list[int] = []

    def stop(done: int, total: int) -> None:
        told.append(done)
        if done == 2 * 12 + 3:
            raise KeyboardInterrupt

    for damaged in (False, True):
        with pytest.raises(KeyboardInterrupt):
            at_once(make(recomputations=3), scratch=tmp_path, progress=stop)
        (kept,) = tmp_path.iterdir()
        if damaged:
            kept.write_bytes(kept.read_bytes()[:-10])
        told.clear()
        again, other = at_once(make(recomputations=3), scratch=tmp_path, progress=lambda done, _: told.append(done))
        assert told[0] == (1 if damaged else 25) and told[-1] == 36
        assert again == found
        assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
        kept.unlink()


def test_too_little_room_is_refused_before_a_gradient_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher_pruner, "room", lambda folder: 10_000)
    told: list[int] = []
    with pytest.raises(UserError, match=r"3\.weight take 0\.0 GB and .* room for 0\.0 GB"):
        at_once(make(), progress=lambda done, total: told.append(done))
    assert told == []


@pytest.mark.parametrize("sparse", [False, True])
def test_layers_in_parts_come_to_the_same(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two of the three layers everything is drawn twice in two parts: the same mask and weights."""
    mask = Mask.ones(prunable(toy_network(), head=True))
    mask = sparse_mask(mask) if sparse else mask
    found, model = at_once(make(), mask)
    # 6 gradients of 4 bytes; the layers have 216, 576 and 160 weights (with a sparse mask 60 % of these).
    monkeypatch.setattr(fisher_pruner, "room", lambda folder: 6 * 4 * (576 + 160))
    told: list[tuple[int, int]] = []
    again, other = at_once(make(), mask, progress=lambda done, total: told.append((done, total)))
    assert again == found
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
    draws = 1 if sparse else 4
    assert [done for done, _ in told] == list(range(1, draws * 6 + 2 * 3 + 1)) and told[-1][0] == told[-1][1]


def test_nothing_to_prune_draws_nothing() -> None:
    model = toy_network()
    mask = Mask.ones(prunable(model, head=True))
    assert WoodFisher(0.0, WoodFisherOptions()).start(model, mask, Plan(0, 0)) is mask


def test_without_images_it_says_so() -> None:
    model = toy_network()
    with pytest.raises(UserError, match="looks at images"):
        make().start(model, Mask.ones(prunable(model, head=True)), Plan(0, 0))


def test_what_cannot_be_reached_is_refused_before_images_are_asked_for() -> None:
    model = toy_network()
    mask = sparse_mask(Mask.ones(prunable(model, head=True)))
    with pytest.raises(UserError, match="already"):
        WoodFisher(0.1, WoodFisherOptions()).start(model, mask, Plan(0, 0))
