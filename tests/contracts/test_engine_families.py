"""Every torchvision classification CNN through the engine, against eager PyTorch in float64, dense and pruned."""

import copy

import numpy as np
import pytest
import torch

from budwood.bench.zeros import with_random_zeros
from budwood.engine.from_export import graph_from_module
from budwood.engine.passes import optimize
from budwood.engine.program import Program
from budwood.testing.networks import CLASSIFIERS, QUICK, classifier, randomize


@pytest.mark.parametrize("sparsity", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLASSIFIERS])
def test_a_family_agrees_with_eager(name: str, sparsity: float) -> None:
    size = 128 if name.startswith(("inception", "googlenet")) else 64
    x = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))
    module = classifier(name)
    randomize(module, 0, x)
    module = with_random_zeros(module, sparsity).eval()
    with torch.inference_mode():
        eager = module(x).double().numpy()
        exact = copy.deepcopy(module).double()(x.double()).numpy()
    ours = Program(optimize(graph_from_module(module, x)))(x.numpy())

    def error(y: np.ndarray) -> float:
        return float(np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2)))

    assert np.abs(exact).max() > 0 and error(ours) <= 2 * max(error(eager), 1e-7)
