"""`budwood.compile` over all it takes: the same answers as PyTorch, and what the network knows of itself kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import budwood
from budwood.core.checkpoint import Lineage
from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.task import Preprocessing
from budwood.models.export import export
from budwood.models.network import Network, from_checkpoint, prunable
from budwood.testing.backends import small_net

CLASSES = tuple(f"class {k}" for k in range(7))
ARCHITECTURE = "py:test_compiling_net.small"


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the checkpoints below, by the name in their lineage."""
    text = "from budwood.testing.backends import small_net\n\n\ndef small(num_classes=7):\n    return small_net()\n"
    (tmp_path / "test_compiling_net.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


def network() -> Network:
    module = small_net().eval()
    lineage = Lineage(
        architecture=ARCHITECTURE, num_classes=7, classes=CLASSES, preprocessing=Preprocessing(size=33, resize=40)
    )
    return Network(module, Mask.from_zeros(prunable(module, head=True)), lineage)


def images(count: int = 5, size: int = 33) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def agrees(program: Any, module: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        wanted = module.eval()(x)
    y = program(x)
    assert isinstance(y, Tensor) and y.shape == wanted.shape
    assert float((y - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    assert np.array_equal(program(x.numpy()), y.numpy())


def test_a_module_stays_as_it_is() -> None:
    module = small_net()
    module[3].eval()
    modes = [part.training for part in module.modules()]
    before = copy.deepcopy(module.state_dict())
    program = budwood.compile(module, image_size=33, classes=CLASSES, threads=1)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert program.name == "Sequential" and program.classes == CLASSES and program.threads == 1
    agrees(program, module, images())


def test_a_module_by_example_or_by_preprocessing() -> None:
    module = small_net()
    agrees(budwood.compile(module, example=images(1)), module, images())
    program = budwood.compile(module, preprocessing=Preprocessing(size=33))
    assert program.preprocessing == Preprocessing(size=33)
    agrees(program, module, images())
    assert budwood.compile(module, preprocessing=Preprocessing(size=33), image_size=48).preprocessing.size == 48
    with pytest.raises(ValueError, match="how large are the images"):
        budwood.compile(module)


def test_an_exported_program() -> None:
    module = small_net().eval()
    exported = torch.export.export(module, (images(2),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    agrees(budwood.compile(exported, classes=CLASSES), module, images())
    with pytest.raises(UserError, match="image size of its own"):
        budwood.compile(exported, image_size=48)


def test_a_network_and_a_checkpoint_know_their_classes_and_preprocessing(tmp_path: Path) -> None:
    ours = network()
    ours.checkpoint().save(tmp_path / "run" / "checkpoint.safetensors")
    for given in (ours, ours.checkpoint(), str(tmp_path / "run"), tmp_path / "run" / "checkpoint.safetensors"):
        program = budwood.compile(given)
        assert program.classes == CLASSES and program.preprocessing == ours.lineage.preprocessing
        assert program.input_shape == (3, 33, 33) and program.name == ARCHITECTURE
        agrees(program, ours.module, images())


def test_another_image_size() -> None:
    ours = network()
    program = budwood.compile(ours, image_size=48)
    assert program.input_shape == (3, 48, 48) and program.preprocessing == ours.lineage.preprocessing.at(48)
    agrees(program, ours.module, images(size=48))
    assert budwood.compile(ours, example=images(size=40)).preprocessing.size == 40
    for size in (0, -3, 1_000_000):
        with pytest.raises(UserError, match="not possible"):
            budwood.compile(ours, image_size=size)


def test_onnx_with_and_without_our_properties(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    ours = network()
    export(ours, tmp_path / "net.onnx")
    program = budwood.compile(tmp_path / "net.onnx")
    assert program.classes == CLASSES and program.preprocessing == ours.lineage.preprocessing
    assert program.name == ARCHITECTURE and program.source == "net.onnx"
    agrees(program, ours.module, images())
    with pytest.raises(UserError, match="image size of its own"):
        budwood.compile(tmp_path / "net.onnx", image_size=48)

    def changed(properties: dict[str, str]) -> Path:
        model = onnx.load(tmp_path / "net.onnx")
        onnx.helper.set_model_props(model, properties)
        (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "other.onnx"

    plain = budwood.compile(changed({}), classes=CLASSES[::-1])
    assert plain.classes == CLASSES[::-1] and plain.preprocessing is None and plain.name == "other"
    assert budwood.compile(changed({"classes": "not of ours", "preprocessing": "["})).classes is None
    for key, value in {"classes": '["a"]', "preprocessing": '{"size": 1e9}'}.items():
        with pytest.raises(UserError, match=f"its property `{key}` does not fit"):
            budwood.compile(changed({key: value}))
    with pytest.raises(UserError, match="cannot read"):
        budwood.compile(tmp_path / "no.onnx")


def test_a_saved_program_comes_back(tmp_path: Path) -> None:
    ours = network()
    budwood.compile(ours).save(tmp_path / "net.budwood")
    for program in (
        budwood.compile(tmp_path / "net.budwood", threads=1),
        budwood.load_program(tmp_path / "net.budwood"),
    ):
        assert program.classes == CLASSES and program.preprocessing == ours.lineage.preprocessing
        agrees(program, ours.module, images())
    other = budwood.compile(tmp_path / "net.budwood", classes=CLASSES[::-1], preprocessing=Preprocessing(size=33))
    assert other.classes == CLASSES[::-1] and other.preprocessing == Preprocessing(size=33)
    with pytest.raises(UserError, match="compiled already"):
        budwood.compile(tmp_path / "net.budwood", image_size=48)


def test_the_zeros_are_in_the_program() -> None:
    ours = network()
    program = budwood.compile(ours)
    weights = [n.weight for n in program.graph if hasattr(n, "weight")]
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros >= sum(int((w == 0).sum()) for w in prunable(ours.module, head=True).values()) * 0.9
    assert all(type(node).__name__ != "Affine" for node in program.graph), "batch norm is folded"


def test_what_cannot_be_compiled(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a int cannot be compiled"):
        budwood.compile(3)
    with pytest.raises(UserError, match="no file at"):
        budwood.compile(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match=r"torchvision has no model 'resnet51'.*resnet50"):
        budwood.compile("torchvision:resnet51")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"text\.pth"):
        budwood.compile(tmp_path / "text.pth")
    with pytest.raises(ValueError, match="2 class names for outputs"):
        budwood.compile(small_net(), image_size=33, classes=["a", "b"])


def test_an_operator_that_is_not_known_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.erfcx(x)

    with pytest.raises(UserError, match=r"erfcx.*`1`"):
        budwood.compile(nn.Sequential(nn.Conv2d(3, 4, 1), Odd()), image_size=8)


def test_a_checkpoint_that_claims_absurdly_many_classes_is_refused() -> None:
    ours = network()
    lineage = ours.lineage.model_copy(update={"num_classes": 10**12, "classes": None})
    with pytest.raises(UserError, match="not those of 1000000000000 classes"):
        from_checkpoint(replace(ours.checkpoint(), lineage=lineage))


class Moved(nn.Module):
    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        return self.move(x)


@pytest.mark.parametrize(
    "move",
    [
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=2.5),
        lambda x: F.pad(x, (1, -2, -1, 3)),
        lambda x: x[:, :, 1:7],
        lambda x: x[:, 1:3, :, 2:5],
        lambda x: x[:, :, 1::2, ::2],
        lambda x: F.pixel_unshuffle(x, 2),
    ],
)
def test_what_is_only_moved_takes_no_nan_from_beside_it(move: Callable[[Tensor], Tensor]) -> None:
    """Slices, borders and blocks become convolutions of ones and zeros: a zero there is no weight."""
    x = torch.randn(5, 4, 8, 8)
    x[0, 1, 3, 3], x[2, 0, 2, 4], x[3, 2, 5, 1] = torch.nan, torch.inf, -torch.inf
    program = budwood.compile(Moved(move), example=torch.zeros(2, 4, 8, 8))
    np.testing.assert_array_equal(program(x.numpy()), move(x).numpy())
