"""What layers see, against torch's unfold written plainly in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.errors import UserError
from budwood.core.pruner import Plan
from budwood.prune import inputs
from budwood.prune.inputs import products, squares


def images(count: int = 5, channels: int = 4, size: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def plan_of(data: Tensor, more: bool = True) -> Plan:
    """The images in order, again and again, or once."""

    def batches(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for part in data.split(size):
                yield part, torch.zeros(len(part), dtype=torch.long)
            if not more:
                return

    return Plan(0, 0, batches=batches)


def plainly(x: Tensor, layer: nn.Conv2d, padding: Any) -> Tensor:
    """2 sum(x x^T) / images of every group: (groups, D, D) float64."""
    columns = F.unfold(x.double(), layer.kernel_size, layer.dilation, padding, layer.stride)
    found = []
    for part in columns.chunk(layer.groups, dim=1):
        total = sum(column @ column.T for column in part)
        found.append(2 * total / len(x))
    return torch.stack(found)


CONVOLUTIONS: list[tuple[dict[str, Any], Any]] = [
    ({"kernel_size": 3}, 0),
    ({"kernel_size": 3, "stride": 2, "padding": 1}, 1),
    ({"kernel_size": (3, 1), "stride": (2, 3), "padding": (2, 1)}, (2, 1)),
    ({"kernel_size": 3, "dilation": 2, "padding": 2}, 2),
    ({"kernel_size": 5, "dilation": (1, 2), "padding": "same"}, (2, 4)),
    ({"kernel_size": 3, "padding": "valid"}, 0),
    ({"kernel_size": 1}, 0),
    ({"kernel_size": 1, "stride": 2}, 0),
    ({"kernel_size": 3, "groups": 2, "padding": 1}, 1),
    ({"kernel_size": 3, "groups": 4, "stride": 2, "padding": 1}, 1),
    ({"kernel_size": 3, "groups": 4, "out": 8}, 0),
]


@pytest.mark.parametrize(("kind", "padding"), CONVOLUTIONS)
def test_products_of_a_convolution(kind: dict[str, Any], padding: Any) -> None:
    outputs = kind.get("out", 4)
    layer = nn.Conv2d(4, outputs, **{key: value for key, value in kind.items() if key != "out"})
    model, x = nn.Sequential(layer), images()
    ((name, found),) = products(model, ["0.weight"], plan_of(x), 5)
    assert name == "0.weight" and found.dtype == torch.float64
    assert torch.allclose(found, plainly(x, layer, padding), rtol=1e-5, atol=1e-5)
    assert torch.allclose(
        squares(model, ["0.weight"], plan_of(x), 5)["0.weight"] * 2 / 5, found.diagonal(dim1=1, dim2=2)
    )


def test_columns_are_those_of_the_flattened_weight() -> None:
    """The squared outputs without bias are w^T H w / 2 per image, for every row of every group."""
    layer, x = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), images()
    ((_, found),) = products(nn.Sequential(layer), ["0.weight"], plan_of(x), 5)
    rows = layer.weight.detach().double().flatten(1).unflatten(0, (2, 3))
    outputs = layer(x).detach().double().square().sum((0, 2, 3)) / 5
    assert torch.allclose(((rows @ found) * rows).sum(2).flatten() / 2, outputs, rtol=1e-5)


def test_an_uneven_same_padding_goes_to_the_right_and_the_bottom() -> None:
    layer, x = nn.Conv2d(4, 4, (2, 4), padding="same"), images()
    ((_, found),) = products(nn.Sequential(layer), ["0.weight"], plan_of(x), 5)
    assert torch.allclose(found, plainly(F.pad(x, (1, 2, 0, 1)), layer, 0), rtol=1e-5, atol=1e-5)


def test_padding_that_is_no_zeros() -> None:
    layer, x = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), images()
    ((_, found),) = products(nn.Sequential(layer), ["0.weight"], plan_of(x), 5)
    assert torch.allclose(found, plainly(F.pad(x, (1,) * 4, mode="reflect"), layer, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 8), (6, 3, 8), (2, 2, 3, 8)])
def test_products_of_a_linear_layer(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ((_, found),) = products(nn.Sequential(nn.Linear(8, 3)), ["0.weight"], plan_of(x), len(x))
    rows = x.double().reshape(-1, 8)
    assert torch.allclose(found, 2 * rows.T @ rows[None] / len(x), rtol=1e-5)


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.Dropout(0.5)
    )


def test_a_small_budget_takes_several_passes_to_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    names, x, model = ["0.weight", "3.weight"], images(), two_layers()
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    whole = dict(products(model, names, plan_of(x), 5))
    assert len(passes) == 1
    monkeypatch.setattr(inputs, "BUDGET", 1)
    parts = dict(products(model, names, plan_of(x), 5))
    assert len(passes) == 3 and list(parts) == names
    assert all(torch.equal(parts[name], whole[name]) for name in names)


def test_parts_of_a_batch_sum_up(monkeypatch: pytest.MonkeyPatch) -> None:
    names, x, model = ["0.weight", "3.weight"], images(), two_layers()
    whole = dict(products(model, names, plan_of(x), 5))
    monkeypatch.setattr(inputs, "PART", 1)
    assert all(torch.allclose(h, whole[name], atol=1e-5) for name, h in products(model, names, plan_of(x), 5))


def test_the_network_is_as_it_was() -> None:
    model = two_layers().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dict(products(model, ["0.weight", "3.weight"], plan_of(images()), 5))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("asked", "seen"), [(3, [3]), (5, [5]), (7, [5, 2])])
def test_so_many_images_as_asked_for(asked: int, seen: list[int]) -> None:
    """Fewer than there are: the first; more: some of them again."""
    x, layer = images(), nn.Conv2d(4, 4, 3)
    counts: list[int] = []
    model = nn.Sequential(layer)
    model.register_forward_hook(lambda module, args, out: counts.append(len(out)))
    ((_, found),) = products(model, ["0.weight"], plan_of(x), asked)
    assert counts == seen
    assert torch.allclose(found, plainly(torch.cat([x, x])[:asked], layer, 0), rtol=1e-5, atol=1e-5)


def test_images_that_end_too_early_are_enough() -> None:
    x, layer = images(), nn.Conv2d(4, 4, 3)
    ((_, found),) = products(nn.Sequential(layer), ["0.weight"], plan_of(x, more=False), 100)
    assert torch.allclose(found, plainly(x, layer, 0), rtol=1e-5, atol=1e-5)


def empty_now_and_then(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
    for image in images().split(1):
        yield torch.zeros(0, 4, 9, 9), torch.zeros(0)
        yield image, torch.zeros(1)


def always_empty(size: int, salt: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield torch.zeros(0, 4, 9, 9), torch.zeros(0)


def test_empty_batches_count_for_nothing() -> None:
    layer = nn.Conv2d(4, 4, 3)
    ((_, found),) = products(nn.Sequential(layer), ["0.weight"], Plan(0, 0, batches=empty_now_and_then), 5)
    assert torch.allclose(found, plainly(images(), layer, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batches", [always_empty, lambda size, salt: iter(())])
def test_without_any_image_it_says_so(batches: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="no images"):
        dict(products(nn.Sequential(nn.Conv2d(4, 4, 3)), ["0.weight"], Plan(0, 0, batches=batches), 5))


def test_a_layer_that_is_never_used_has_seen_nothing() -> None:
    model = two_layers()
    model[1].unused = nn.Linear(3, 2)
    found = dict(products(model, ["0.weight", "1.unused.weight"], plan_of(images()), 5))
    assert found["0.weight"].count_nonzero() > 0 and found["1.unused.weight"].count_nonzero() == 0


class Standardised(nn.Conv2d):
    """Multiplies by something else than its weights, as BiT's and NFNet's convolutions do."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


def test_a_layer_that_makes_its_weights_anew_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), Standardised(4, 4, 1))
    with pytest.raises(UserError, match=r"^1 multiplies not by its weights"):
        dict(products(model, ["0.weight", "1.weight"], plan_of(images()), 5))
    assert not model[0]._forward_hooks and not model[1]._forward_hooks
    assert dict(products(model, ["0.weight"], plan_of(images()), 5))["0.weight"].count_nonzero() > 0


def test_inputs_that_overflow_are_refused() -> None:
    with pytest.raises(UserError, match=r"0 are not finite"):
        dict(products(nn.Sequential(nn.Conv2d(4, 4, 3)), ["0.weight"], plan_of(images() * torch.inf), 5))


def test_a_layer_too_wide_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="20000 inputs"):
        dict(products(nn.Sequential(nn.Linear(20000, 1)), ["0.weight"], plan_of(torch.zeros(1, 20000)), 1))
