"""Every convolutional classifier of torchvision becomes a graph that computes what the network does."""

import numpy as np
import pytest
import torch
import torchvision

from budwood.engine.from_export import graph_from_module
from budwood.engine.interpret import interpret
from budwood.testing.networks import randomize

TRANSFORMERS = ("vit_", "swin_", "maxvit_")
NAMES = [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(TRANSFORMERS)]
# A small one of each family; the others take minutes together.
QUICK = {
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11_bn",
    "wide_resnet50_2",
}
OPTIONS = {
    "googlenet": {"init_weights": False, "transform_input": True},
    "inception_v3": {"init_weights": False, "transform_input": True},
}


def test_the_quick_ones_are_among_them() -> None:
    assert set(NAMES) > QUICK and len(NAMES) > 50


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_family_imports(name: str) -> None:
    images = torch.randn(3, 3, *[96 if name == "inception_v3" else 64] * 2, generator=torch.Generator().manual_seed(0))
    model = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    model = randomize(model, 1, images).double().eval()
    graph = graph_from_module(model, images.double(), dtype=np.float64)
    with torch.no_grad():
        expected, (found,) = model(images.double()), interpret(graph, images.double())
    assert torch.isfinite(expected).all() and expected.std() > 1e-3
    # The images must matter, or a constant would pass.
    assert (expected - expected.mean(0)).norm() > 1e-3 * expected.norm()
    assert (found - expected).norm() < 1e-9 * expected.norm()
