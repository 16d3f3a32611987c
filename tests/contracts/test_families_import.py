"""Every convolutional classifier of torchvision becomes a graph that computes what the network does."""

import numpy as np
import pytest
import torch

from budwood.engine.from_export import graph_from_module
from budwood.engine.interpret import interpret
from budwood.testing.networks import CLASSIFIERS, QUICK, classifier, randomize


def test_the_quick_ones_are_among_them() -> None:
    assert set(CLASSIFIERS) > QUICK and len(CLASSIFIERS) > 50


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLASSIFIERS])
def test_a_family_imports(name: str) -> None:
    images = torch.randn(3, 3, *[96 if name == "inception_v3" else 64] * 2, generator=torch.Generator().manual_seed(0))
    model = classifier(name)
    model = randomize(model, 1, images).double().eval()
    graph = graph_from_module(model, images.double(), dtype=np.float64)
    with torch.no_grad():
        expected, (found,) = model(images.double()), interpret(graph, images.double())
    assert torch.isfinite(expected).all() and expected.std() > 1e-3
    # The images must matter, or a constant would pass.
    assert (expected - expected.mean(0)).norm() > 1e-3 * expected.norm()
    assert (found - expected).norm() < 1e-9 * expected.norm()
