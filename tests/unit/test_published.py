"""Checkpoints of the pruning papers: each layout is written here anew from its description, and what is read computes
what the authors' network computes."""

from __future__ import annotations

import argparse
import collections
import struct
import sys
import tracemalloc
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budwood.cli.info import run as info
from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.task import Preprocessing
from budwood.models.files import read_state
from budwood.models.network import Network, build, open_network, prunable
from budwood.models.published import LAYOUTS, Contents, deep_compression, plain
from budwood.models.published.sparseml import method_of

from .test_bundle import write as write_bundle

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights"
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) - 0.5


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms that do something, as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data = torch.rand(m.num_features, generator=generator) + 0.5
            m.bias.data = 0.1 * torch.randn(m.num_features, generator=generator)
            m.running_mean = 0.1 * torch.randn(m.num_features, generator=generator)
            m.running_var = torch.rand(m.num_features, generator=generator) + 0.5
    return module.eval()


def random_masks(module: nn.Module, density: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.rand(w.shape, generator=generator) < density for n, w in prunable(module, head=True).items()}


@torch.no_grad()
def assert_computes(network: Network, expected: Tensor, images: Tensor = IMAGES) -> None:
    found = network.module.eval()(images)
    assert float(expected.std()) > 1e-3, "a network that answers something"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def refused(path: Path, match: str, name: str = "") -> str:
    with pytest.raises(UserError, match=match) as caught:
        open_network(f"{name}@{path}" if name else str(path))
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


@pytest.fixture
def foreign_classes() -> Iterator[dict[str, type]]:
    """Classes of AC/DC's own modules, importable only while the file is written."""
    made: dict[str, type] = {}
    for module, name in (("optimization.sgd", "SGD"), ("optimization.lr_schedulers", "CosineLR")):
        made[name] = type(name, (), {"__module__": module})
        sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[module], name, made[name])
    sys.modules["optimization"] = types.ModuleType("optimization")
    yield made
    for name in ("optimization", "optimization.sgd", "optimization.lr_schedulers"):
        sys.modules.pop(name, None)


# -- wrapped layers -------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A layer with its masks, as the description in wrapped.py has it."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self._layer = layer
        self.register_buffer("_bias_mask", None if layer.bias is None else torch.ones_like(layer.bias))
        self.register_buffer("_weight_mask", mask.to(layer.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self._layer.weight *= self._weight_mask
            if self._bias_mask is not None:
                self._layer.bias *= self._bias_mask
        return self._layer(x)


def wrapped(module: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            module.set_submodule(name, Wrapped(layer, masks[f"{name}.weight"]))
    return module


def resnet18(seed: int = 0, classes: int = 12) -> nn.Module:
    torch.manual_seed(seed)
    return lively(torchvision.models.resnet18(num_classes=classes), seed)


def acdc_file(path: Path, model: nn.Module, classes: dict[str, type]) -> Path:
    """What AC/DC's save_checkpoint writes: its schedule leaves NumPy numbers in the optimiser."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.256, momentum=0.875)
    model(IMAGES).sum().backward()
    optimiser.step()
    with torch.no_grad():
        model(IMAGES)  # multiplies by the masks once more
    state = optimiser.state_dict()
    state["param_groups"][0]["lr"] = np.float64(0.5) * 0.256
    torch.save(
        {
            "epoch": 99,
            "model_config": {"arch": "resnet18", "dataset": "imagenet"},
            "model_state_dict": nn.DataParallel(model).state_dict(),
            "optimizer": {"type": classes["SGD"], "state_dict": state},
            "lr_scheduler": {"type": classes["CosineLR"], "state_dict": {"_last_lr": [np.float64(0.1)]}},
        },
        path,
    )
    return path


@pytest.mark.parametrize("name", ["", "torchvision:resnet18"])
def test_wrapped_layers(name: str, foreign_classes: dict[str, type], tmp_path: Path) -> None:
    masks = random_masks(resnet18())
    model = wrapped(resnet18(), masks)
    path = acdc_file(tmp_path / "acdc.ckpt", model, foreign_classes)
    for module in list(sys.modules):
        if module.split(".")[0] == "optimization":
            del sys.modules[module]
    network = open_network(f"{name}@{path}" if name else str(path))
    with torch.no_grad():
        expected = model.eval()(IMAGES)
    assert_computes(network, expected)
    assert network.mask == Mask(masks), "every layer's own mask, the classifier's too"
    lineage = network.lineage
    assert (lineage.architecture, lineage.num_classes) == ("torchvision:resnet18", 12)
    assert (lineage.where, lineage.method, lineage.mask_inferred) == ("upstream", "unknown", False)
    assert lineage.source == "acdc.ckpt" and lineage.preprocessing == Preprocessing(size=224, resize=256)
    assert any("carries its mask, which prunes 70." in note and "not zero" not in note for note in network.notes)
    assert "optimization" not in sys.modules, "the file's classes are not imported"


def test_the_stored_mask_wins(tmp_path: Path) -> None:
    """A kept weight that is zero stays kept; a pruned one that is not becomes zero, and it is said."""
    model = resnet18()
    masks = random_masks(model)
    with torch.no_grad():
        model.conv1.weight.masked_fill_(~masks["conv1.weight"], 0)
        model.conv1.weight[masks["conv1.weight"].nonzero(as_tuple=True)[0][0]] = 0
    wrong = sum(int(((w != 0) & ~masks[n]).sum()) for n, w in prunable(model, head=True).items())
    state = wrapped(model, masks).state_dict()
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "w.ckpt")
    network = open_network(str(tmp_path / "w.ckpt"))
    assert network.mask == Mask(masks) and network.mask.holds(network.module)
    assert int((network.module.state_dict()["conv1.weight"] != 0).sum()) < int(masks["conv1.weight"].sum())
    assert any(f"{wrong} of these were not zero and are now" in note for note in network.notes)
    found = read_state(tmp_path / "w.ckpt")
    assert all(torch.equal(found[n], t) for n, t in network.module.state_dict().items())


def test_masks_that_keep_everything_are_none(tmp_path: Path) -> None:
    """A plain network with zeros that was wrapped anew has masks of ones."""
    model = resnet18()
    masks = random_masks(model)
    Mask(masks).apply_(model)
    ones = {n: m | True for n, m in masks.items()}
    torch.save({"model_state_dict": wrapped(model, ones).state_dict()}, tmp_path / "w")
    network = open_network(str(tmp_path / "w"))
    assert network.mask == Mask(masks) and network.lineage.mask_inferred
    assert any("masks that keep everything: it was read from the zeros" in note for note in network.notes)
    torch.save({"model_state_dict": wrapped(resnet18(), ones).state_dict()}, tmp_path / "d")
    network = open_network(str(tmp_path / "d"))
    assert (network.lineage.method, network.lineage.where, network.mask.sparsity) == ("dense", "none", 0)


def test_masks_of_biases_are_multiplied_in(tmp_path: Path) -> None:
    model = resnet18()
    state = wrapped(model, random_masks(model)).state_dict()
    state["fc._bias_mask"][:5] = 0
    torch.save(state, tmp_path / "w.ckpt")
    network = open_network(str(tmp_path / "w.ckpt"))
    assert torch.equal(network.module.state_dict()["fc.bias"] == 0, torch.arange(12) < 5)
    assert any("masks of 1 biases" in note for note in network.notes)
    del state["fc._bias_mask"]
    torch.save(state, tmp_path / "w.ckpt")
    assert open_network(str(tmp_path / "w.ckpt")).module.state_dict()["fc.bias"].all(), "older files have none"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.update({"conv1._weight_mask": torch.ones(64, 3, 7, 6)}), "the mask of conv1.weight has shape"),
        (lambda s: s["conv1._weight_mask"].mul_(0.5), "other values than 0 and 1"),
        (lambda s: s["conv1._weight_mask"].mul_(float("nan")), "other values than 0 and 1"),
        (lambda s: s.update({"convx._weight_mask": torch.ones(3)}), "no such weight"),
        (lambda s: s.update({"bn1._weight_mask": torch.ones(64)}), "no weight that can be pruned"),
        (lambda s: s.update({"extra": torch.ones(3)}), "w.ckpt"),
        (lambda s: s.update({"conv1.weight": torch.ones(3)}), "w.ckpt"),
        (lambda s: s.update({"conv1._weight_mask": torch.ones(64, 3, 7, 7).to_sparse()}), "sparse"),
        (lambda s: s.update({"conv1._weight_mask": torch.ones(1).expand(64, 3, 7, 7)}), "more values than it stores"),
        (lambda s: s.update({"conv1._weight_mask": torch.ones(64, 3, 7, 7, device="meta")}), "without values"),
    ],
)
def test_wrong_masks_are_refused(change: Callable[[dict[str, Tensor]], Any], match: str, tmp_path: Path) -> None:
    model = resnet18()
    state = wrapped(model, random_masks(model)).state_dict()
    change(state)
    torch.save({"model_state_dict": state}, tmp_path / "w.ckpt")
    refused(tmp_path / "w.ckpt", match)


# -- STR ------------------------------------------------------------------------------------------------------


class ThresholdConv(nn.Conv2d):
    """sign(w) relu(|w| - sigmoid(s)), as the description in thresholds.py has it."""

    def __init__(self, like: nn.Conv2d, s: float) -> None:
        super().__init__(
            like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding, bias=False
        )  # fmt: skip
        self.weight = like.weight
        self.sparseThreshold = nn.Parameter(torch.full((1, 1), s))

    def sparse(self) -> Tensor:
        return torch.sign(self.weight) * torch.relu(self.weight.abs() - torch.sigmoid(self.sparseThreshold))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.sparse(), None)


class ConvHead(ThresholdConv):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., None, None]).flatten(1)


def str_resnet18() -> nn.Module:
    model = resnet18(classes=9)
    for k, (name, layer) in enumerate(list(model.named_modules())):
        if isinstance(layer, nn.Conv2d):
            model.set_submodule(name, ThresholdConv(layer, -3200.0 if k % 3 == 0 else -4.0 + 0.01 * k))
    model.fc = ConvHead(nn.Conv2d(512, 9, 1), -4.0)
    return model.eval()


def test_thresholds_of_str(tmp_path: Path) -> None:
    model = str_resnet18()
    content = {
        "epoch": 100, "arch": "ResNet18", "state_dict": nn.DataParallel(model).state_dict(), "best_acc1": 74.3,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), "curr_acc1": np.float64(74.3),
    }  # fmt: skip
    torch.save(content, tmp_path / "str.pth")
    network = open_network(str(tmp_path / "str.pth"))
    with torch.no_grad():
        assert_computes(network, model(IMAGES))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, ThresholdConv)}
    for name, layer in layers.items():
        kept = layer.weight.abs() > torch.sigmoid(layer.sparseThreshold)
        assert torch.equal(network.mask[f"{name}.weight"], kept.flatten(1) if name == "fc" else kept)
        assert bool(kept.all()) == (layer.sparseThreshold.item() < -100)
    lineage = network.lineage
    assert (lineage.method, lineage.where, lineage.mask_inferred) == ("str", "upstream", False)
    assert lineage.preprocessing == Preprocessing() and lineage.num_classes == 9
    assert any(f"thresholds of {len(layers)} layers are applied" in note for note in network.notes)
    assert network.module.fc.weight.shape == (9, 512) and not network.module.fc.bias.any()


def test_str_made_dense_by_its_authors(tmp_path: Path) -> None:
    """No thresholds; the classifier is a convolution still. Also with the bias of a classifier that was left dense."""
    model = str_resnet18()
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("sparseThreshold")}
    for name, layer in model.named_modules():
        if isinstance(layer, ThresholdConv):
            state[f"{name}.weight"] = layer.sparse().detach()
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 1}, tmp_path / "dense.pth")
    network = open_network(f"torchvision:resnet18@{tmp_path / 'dense.pth'}")
    with torch.no_grad():
        expected = model(IMAGES)
    assert_computes(network, expected)
    assert network.lineage.mask_inferred and network.lineage.method == "unknown"
    bias = torch.arange(9.0)
    torch.save({"state_dict": state | {"fc.bias": bias}}, tmp_path / "dense.pth")
    assert_computes(open_network(str(tmp_path / "dense.pth")), expected + bias)


@pytest.mark.parametrize(
    "change",
    [
        {"conv1.sparseThreshold": torch.zeros(2)},
        {"conv1.sparseThreshold": torch.zeros(1, 1, dtype=torch.int64)},
        {"convx.sparseThreshold": torch.zeros(1, 1)},
        {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int32)},
    ],
)
def test_wrong_thresholds_are_refused(change: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(str_resnet18().state_dict() | change, tmp_path / "str.pth")
    refused(tmp_path / "str.pth", "threshold of conv")


# -- RigL -----------------------------------------------------------------------------------------------------

BLOCKS = ((1, 3, 64), (2, 4, 128), (3, 6, 256), (4, 3, 512))


class Tensorflow:
    """The ResNet-50 of RigL's repository: makes its variables, and computes with them as TensorFlow does, images and
    kernels in TensorFlow's order of axes."""

    def __init__(self, classes: int, dense_first: bool) -> None:
        self.random = np.random.default_rng(0)
        self.classes, self.dense_first = classes, dense_first
        self.variables: dict[str, np.ndarray] = {}
        self.norms = 0

    def normal(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape, dtype=np.float32)

    def variable(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        return self.variables.setdefault(f"resnet_model/{name}", make())

    def weight(self, layer: str, *shape: int) -> np.ndarray:
        scale = np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        if layer == "initial_conv" and self.dense_first:
            return self.variable(f"{layer}/{layer}/weights", lambda: self.normal(*shape) * scale)
        weights = self.variable(f"{layer}/weights", lambda: self.normal(*shape) * scale * np.float32(2))
        mask = self.variable(f"{layer}/mask", lambda: (self.random.random(shape) < 0.3).astype(np.float32))
        self.variable(f"{layer}/threshold", lambda: np.zeros((), np.float32))
        return weights * mask

    def conv(self, x: np.ndarray, layer: str, outputs: int, size: int, stride: int) -> np.ndarray:
        """VALID behind a padding of (size - 1) // 2 before and the rest after where there is a stride, else SAME."""
        kernel = self.weight(layer, size, size, x.shape[-1], outputs)
        before = (size - 1) // 2
        after = size - 1 - before
        x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
        return to_numpy(F.conv2d(to_torch(x), torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()), stride=stride))

    def norm(self, x: np.ndarray, relu: bool = True) -> np.ndarray:
        scope = "batch_normalization" + (f"_{self.norms}" if self.norms else "")
        self.norms += 1
        width = x.shape[-1]
        gamma = self.variable(f"{scope}/gamma", lambda: np.float32(0.5) + self.random.random(width, dtype=np.float32))
        beta = self.variable(f"{scope}/beta", lambda: np.float32(0.1) * self.normal(width))
        mean = self.variable(f"{scope}/moving_mean", lambda: np.float32(0.1) * self.normal(width))
        variance = self.variable(
            f"{scope}/moving_variance", lambda: np.float32(0.5) + self.random.random(width, dtype=np.float32)
        )
        x = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
        return np.maximum(x, 0) if relu else x

    def pool(self, x: np.ndarray) -> np.ndarray:
        """TensorFlow's rule for SAME: outputs = ceil(n / 2); half of the padding, rounded down, comes before."""
        edges = []
        for n in x.shape[1:3]:
            total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
            edges.append((total // 2, total - total // 2))
        x = np.pad(x, ((0, 0), *edges, (0, 0)), constant_values=-np.inf)
        return to_numpy(F.max_pool2d(to_torch(x), 3, 2))

    def block(self, x: np.ndarray, filters: int, stride: int, name: str, first: bool) -> np.ndarray:
        shortcut = x
        if first:
            shortcut = self.norm(self.conv(x, f"bottleneck_projection_{name}", 4 * filters, 1, stride), relu=False)
        x = self.norm(self.conv(x, f"bottleneck_1_{name}", filters, 1, 1))
        x = self.norm(self.conv(x, f"bottleneck_2_{name}", filters, 3, stride))
        x = self.norm(self.conv(x, f"bottleneck_3_{name}", 4 * filters, 1, 1), relu=False)
        return np.maximum(x + shortcut, 0)

    def __call__(self, images: Tensor) -> Tensor:
        self.norms = 0
        x = self.pool(self.norm(self.conv(to_numpy(images), "initial_conv", 64, 7, 2)))
        for group, blocks, filters in BLOCKS:
            x = self.block(x, filters, 1 if group == 1 else 2, f"block_group_projection_block_group{group}", True)
            for n in range(1, blocks):
                x = self.block(x, filters, 1, f"block_group{group}_{n}_1", False)
        x = x.mean((1, 2))
        kernel = self.weight("final_dense", x.shape[-1], self.classes)
        biases = self.variable("final_dense/biases", lambda: self.normal(self.classes))
        return torch.from_numpy(x @ kernel + biases)


def to_numpy(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def to_torch(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def dumped(rigl: Tensorflow, path: Path, **other: np.ndarray) -> Path:
    """All that a checkpoint holds: slots of the optimiser and counters too. As TensorFlow's own files where `path` has
    no suffix; the path to name."""
    training = {
        "global_step": np.array(3200000), "last_mask_update_step": np.array(2500000),
        "resnet_model/batch_normalization/gamma/Momentum": np.zeros(64, np.float32),
        "resnet_model/final_dense/biases/Momentum": np.zeros(rigl.classes, np.float32),
    }  # fmt: skip
    arrays = {**rigl.variables, **training, **other}
    if not path.suffix:
        return write_bundle(path, {name: np.asarray(array, np.float32) for name, array in arrays.items()}, each=50)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dense_first", [False, True])
def test_rigl_from_tensorflow(dense_first: bool, tmp_path: Path) -> None:
    """At 64 pixels the pool has 32, at 66 it has 33: TensorFlow pads the two otherwise. Its weights are not zero where
    its mask is."""
    rigl = Tensorflow(7, dense_first)
    odd = torch.rand(1, 3, 66, 64)
    expected, other = rigl(IMAGES), rigl(odd)
    network = open_network(str(dumped(rigl, tmp_path / ("rigl" if dense_first else "rigl.npz"))))
    assert_computes(network, expected)
    assert_computes(network, other, odd)
    lineage = network.lineage
    assert (lineage.architecture, lineage.num_classes) == ("published:resnet50_tf", 7)
    assert lineage.preprocessing == Preprocessing(size=224, resize=256, interpolation="bicubic")
    assert (lineage.where, lineage.method, lineage.mask_inferred) == ("upstream", "unknown", False)
    assert bool(network.mask["conv1.weight"].all()) == dense_first
    kernel = rigl.variables["resnet_model/bottleneck_2_block_group3_4_1/mask"]
    assert torch.equal(network.mask["layer3.4.conv2.weight"], torch.from_numpy(kernel.transpose(3, 2, 0, 1) == 1))
    assert any("were not zero and are now" in note for note in network.notes)
    if dense_first:
        return
    network.checkpoint().save(tmp_path / "checkpoint.safetensors")
    assert_computes(open_network(str(tmp_path)), expected)
    for name in ("timm:resnet50", "timm:resnet50.a1_in1k"):
        named = open_network(f"{name}@{tmp_path / 'rigl.npz'}")
        assert named.lineage.architecture == "published:resnet50_tf"
        assert any(f"{name} computes otherwise" in note for note in named.notes)
    refused(tmp_path / "rigl.npz", "not those of torchvision:resnet18", "torchvision:resnet18")


def test_rigl_is_refused_where_it_is_another_network(tmp_path: Path) -> None:
    rigl = Tensorflow(7, False)
    rigl(IMAGES[:1, :, :32, :32])
    complete = {name: torch.from_numpy(value) for name, value in rigl.variables.items()}
    for name, value, match in (
        ("squeeze_excite/weights", torch.zeros(1, 1), "squeeze_excite"),
        ("batch_normalization_9/gamma", None, "batch_normalization_9/gamma is missing"),
        ("final_dense/weights", None, "final_dense/weights is missing"),
        ("final_dense/weights", torch.zeros(2048, 7, 1), "has 3 axes"),
        ("final_dense/biases", torch.zeros(7, dtype=torch.int64), "holds torch.int64"),
        ("initial_conv/mask", torch.zeros(7, 7, 3, 63), "the mask of initial_conv has shape"),
        ("initial_conv/mask", torch.full((7, 7, 3, 64), 2.0), "other values than 0 and 1"),
    ):
        state = {n: v for n, v in complete.items() if n != f"resnet_model/{name}"}
        if value is not None:
            state[f"resnet_model/{name}"] = value
        with pytest.raises(UserError, match=match) as caught:
            plain(Contents(state, "b.npz"))
        assert "\n" not in str(caught.value) and "b.npz" in str(caught.value)
    narrow = {"resnet_model/batch_normalization/gamma": np.zeros(63, np.float32)}
    refused(dumped(rigl, tmp_path / "b.npz", **narrow), "not those of published:resnet50_tf")


def test_rigl_as_the_study_converted_it(tmp_path: Path) -> None:
    """Wrapped layers around TensorFlow's ResNet-50: at an even size its pool pads one zero behind a ReLU."""
    torch.manual_seed(0)
    model = lively(torchvision.models.resnet50(num_classes=6))
    masks = random_masks(model)
    Mask(masks).apply_(model)
    model.maxpool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))
    theirs: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        parts = module.split(".")
        if parts[0].startswith("layer"):
            conv = {"conv": "conv", "bn": "bn"}.get(parts[2].rstrip("123"), "conv" if parts[-1] == "0" else "bn")
            unit = "shortcut" if parts[2] == "downsample" else f"conv{parts[2][-1]}"
            module = f"{parts[0]}.block.{parts[1]}.{unit}.{conv}"
        elif module in ("conv1", "bn1"):
            module = f"initial_conv.{module.rstrip('1')}"
        if name in masks:
            theirs[f"module.{module}._layer.weight"] = value
            theirs[f"module.{module}._weight_mask"] = masks[name].float()
        else:
            theirs[f"module.{module}.{'_layer.' if name == 'fc.bias' else ''}{kind}"] = value
    config = {"arch": "resnet50_rigl", "dataset": "imagenet"}
    torch.save({"epoch": 0, "model_config": config, "model_state_dict": theirs}, tmp_path / "rigl.ckpt")
    network = open_network(f"torchvision:resnet50@{tmp_path / 'rigl.ckpt'}")
    with torch.no_grad():
        assert_computes(network, model(IMAGES))
    assert network.mask == Mask(masks) and network.lineage.method == "rigl"
    assert network.lineage.architecture == "published:resnet50_tf"
    assert network.lineage.preprocessing.interpolation == "bicubic"


def test_npz_files_hold_numbers_alone(tmp_path: Path) -> None:
    state = {n: t.numpy() for n, t in resnet18().state_dict().items()}
    np.savez_compressed(tmp_path / "w.npz", **state)
    network = open_network(str(tmp_path / "w.npz"))
    assert all(torch.equal(t, torch.from_numpy(state[n])) for n, t in network.module.state_dict().items())
    np.savez(tmp_path / "o.npz", **state, what=np.array([{"a": 1}], dtype=object))
    refused(tmp_path / "o.npz", "npz")
    np.savez(tmp_path / "s.npz", **state, text=np.array(["a"]))
    refused(tmp_path / "s.npz", "npz")
    (tmp_path / "t.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:-300])
    refused(tmp_path / "t.npz", "t.npz")
    big = np.asfortranarray(np.arange(12, dtype=">f4").reshape(3, 4))
    np.savez(tmp_path / "f.npz", a=big)
    assert torch.equal(read_state(tmp_path / "f.npz")["a"], torch.arange(12.0).reshape(3, 4))


def test_an_array_that_claims_more_than_it_has(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4000))
    tracemalloc.start()
    refused(tmp_path / "w.npz", "not of its shape")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22


# -- plain files ----------------------------------------------------------------------------------------------


def test_a_file_from_before_batches_were_counted(tmp_path: Path) -> None:
    model = resnet18()
    old = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    with torch.no_grad():
        assert_computes(open_network(str(tmp_path / "old.pth")), model(IMAGES))


def test_names_that_only_look_like_a_layout_or_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier that is a convolution called fc, as DLA's, and one whose names all begin with `model.`."""
    (tmp_path / "looksnet.py").write_text(
        "from torch import nn\n"
        "class Fc(nn.Module):\n"
        "    def __init__(self, n):\n"
        "        super().__init__()\n"
        "        self.body, self.pool, self.fc = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, n, 1)\n"
        "        self.flat = nn.Flatten()\n"
        "    def forward(self, x):\n"
        "        return self.flat(self.fc(self.pool(self.body(x))))\n"
        "class Inner(nn.Module):\n"
        "    def __init__(self, n):\n"
        "        super().__init__()\n"
        "        self.model = Fc(n)\n"
        "    def forward(self, x):\n"
        "        return self.model(x)\n"
        "def fc(num_classes=1000):\n"
        "    return Fc(num_classes)\n"
        "def inner(num_classes=1000):\n"
        "    return Inner(num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import looksnet

    for kind in ("fc", "inner"):
        torch.manual_seed(1)
        model = getattr(looksnet, kind)(12).eval()
        torch.save(model.state_dict(), tmp_path / "w.pth")
        with torch.no_grad():
            assert_computes(open_network(f"py:looksnet.{kind}@{tmp_path / 'w.pth'}"), model(IMAGES))


def test_files_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    """Refused before anything of the claimed size is made: 40 GB here."""
    state = dict(resnet18().state_dict())
    torch.save(state | {"fc.weight": torch.zeros(2**33, 0)}, tmp_path / "empty.pth")
    refused(tmp_path / "empty.pth", "holds 'fc.weight' without a value")
    torch.save(state | {"fc.weight": torch.zeros(10**7, 1)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "fc.weight has shape", "torchvision:resnet18")
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(tmp_path / "plain.pth") as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(packed, "not a readable .pth")


def test_what_is_no_float_is_no_weight(tmp_path: Path) -> None:
    state = dict(resnet18().state_dict())
    torch.save(state | {"conv1.weight": state["conv1.weight"].to(torch.int8)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "conv1.weight holds int8; save it as float32")


def test_names_that_are_none(tmp_path: Path) -> None:
    state: dict[Any, Any] = dict(resnet18().state_dict())
    torch.save(state | {(1, 2): torch.zeros(1), 7: 3}, tmp_path / "w.pth")
    assert open_network(str(tmp_path / "w.pth")).lineage.num_classes == 12
    long = {"input.conv.weight": torch.zeros(1), f"sections.{'1' * 5000}.0.conv1.weight": torch.zeros(1)}
    torch.save(long, tmp_path / "long.pth")
    refused(tmp_path / "long.pth", "not the state_dict of a torchvision network")


def test_parts_of_a_tensorflow_checkpoint_name_the_index(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt-7.index").write_bytes(b"")
    (tmp_path / "model.ckpt-7.meta").write_bytes(b"x")
    refused(tmp_path / "model.ckpt-7", "model.ckpt-7.index")
    refused(tmp_path / "model.ckpt-7.meta", "name the .index file")
    torch.save(resnet18().state_dict(), tmp_path / "w.net")
    assert open_network(str(tmp_path / "w.net")).lineage.architecture == "torchvision:resnet18"


# -- SparseML -------------------------------------------------------------------------------------------------


class Identity(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.identity = Identity(inputs, outputs, stride) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + (self.identity(x) if self.identity else x))


class Classifier(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class SparseMLResNet50(nn.Module):
    """As the description in sparseml.py has it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.input = nn.Sequential(
            collections.OrderedDict(conv=nn.Conv2d(3, 64, 7, 2, 3, bias=False), bn=nn.BatchNorm2d(64))
        )
        sections, inputs = [], 64
        for group, blocks, middle in BLOCKS:
            section = []
            for k in range(blocks):
                section.append(Bottleneck(inputs, middle, 4 * middle, 2 if group > 1 and k == 0 else 1))
                inputs = 4 * middle
            sections.append(nn.Sequential(*section))
        self.sections = nn.Sequential(*sections)
        self.classifier = Classifier(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.input(x)), 3, 2, 1)
        return self.classifier(self.sections(x))


RECIPE = """
modifiers:
  - !EpochRangeModifier
      start_epoch: 0
  - !ACDCPruningModifier
      compression_sparsity: 0.9
"""


def test_sparseml_resnet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lively(SparseMLResNet50(5))
    masks = random_masks(model)
    Mask(masks).apply_(model)
    content = {
        "state_dict": collections.OrderedDict(model.state_dict()), "recipe": RECIPE, "epoch": -1,
        "arch_key": "resnet50", "args": argparse.Namespace(lr=0.1, path=Path("x").name),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1).state_dict(),
    }  # fmt: skip
    torch.save(content, tmp_path / "sparseml.pth")
    network = open_network(str(tmp_path / "sparseml.pth"))
    with torch.no_grad():
        assert_computes(network, model(IMAGES))
    lineage = network.lineage
    assert (lineage.architecture, lineage.num_classes) == ("torchvision:resnet50", 5)
    assert (lineage.method, lineage.where, lineage.mask_inferred) == ("acdc", "upstream", True)
    assert lineage.preprocessing == Preprocessing(size=224, resize=256)
    assert torch.equal(network.mask["layer2.0.downsample.0.weight"], masks["sections.1.0.identity.conv.weight"])
    pytest.importorskip("timm")
    named = open_network(f"timm:resnet50@{tmp_path / 'sparseml.pth'}")
    assert named.lineage.architecture == "timm:resnet50" and named.mask == network.mask
    assert named.lineage.preprocessing == Preprocessing(size=224, resize=256), "the file's, not timm's for its weights"


def test_the_average_of_a_training_comes_first(tmp_path: Path) -> None:
    """torchvision's training, which SparseML took over, keeps an averaged model with a counter beside it."""
    model, average = resnet18(0), resnet18(1)
    ema = {"n_averaged": torch.tensor(7), **{f"module.{n}": t for n, t in average.state_dict().items()}}
    torch.save({"state_dict": model.state_dict(), "model_ema": ema}, tmp_path / "w.pth")
    network = open_network(str(tmp_path / "w.pth"))
    assert torch.equal(network.module.state_dict()["conv1.weight"], average.state_dict()["conv1.weight"])
    assert any("model_ema was read; the file also holds state_dict" in note for note in network.notes)


def test_of_sparseml_the_weights_that_have_the_zeros(tmp_path: Path) -> None:
    """Its average is of weights that were pruned while it ran: small, and not zero. Names are torchvision's."""
    model, masks = resnet18(0), random_masks(resnet18())
    average = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, kept in masks.items():
            model.get_parameter(name).mul_(kept)
    content = {"state_dict": model.state_dict(), "model_ema": average, "recipe": "- !ACDCPruningModifier\n"}
    torch.save(content, tmp_path / "w.pth")
    network = open_network(str(tmp_path / "w.pth"))
    assert network.mask == Mask(masks) and network.lineage.method == "acdc"
    assert network.lineage.preprocessing == Preprocessing(size=224, resize=256)


@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        (RECIPE, "acdc"),
        ("- !GMPruningModifier\n- !ConstantPruningModifier\n", "gmp"),
        ("- !MagnitudePruningModifier\n- !GlobalMagnitudePruningModifier\n", "gmp"),
        ("- !MFACPruningModifier\n", "mfac"),
        ("- !OBSPruningModifier\n- !ConstantPruningModifier\n", "obert"),
        ("- !TopKASTPruningModifier\n", "topkast"),
        ("- !MFACPruningModifier\n- !GMPruningModifier\n", None),
        ("- !MovementPruningModifier\n", None),
        ("- !ConstantPruningModifier\n", None),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_method_of_a_recipe(recipe: object, method: str | None) -> None:
    assert method_of(recipe) == method


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("place", ["manager", "state_dict"])
def test_sparseml_files_that_hold_code_are_refused(place: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": dict(resnet18().state_dict()), "epoch": -1}
    if place == "manager":
        content["manager"] = Evil(tmp_path / "touched")
    else:
        content["state_dict"]["x"] = Evil(tmp_path / "touched")
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "not safe")
    assert not (tmp_path / "touched").exists()


# -- MobileNetV1 ----------------------------------------------------------------------------------------------

WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Intel(nn.Module):
    """AC/DC's and STR's MobileNetV1, names and all."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(*conv_bn(a, a, 3, stride, a), *conv_bn(a, b, 1))
            for a, b, stride in zip(WIDTHS, WIDTHS[1:], STRIDES, strict=False)
        ]
        self.model = nn.Sequential(nn.Sequential(*conv_bn(3, 32, 3, 2)), *blocks, nn.AvgPool2d(2))
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.model(x).flatten(1))


def amc_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "fc":
        return ".".join(["classifier", "0", *parts[1:]])
    if parts[1] == "0":
        return ".".join(["conv1", *parts[2:]])
    return ".".join(["features", str(int(parts[1]) - 1), *parts[2:]])


def sparseml_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "fc":
        return f"classifier.{name}"
    kind = {"0": "conv", "1": "bn", "3": "conv", "4": "bn"}[parts[2]]
    if parts[1] == "0":
        return ".".join(["input", kind, *parts[3:]])
    section, first = next((s, f) for s, f in ((4, 12), (3, 6), (2, 4), (1, 2), (0, 1)) if int(parts[1]) >= f)
    half = "depth" if parts[2] in "01" else "point"
    return ".".join(["sections", str(section), str(int(parts[1]) - first), half, kind, *parts[3:]])


@pytest.mark.parametrize("kind", ["intel", "wrapped", "str", "amc", "sparseml"])
def test_mobilenet(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lively(Intel(4))
    masks = random_masks(model)
    Mask(masks).apply_(model)
    state: dict[str, Tensor] = dict(model.state_dict())
    with torch.no_grad():
        expected = model(IMAGES)
    if kind == "wrapped":
        state = wrapped(model, masks).state_dict()
    elif kind == "str":
        state["fc.weight"] = state["fc.weight"][..., None, None]
        state |= {f"{n.removesuffix('.weight')}.sparseThreshold": torch.full((1, 1), -12800.0) for n in masks}
    elif kind == "amc":
        state = {amc_name(n): t for n, t in state.items()}
    elif kind == "sparseml":
        state = {sparseml_name(n): t for n, t in state.items()}
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "mobilenet.pth")
    network = open_network(str(tmp_path / "mobilenet.pth"))
    assert_computes(network, expected)
    assert network.lineage.architecture == "published:mobilenet_v1" and network.lineage.num_classes == 4
    assert network.mask.kept == sum(int(m.sum()) for m in masks.values())
    assert network.lineage.mask_inferred == (kind not in ("wrapped", "str"))
    network.checkpoint().save(tmp_path / "checkpoint.safetensors")
    assert_computes(open_network(str(tmp_path)), expected)


def test_published_architectures() -> None:
    for name in ("mobilenet_v1", "resnet50_tf"):
        network = build(f"published:{name}", 3)
        assert network.module.eval()(IMAGES).shape == (2, 3)
        with pytest.raises(UserError, match=f"published:{name}@FILE"):
            open_network(f"published:{name}")
    with pytest.raises(UserError, match="mobilenet_v1"):
        build("published:mobilenet_v3", 3)


# -- Deep Compression -----------------------------------------------------------------------------------------


def squeezenet(density: float) -> nn.Module:
    """Weights on a grid of 255 values, the biases small; some layers with gaps far over 16."""
    torch.manual_seed(0)
    module = torchvision.models.squeezenet1_0()
    generator = torch.Generator().manual_seed(2)
    for k, layer in enumerate(m for m in module.modules() if isinstance(m, nn.Conv2d)):
        step = layer.weight.abs().max().item() / 127
        grid = (layer.weight.detach() / step).round().clamp(-127, 127)
        grid[grid == 0] = 1
        kept = torch.rand(grid.shape, generator=generator) < (0.01 if k == 2 else density)
        layer.weight.data = grid * step * kept
        layer.bias.data = 0.1 * torch.randn(layer.bias.shape, generator=generator)
    return module.eval()


def encoded(module: nn.Module) -> bytes:
    """The file, written entry by entry from its description."""
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    counts, bodies = [], []
    for conv in convs:
        flat = conv.weight.detach().reshape(-1).tolist()
        book = sorted({value for value in flat if value})
        index = {value: k for k, value in enumerate(book, 1)}
        entries, gaps, last = [], [], -1
        for place, value in enumerate(flat):
            if not value:
                continue
            while place - last > 16:  # a filler is as far as four bits reach
                last += 16
                entries.append(0)
                gaps.append(15)
            entries.append(index[value])
            gaps.append(place - last - 1)
            last = place
        padded = gaps + [0] * (len(gaps) % 2)
        halves = bytes(low | high << 4 for low, high in zip(padded[::2], padded[1::2], strict=True))
        values = [0.0, *book, *[0.0] * (255 - len(book))]
        biases = conv.bias.tolist()
        counts.append(len(entries))
        bodies.append(
            struct.pack("<256f", *values) + struct.pack(f"<{len(biases)}f", *biases) + bytes(entries) + halves
        )
    return struct.pack("<26I", *counts) + b"".join(bodies)


@pytest.fixture(scope="module")
def packed() -> tuple[nn.Module, bytes]:
    module = squeezenet(0.3)
    return module, encoded(module)


def assert_answers_as_caffe(network: Network, raw: nn.Module) -> None:
    """`raw` takes BGR of 0 to 255 minus (104, 117, 123); the network takes what its preprocessing makes of RGB."""
    rgb = torch.randint(0, 256, (2, 3, 227, 227), generator=torch.Generator().manual_seed(0)).float()
    bgr = rgb.flip(1) - torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    p = network.lineage.preprocessing
    seen = (rgb / 255 - torch.tensor(p.mean)[:, None, None]) / torch.tensor(p.std)[:, None, None]
    with torch.no_grad():
        assert_computes(network, raw.eval()(bgr), seen)
    assert p.size == 227


@pytest.mark.parametrize("name", ["compressed.net", "renamed.bin"])
def test_deep_compression(name: str, packed: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    module, data = packed
    (tmp_path / name).write_bytes(data)
    state, kept = deep_compression.decode(data, name)
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(t, state[n]) for n, t in module.state_dict().items()), "bit by bit"
    assert all(torch.equal(m, state[n] != 0) for n, m in kept.items()) and len(kept) == 26
    network = open_network(str(tmp_path / name))
    assert_answers_as_caffe(network, module)
    assert network.mask.kept == sum(int(m.sum()) for m in kept.values())
    lineage = network.lineage
    assert (lineage.architecture, lineage.num_classes) == ("torchvision:squeezenet1_0", 1000)
    assert (lineage.method, lineage.where, lineage.mask_inferred) == ("deep-compression", "upstream", False)
    assert open_network(f"torchvision:squeezenet1_0@{tmp_path / name}").mask == network.mask
    refused(tmp_path / name, "not those of torchvision:squeezenet1_1", "torchvision:squeezenet1_1")


def test_an_entry_of_value_zero_is_kept(packed: tuple[nn.Module, bytes]) -> None:
    """Only index 0 is filler: a value of the book that is zero belongs to a kept weight."""
    _, data = packed
    made = bytearray(data)
    made[104 + 4 : 104 + 8] = bytes(4)  # conv1's value 1
    state, kept = deep_compression.decode(bytes(made), "w.net")
    before = deep_compression.decode(data, "w.net")
    assert torch.equal(kept["features.0.weight"], before[1]["features.0.weight"])
    assert int((state["features.0.weight"] != 0).sum()) < int(kept["features.0.weight"].sum())


def test_damaged_deep_compression_files(packed: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    _, data = packed
    path = tmp_path / "w.net"
    cases = {
        "cut": data[:-1], "longer": data + b"\0", "head": data[:90], "one": b"\0",
        "counts": struct.pack("<26I", *[2**32 - 1] * 26) + data[104:],
        "values": data[:104] + struct.pack("<f", 1.0) + data[108:],
        "nan": data[:108] + struct.pack("<f", float("nan")) + data[112:],
    }  # fmt: skip
    for damaged in cases.values():
        path.write_bytes(damaged)
        tracemalloc.start()
        refused(path, "make or copy it again")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 23
    first = struct.unpack_from("<I", data)[0]
    gaps = 104 + 1024 + 4 * 96 + first
    path.write_bytes(data[:gaps] + b"\xff" * ((first + 1) // 2) + data[gaps + (first + 1) // 2 :])
    refused(path, "entries past the end of features.0")
    counts = list(struct.unpack_from("<26I", data))
    counts[1], extra = 1537, 1537 - counts[1]  # fire2's squeeze has 1536 weights
    grown = struct.pack("<26I", *counts) + data[104:]
    path.write_bytes(grown + bytes(deep_compression._claimed(grown) - len(grown)))
    assert extra > 0
    refused(path, "entries past the end of features.3.squeeze")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 40_000), new=st.binary(min_size=1, max_size=8), resize=st.booleans())
def test_damage_is_refused_or_read(packed: tuple[nn.Module, bytes], at: int, new: bytes, resize: bool) -> None:
    """Bytes written over or put in, most of them in the counts and the first layers; then the length made to fit."""
    _, data = packed
    at = at % 130 if at % 3 else at
    made = data[:at] + new + data[at + (0 if resize else len(new)) :]
    claimed = deep_compression._claimed(made)
    if claimed is not None and claimed < 4 * len(data):
        made = made[:claimed] + bytes(max(0, claimed - len(made)))
    try:
        state, kept = deep_compression.decode(made, "w.net")
    except UserError as error:
        assert "w.net" in str(error) and "\n" not in str(error)
        return
    assert all(not state[n][~m].any() for n, m in kept.items())
    assert all(bool(torch.isfinite(t).all()) for t in state.values())


@pytest.mark.skipif(not (WEIGHTS / "compressed_SqueezeNet.net").exists(), reason="the authors' file is not there")
def test_the_authors_squeezenet() -> None:
    """Against the tensors that another, independent decoder made of it."""
    path = WEIGHTS / "compressed_SqueezeNet.net"
    expected = safetensors.torch.load_file(WEIGHTS / "squeezenet1_0_deep_compression.safetensors")
    state, _ = deep_compression.decode(path.read_bytes(), path.name)
    assert state.keys() == expected.keys()
    assert all(torch.equal(t, expected[n]) for n, t in state.items())
    raw = torchvision.models.squeezenet1_0()
    raw.load_state_dict(expected)
    network = open_network(str(path))
    assert_answers_as_caffe(network, raw)
    assert network.mask == Mask({n: t != 0 for n, t in prunable(network.module, head=True).items()})
    assert network.mask.sparsity == pytest.approx(0.666, abs=1e-3)


# -- all of them ----------------------------------------------------------------------------------------------


def test_info_says_what_was_read(
    packed: tuple[nn.Module, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.net").write_bytes(packed[1])
    info(str(tmp_path / "w.net"))
    said = " ".join(capsys.readouterr().out.split())
    assert "deep-compression" in said and "carries its mask" in said and "upstream" in said


def test_every_layout_says_where_it_comes_from() -> None:
    """Each has a file of its own whose head names the repository."""
    for layout in LAYOUTS:
        text = sys.modules[layout.fits.__module__].__doc__ or ""
        assert "Source" in text and "/" in text, layout.name


def test_no_layout_fits_a_plain_network() -> None:
    for name in ("resnet18", "mobilenet_v2", "squeezenet1_0", "densenet121"):
        with torch.device("meta"):
            found = Contents(torchvision.models.get_model(name).state_dict(), name)
        assert not [layout.name for layout in LAYOUTS if layout.fits(found)]
