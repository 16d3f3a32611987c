"""Batch norm statistics made anew: the mean and variance of what the layer sees, and nothing else is touched."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from budwood.train.batchnorm import recalibrate


class Images(Dataset[Any]):
    def __init__(self, count: int) -> None:
        self.images = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 3 + 2
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.seen.append(index)
        return self.images[index], 0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel: the mean, and the variance over n - 1, of (N, C, H, W) in float64."""
    flat = values.detach().double().transpose(0, 1).flatten(1)
    mean = flat.sum(1) / flat.shape[1]
    return mean, ((flat - mean[:, None]) ** 2).sum(1) / (flat.shape[1] - 1)


def test_one_batch_gives_the_moments_of_its_images() -> None:
    model, data = network(), Images(20)
    for norm in (model[1], model[5]):
        norm.running_mean.fill_(9.0)  # what was there before does not count
        norm.running_var.fill_(9.0)
        norm.num_batches_tracked.fill_(9)
    assert recalibrate(model, data, batch_size=64) == 20
    first = moments(model[0](data.images))
    torch.testing.assert_close(model[1].running_mean.double(), first[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), first[1], rtol=1e-5, atol=1e-6)
    # The second layer sees what the first one makes of the batch's own moments; dropout is off.
    inside = model[0](data.images)
    mean, variance = inside.mean((0, 2, 3), keepdim=True), inside.var((0, 2, 3), keepdim=True, unbiased=False)
    second = moments(model[4](((inside - mean) / (variance + 1e-5).sqrt()).relu()))
    torch.testing.assert_close(model[5].running_mean.double(), second[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[5].running_var.double(), second[1], rtol=1e-4, atol=1e-5)


def test_several_batches_are_averaged_plainly() -> None:
    model, data = network(), Images(24)
    assert recalibrate(model, data, batch_size=8) == 24
    assert sorted(data.seen) == list(range(24)) and int(model[1].num_batches_tracked) == 3
    found = [moments(model[0](data.images[data.seen[i : i + 8]])) for i in (0, 8, 16)]
    torch.testing.assert_close(model[1].running_mean.double(), sum(m for m, _ in found) / 3, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), sum(v for _, v in found) / 3, rtol=1e-5, atol=1e-6)
    mean, variance = moments(model[0](data.images))  # and so, nearly, the moments of all images
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), variance, rtol=0.1, atol=0.0)


def test_nothing_else_is_changed() -> None:
    model = network().train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    recalibrate(model, Images(16), batch_size=8)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{part}" for layer in (1, 5) for part in parts}
    assert (model[1].momentum, model[5].momentum) == (0.3, 0.1)
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    recalibrate(model.eval(), Images(16))
    assert not any(m.training for m in model.modules())


def test_no_more_images_than_asked_for() -> None:
    assert recalibrate(network(), Images(50), count=20, batch_size=10) == 20
    assert recalibrate(network(), Images(50), count=1000, batch_size=10) == 50
    assert recalibrate(network(), Images(50), count=20, batch_size=10) == 20


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4)])
def test_a_network_without_running_statistics(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm)
    assert recalibrate(model, Images(8)) == 0
