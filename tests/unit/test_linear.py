"""A linear head on frozen features: against a forward pass by hand, scikit-learn, and plain PyTorch."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.checkpoint import Lineage
from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Pruner
from budwood.core.spec import Recipe
from budwood.core.task import SPLITS, Preprocessing, Split
from budwood.models.network import Network, prunable
from budwood.tasks.images import transforms
from budwood.tasks.samples import SampleTask
from budwood.transfer.full import full
from budwood.transfer.linear import REGULARISATION, features, fit_head, linear, logits

SIZES = {"train": 60, "val": 20, "test": 20}


class Tones(SampleTask):
    """Noisy images whose mean colour is the class's."""

    name, source, licence = "tones", "made here", "none"
    read = staticmethod(Image.fromarray)

    def __init__(self, classes: int) -> None:
        self.classes = tuple(f"tone {k}" for k in range(classes))
        self.notes = []
        chance = np.random.default_rng(classes)
        tones = chance.integers(90, 166, (classes, 3))
        self.samples = {}
        for split in SPLITS:
            targets = [k % classes for k in range(SIZES[split])]
            pictures = [np.clip(tones[k] + chance.normal(0, 60, (20, 20, 3)), 0, 255).astype(np.uint8) for k in targets]
            self.samples[split] = list(zip(pictures, targets, strict=True))

    def digest(self) -> str:
        return "0" * 64


def network(head: Callable[[int], nn.Module] = lambda width: nn.Linear(width, 7)) -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), head(8),
    )  # fmt: skip
    module[1].running_mean.uniform_(-0.1, 0.1)
    weights = prunable(module, head=True)
    mask = Mask({name: torch.rand(w.shape) < 0.6 for name, w in weights.items()})
    mask.apply_(module)
    lineage = Lineage(architecture="toy", num_classes=7, preprocessing=Preprocessing(size=16, resize=16))
    return Network(module, mask, lineage)


def by_hand(task: Tones, split: Split, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The features as a formula: no hook, no module."""
    data = task.load(split, transforms(Preprocessing(size=16, resize=16), train=False))
    images = torch.stack([data[i][0] for i in range(SIZES[split])])
    x = F.conv2d(images, state["0.weight"], state["0.bias"], stride=2)
    x = F.batch_norm(x, state["1.running_mean"], state["1.running_var"], state["1.weight"], state["1.bias"])
    x = F.conv2d(x.relu(), state["3.weight"], state["3.bias"]).relu().mean((2, 3))
    return x, torch.tensor(task.targets(split))


@pytest.mark.parametrize("workers", [0, 1])
def test_features_are_what_the_classifier_sees(tmp_path: Path, workers: int) -> None:
    task, net = Tones(5), network()
    expected = by_hand(task, "train", net.module.state_dict())
    data = task.load("train", transforms(net.lineage.preprocessing, train=False))
    found = features(net, data, tmp_path / "made" / "train.safetensors", workers)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1], expected[1]) and found[0].dtype == torch.float32
    assert not net.module.get_submodule("8")._forward_pre_hooks
    with torch.no_grad():
        net.module[0].weight.zero_()
    again = features(net, data, tmp_path / "made" / "train.safetensors", workers)  # from the file
    assert torch.equal(again[0], found[0]) and torch.equal(again[1], found[1])


def test_stored_features_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    task, net, file = Tones(2), network(), tmp_path / "x.safetensors"
    view = transforms(net.lineage.preprocessing, train=False)
    features(net, task.load("val", view), file)
    with pytest.raises(UserError, match="holds 20 features for 60 images; delete it"):
        features(net, task.load("train", view), file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged; delete it"):
        features(net, task.load("val", view), file)


def clouds(classes: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points around a centre for each class, on axes of very different scale and one that is constant."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1.5, (classes, 6))
    targets = np.arange(count) % classes
    points = centres[targets] + chance.normal(0, 1, (count, 6))
    points = points * [1, 10, 100, 0.1, 0.01, 1] + [0, 5, -300, 0, 1, 7]
    points[:, 5] = 3.25
    return torch.from_numpy(points).float(), torch.from_numpy(targets)


@pytest.mark.parametrize("classes", [2, 5])
def test_lbfgs_is_scikit_learns_pipeline(classes: int) -> None:
    train, val = clouds(classes, 200, 1), clouds(classes, 150, 2)
    head, history = fit_head(train, val, classes, Recipe(), "top1", 0)
    assert [row["C"] for row in history] == list(REGULARISATION)
    accuracies, pipelines = [], []
    for c in REGULARISATION:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000, tol=1e-8))
        pipeline.fit(train[0].double().numpy(), train[1].numpy())
        pipelines.append(pipeline)
        accuracies.append(pipeline.score(val[0].double().numpy(), val[1].numpy()))
    assert [row["val_top1"] for row in history] == pytest.approx(accuracies, abs=2 / 150)
    chosen = pipelines[[row["val_top1"] for row in history].index(max(row["val_top1"] for row in history))]
    expected = chosen.predict_proba(val[0].double().numpy())
    found = logits(head, val[0]).double().softmax(1).numpy()
    assert head[0].shape == (classes, 6) and head[1].shape == (classes,)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_sgd_is_the_plain_loop() -> None:
    """In the order of the run: what is compared is the arithmetic, so the batches are read off a first pass."""
    train, val = clouds(3, 100, 1), clouds(3, 30, 2)
    train, val = (train[0] / 100, train[1]), (val[0] / 100, val[1])
    recipe = Recipe(epochs=4, batch_size=16, lr=0.2, select="last", head="sgd",
                    label_smoothing=0.1)  # fmt: skip
    taken: list[list[int]] = []

    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.__getitem__ and isinstance(args[1], list):
                taken.append(args[1])
            return super().__torch_function__(func, types, args, kwargs or {})

    head, history = fit_head((train[0].as_subclass(Watched), train[1]), val, 3, recipe, "top1", 11)
    assert len(taken) == 4 * 7 and sorted(i for batch in taken[:7] for i in batch) == list(range(100))
    start, _ = fit_head(train, val, 3, recipe.model_copy(update={"lr": 1e-30, "epochs": 1}), "top1", 11)
    plain = nn.Linear(6, 3)
    plain.load_state_dict({"weight": torch.as_tensor(start[0]), "bias": torch.as_tensor(start[1])})
    optimizer = torch.optim.SGD(plain.parameters(), 0.2, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * 7)
    for batch in taken:
        optimizer.zero_grad()
        logs = plain(train[0][batch]).log_softmax(1)
        wanted = F.one_hot(train[1][batch], 3) * 0.9 + 0.1 / 3
        (-(wanted * logs).sum(1)).mean().backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(torch.as_tensor(head[0]).as_subclass(Tensor), plain.weight.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.as_tensor(head[1]).as_subclass(Tensor), plain.bias.detach(), rtol=0, atol=1e-6)
    assert len(history) == 4


RECIPES: Sequence[Recipe] = [
    Recipe(head="lbfgs"),
    Recipe(head="sgd", epochs=30, batch_size=16, lr=0.05),
    Recipe(head="sgd", epochs=3, batch_size=16, select="last"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=["lbfgs", "sgd", "last"])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_assembled_network_answers_as_its_head_on_the_features(recipe: Recipe, classes: int) -> None:
    task, net = Tones(classes), network()
    before = copy.deepcopy(net.module.state_dict())
    done = linear(net, task, recipe, seed=3)
    state = done.network.module.state_dict()
    for name, value in before.items():
        assert name.startswith("8.") or torch.equal(value, state[name]), name
    x, targets = by_hand(task, "val", before)
    answers = x @ state["8.weight"].T + state["8.bias"]
    row = done.history[done.epoch]
    assert row["val_top1"] == pytest.approx((answers.argmax(1) == targets).float().mean().item())
    assert row["val_loss"] == pytest.approx(F.cross_entropy(answers, targets).item(), abs=1e-4)
    data = task.load("val", transforms(net.lineage.preprocessing, train=False))
    with torch.no_grad():
        whole = done.network.module.eval()(torch.stack([data[i][0] for i in range(20)]))
    torch.testing.assert_close(whole, answers, rtol=1e-4, atol=1e-4)
    if recipe.select == "best":
        assert row["val_top1"] == max(r["val_top1"] for r in done.history)
    else:
        assert done.epoch == len(done.history) - 1
    assert set(done.network.mask) == {"0.weight", "3.weight"} and done.network.mask.holds(done.network.module)
    assert done.network.lineage.classes == task.classes and done.network.lineage.num_classes == classes


def test_both_heads_and_full_transfer_report_alike() -> None:
    """The same columns, so that one table and one figure serve them all."""
    task = Tones(2)
    found = [linear(network(), task, recipe, 0) for recipe in RECIPES[:2]]
    found.append(full(network(), task, Pruner(), Recipe(epochs=2, batch_size=16), 0))
    for done in found:
        assert all({"epoch", "val_top1", "val_mean_per_class", "val_loss"} <= set(row) for row in done.history)
        assert [row["epoch"] for row in done.history] == list(range(len(done.history)))
        assert 0 <= done.epoch < len(done.history)


def test_the_same_seed_gives_the_same_head() -> None:
    task = Tones(5)
    first, second, other = (linear(network(), task, RECIPES[2], seed).network.module[8].weight for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_head_that_is_a_convolution_is_refused() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 7, 1), nn.Flatten())
    lineage = Lineage(architecture="toy", num_classes=7, preprocessing=Preprocessing(size=16, resize=16))
    net = Network(module, Mask.ones(prunable(module, head=True)), lineage)
    with pytest.raises(UserError, match="toy has a convolution as its head; transfer it with --mode full"):
        linear(net, Tones(2), Recipe(), 0)


def test_sgd_without_an_epoch_is_refused() -> None:
    with pytest.raises(UserError, match="at least one epoch"):
        linear(network(), Tones(2), Recipe(head="sgd", epochs=0), 0)
