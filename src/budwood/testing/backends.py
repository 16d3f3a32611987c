"""The contract of a backend: the answer of eager mode. Run it on your own with `check_backend("name")`."""

import pytest
import torch
from torch import Tensor, nn

from ..bench.backend import Run
from ..bench.latency import disagreement
from ..core.registry import backends


def check_backend(name: str) -> None:
    """Assert that a registered backend gives eager mode's logits, and leaves the network as it was.

    Skips, with the reason, a backend that cannot run here.
    """
    backend = backends.get(name)()
    if reason := backend.available():
        pytest.skip(reason)
    model = small_net()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for batch in (1, 3):
        _check_batch(name, model, torch.randn(batch, 3, 33, 33, generator=torch.Generator().manual_seed(batch)))
    assert model.training, f"{name} changed the mode of the network it was given"
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), f"{name} changed {key} of the network it was given"


def small_net() -> nn.Sequential:
    """Convolutions (plain, strided, depthwise, grouped, pointwise), batch norm, ReLU, pools and a linear head,
    with odd sizes, 80 % zeros and batch-norm statistics that are not the identity; in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(12, 20, 1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 20, 5, padding=2, groups=4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(20, 7),
    )  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, nn.Conv2d) and module.groups == 1:
                module.weight[torch.rand_like(module.weight) < 0.8] = 0
    return model


def _check_batch(name: str, model: nn.Module, images: Tensor) -> None:
    threads, allowed = torch.get_num_threads(), backends.get(name).tolerance
    expected = backends.get("eager")().prepare(model, images, threads)(images)
    run: Run = backends.get(name)().prepare(model, images, threads)
    other = images.flip(0).mul(0.5)  # not the example: a backend must not have kept its answer
    assert (reason := disagreement(expected, run(images), allowed)) is None, f"{name}, batch {len(images)}: {reason}"
    assert (reason := disagreement(expected, run(images.numpy()), allowed)) is None, f"{name}, from an array: {reason}"
    expected = backends.get("eager")().prepare(model, other, threads)(other)
    assert (reason := disagreement(expected, run(other), allowed)) is None, f"{name}, other images: {reason}"
