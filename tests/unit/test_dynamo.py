"""`torch.compile(model, backend="budwood")`: the same answers, and how much of the work is the engine's."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from budwood.engine import dynamo
from budwood.testing.backends import small_net


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    dynamo._warned.clear()
    yield
    torch._dynamo.reset()


def images(count: int, size: int = 33) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def agree(compiled: nn.Module, model: nn.Module, *inputs: Tensor) -> list[dynamo.Report]:
    """Asserts the same answer; what was compiled for it."""
    with torch.inference_mode(), dynamo.watch() as reports:
        y = compiled(*inputs)
        wanted = model(*inputs)
    assert y.shape == wanted.shape and float((y - wanted).abs().max()) <= 1e-4 * max(float(wanted.abs().max()), 1e-6)
    return reports


class Odd(nn.Module):
    """A residual network around an operator that the engine does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = x + torch.special.erfcx(self.second(x))
        x = x + self.second(x)
        head: Tensor = self.head(x.mean((2, 3)))
        return head


def test_a_whole_network_is_in_the_engine() -> None:
    model = small_net().eval()
    compiled = torch.compile(model, backend="budwood")
    for count in (2, 1):
        (report,) = agree(compiled, model, images(count))
        assert (report.in_engine, report.reason) == (report.in_all, "") and report.in_all > 0
        assert agree(compiled, model, images(count).flip(0)) == []


def test_the_flops_are_those_of_the_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16 * 16, 2))
    (report,) = agree(torch.compile(model.eval(), backend="budwood"), model, images(2))
    assert report.in_all == 2 * (2 * 6 * 16 * 16) * (1 * 3 * 3)


def test_the_number_of_images_becomes_free() -> None:
    model = small_net().eval()
    compiled = torch.compile(model, backend="budwood")
    seen = [len(agree(compiled, model, images(count))) for count in (2, 5, 6, 7, 15)]
    assert seen == [1, 1, 1, 0, 0], "PyTorch captures it anew for the second; twice the same graph, then no more"


def test_changed_weights_are_noticed() -> None:
    model = small_net().eval()
    compiled = torch.compile(model, backend="budwood")
    agree(compiled, model, images(2))
    with torch.no_grad():
        model[0].weight.mul_(-1)
    assert len(agree(compiled, model, images(2))) == 1
    model.load_state_dict(small_net().state_dict())
    assert len(agree(compiled, model, images(2))) == 1
    model[3].weight = nn.Parameter(torch.randn_like(model[3].weight))
    agree(compiled, model, images(2))
    model[0].weight.data = torch.randn_like(model[0].weight)
    assert len(agree(compiled, model, images(2))) == 1
    assert agree(compiled, model, images(2)) == []


def test_an_unknown_operator_cuts_the_graph() -> None:
    model = Odd().eval()
    (report,) = agree(torch.compile(model, backend="budwood"), model, images(3, 8))
    assert "erfcx" in report.reason
    assert report.in_engine == report.in_all > 0, "the convolutions on both sides of it"


def test_gradients_and_training_go_through_pytorch_with_one_warning() -> None:
    model = small_net().eval()
    compiled = torch.compile(model, backend="budwood")
    x = images(2)
    with pytest.warns(UserWarning, match="gradients or training"), dynamo.watch() as reports:
        compiled(x).sum().backward()
    assert reports == [] and model[0].weight.grad is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(compiled(x), model(x))
    model.train()
    before = model[1].running_mean.clone()
    with torch.no_grad():
        compiled(x)
    assert not torch.equal(model[1].running_mean, before), "batch norm counts as in PyTorch"
    model.eval()
    assert dynamo.share(agree(compiled, model, x)) == 1


class Counting(nn.Module):
    """Changes a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.conv(x)
        return y + self.calls


def test_a_graph_that_changes_its_buffers_goes_through_pytorch() -> None:
    model = Counting().eval()
    compiled = torch.compile(model, backend="budwood")
    with torch.no_grad(), dynamo.watch() as reports, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = compiled(images(2)), compiled(images(2))
    torch.testing.assert_close(second, first + 1)
    assert float(model.calls) == 2 and dynamo.share(reports) == 0


def test_other_types_and_shapes_go_through_pytorch() -> None:
    model = small_net().eval().double()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="budwood")
        torch.testing.assert_close(compiled(images(2).double()), model(images(2).double()))
        line = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()).eval()
        x = torch.randn(2, 3, 9)
        torch.testing.assert_close(torch.compile(line, backend="budwood")(x), line(x))


def test_several_outputs_and_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            z = self.a(x + y).relu()
            return z, self.b(z) + x

    model = Two().eval()
    x, y = images(2, 8), images(3, 8)[:2]
    with torch.inference_mode(), dynamo.watch() as reports:
        found = torch.compile(model, backend="budwood")(x, y)
        wanted = model(x, y)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert dynamo.share(reports) == 1


class Sized(nn.Module):
    """Its numbers depend on a number that it is given, and on how many images there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y * n, y * min(x.shape[0], 4)


def test_what_is_computed_from_sizes_is_computed_for_each() -> None:
    model = Sized().eval()
    compiled = torch.compile(model, backend="budwood")
    for count, n in ((2, 3), (2, 4), (3, 4), (4, 4), (6, 5), (5, 5), (3, 3), (7, 9)):
        with torch.no_grad():
            for found, wanted in zip(compiled(images(count), n), model(images(count), n), strict=True):
                torch.testing.assert_close(found, wanted)


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x).reshape(x.shape[0], -1) + self.conv(y).view(y.shape[0], -1)


def test_one_tensor_of_many_images_and_one_of_a_single_one() -> None:
    model = Added().eval()
    compiled = torch.compile(model, backend="budwood")
    for first, second in ((2, 2), (3, 3), (4, 4), (5, 5), (4, 1), (1, 3)):
        with torch.no_grad():
            x, y = images(first, 5), images(second, 5)
            torch.testing.assert_close(compiled(x, y), model(x, y))


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.dtype = nn.Conv2d(3, 4, 1), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_cast_is_kept(dtype: torch.dtype) -> None:
    model = Cast(dtype).eval()
    with torch.no_grad():
        found, wanted = torch.compile(model, backend="budwood")(images(2)), model(images(2))
    assert found.dtype == wanted.dtype == dtype and torch.equal(found, wanted)


def test_autocast_is_left_to_pytorch() -> None:
    model = small_net().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, wanted = torch.compile(model, backend="budwood")(images(2)), model(images(2))
    assert found.dtype == wanted.dtype == torch.bfloat16


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.conv(x)
        return y, y.flatten(1), x.flatten(1)


def test_outputs_that_share_memory_go_on_sharing_it() -> None:
    model, x = Views().eval(), images(2)
    with torch.no_grad():
        whole, flat, given = torch.compile(model, backend="budwood")(x)
    whole.zero_()
    x.zero_()
    assert not flat.any() and not given.any()


def test_share_without_convolutions_is_all() -> None:
    assert dynamo.share([]) == 1 and dynamo.share([dynamo.Report(1, 4), dynamo.Report(4, 4)]) == 5 / 8


def test_pytorch_finds_the_backend_by_its_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["torch_dynamo_backends"] == {"budwood": "budwood.engine.dynamo:budwood"}


NETWORKS = [n for n in torchvision.models.list_models(module=torchvision.models) if "vit" not in n and "swin" not in n]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_at_least_95_percent_of_the_convolutions_of_torchvision(name: str) -> None:
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra).eval()
    x = images(1, 299 if name == "inception_v3" else 224)
    compiled = torch.compile(model, backend="budwood")
    with torch.inference_mode(), dynamo.watch() as reports:
        made, wanted = compiled(x), model(x)
    assert (made - wanted).norm() <= 1e-4 * wanted.norm()
    assert dynamo.share(reports) >= 0.95, [report.reason for report in reports]
