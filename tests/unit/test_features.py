"""What the classifier sees: against a forward pass by hand; computed once, whoever asks."""

import hashlib
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.checkpoint import Lineage
from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.task import SPLITS, Preprocessing, Split
from budwood.engine.program import Program
from budwood.models.network import Network, prunable
from budwood.tasks.images import transforms
from budwood.tasks.samples import SampleTask
from budwood.transfer.features import backbone, features

VIEW = Preprocessing(size=16, resize=18, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
SIZES = {"train": 70, "val": 20, "test": 20}


class Noise(SampleTask):
    """Noise; every image that is read adds a byte to the file `log`, whichever process reads it."""

    name, source, licence = "noise", "made here", "none"
    classes, notes = ("a", "b", "c"), []

    def __init__(self, log: Path, pause: float = 0) -> None:
        chance = np.random.default_rng(0)
        self.log, self.pause = log, pause
        self.samples = {
            split: [(chance.integers(0, 256, (20, 24, 3), dtype=np.uint8), k % 3) for k in range(SIZES[split])]
            for split in SPLITS
        }

    def read(self, source: Any) -> Image.Image:
        time.sleep(self.pause)
        with self.log.open("ab") as file:
            file.write(b".")
        return Image.fromarray(source)

    @property
    def decoded(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def digest(self) -> str:
        return "0" * 64


def network() -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(6, 4),
    )  # fmt: skip
    module[1].running_mean.uniform_(-0.1, 0.1)
    return Network(module, Mask.ones(prunable(module)), Lineage(architecture="toy", num_classes=4, preprocessing=VIEW))


def by_hand(task: Noise, split: Split, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The features as a formula: no hook, no module, no file."""
    data = task.load(split, transforms(VIEW, train=False))
    x = F.conv2d(torch.stack([data[i][0] for i in range(SIZES[split])]), state["0.weight"], state["0.bias"])
    x = F.batch_norm(x, state["1.running_mean"], state["1.running_var"], state["1.weight"], state["1.bias"])
    return x.relu().mean((2, 3)), torch.tensor(task.targets(split))


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize(("cropped", "workers"), [(True, 0), (False, 0), (False, 1)])
def test_they_are_what_the_classifier_sees(
    tmp_path: Path, stored: bool, cropped: bool, workers: int, accelerate: bool
) -> None:
    task, net = Noise(tmp_path / "log"), network()
    net.module.train()
    expected = by_hand(task, "train", net.module.state_dict())
    where = {"cache": tmp_path / "made" / "here" if stored else None, "crops": tmp_path / "crops" if cropped else None}
    found = features(net, task, ["train"], **where, workers=workers, accelerate=accelerate)[0]["train"]
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1], expected[1]) and found[0].dtype == torch.float32
    assert not net.module[6]._forward_pre_hooks and not found[0].is_inference()
    with torch.no_grad():
        net.module[0].weight.zero_()
    before = task.decoded
    again = features(net, task, ["train"], **where, workers=workers, accelerate=accelerate)[0]["train"]
    assert torch.equal(again[0], found[0]) == stored  # from the file
    assert (task.decoded == before) == (stored or cropped)


def test_stored_ones_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    task, net = Noise(tmp_path / "log"), network()
    features(net, task, ["val"], tmp_path)
    file = tmp_path / "val.safetensors"
    file.rename(tmp_path / "train.safetensors")
    with pytest.raises(UserError, match=r"train.safetensors holds the features of other images; delete it"):
        features(net, task, ["train"], tmp_path)
    features(net, task, ["val"], tmp_path)
    task.samples["val"].reverse()
    with pytest.raises(UserError, match=r"val.safetensors holds the features of other images; delete it"):
        features(net, task, ["val"], tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"is damaged; delete it"):
        features(net, task, ["val"], tmp_path)


@pytest.mark.parametrize("shared", ["features", "crops"])
def test_processes_that_ask_at_once_share_the_work(tmp_path: Path, shared: str) -> None:
    """Of the same network (features) or, as here without a common cache, of several (crops)."""
    task, net = Noise(tmp_path / "log", pause=0.002), network()
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(3), context.Queue()

    def ask() -> None:
        torch.set_num_threads(1)  # the threads of the parent are not in the child
        where = (
            [tmp_path / "cache", None] if shared == "features" else [tmp_path / str(os.getpid()), tmp_path / "crops"]
        )
        start.wait(60)
        found = features(net, task, ["train"], *where)[0]["train"]
        answers.put(hashlib.sha256(found[0].numpy().tobytes() + found[1].numpy().tobytes()).hexdigest())

    children = [context.Process(target=ask) for _ in range(3)]
    for child in children:
        child.start()
    found = {answers.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(found) == 1 and task.decoded == 70
    left = [path.name for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix in (".lock", ".part")]
    assert left == []


def test_a_head_that_is_a_convolution_is_refused(tmp_path: Path) -> None:
    net = network()
    net.module[6] = nn.Conv2d(6, 4, 1)
    with pytest.raises(UserError, match="toy has a convolution as its head; transfer it with --mode full"):
        features(net, Noise(tmp_path / "log"), ["val"], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


class Scaled(nn.Sequential):
    """Something comes after the classifier, which features must not show."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1) * 3


def odd(x: Tensor) -> Tensor:
    """No operator of the engine's."""
    return torch.special.bessel_j0(x)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return odd(x)


@pytest.mark.parametrize("kind", [nn.Sequential, Scaled])
def test_the_engine_shows_what_pytorch_shows(kind: type[nn.Sequential]) -> None:
    net = network()
    net = replace(net, module=kind(*net.module.children()))
    images = torch.randn(5, 3, 16, 16)
    (quick, way), (plain, other) = backbone(net), backbone(net, accelerate=False)
    assert (way, other) == ("the engine", "PyTorch")
    assert isinstance(quick, Program) and not isinstance(plain, Program)
    torch.testing.assert_close(quick(images), plain(images), rtol=1e-5, atol=1e-6)
    assert quick(images).shape == (5, 6)


def test_a_network_that_the_engine_does_not_know_goes_through_pytorch(tmp_path: Path) -> None:
    net, task = network(), Noise(tmp_path / "log")
    layers = list(net.module.children())
    net = replace(net, module=nn.Sequential(*layers[:5], Odd(), layers[6]))
    assert not isinstance(backbone(net)[0], Program)
    kept, way = features(net, task, ["val"], tmp_path / "cache")
    found = kept["val"][0]
    assert way.startswith("PyTorch: ") and "bessel" in way
    assert features(net, task, ["val"], tmp_path / "cache")[1] == "an earlier run"
    expected = by_hand(task, "val", net.module.state_dict())[0]
    torch.testing.assert_close(found, odd(expected), rtol=1e-5, atol=1e-6)
