"""Networks with every number at random."""

import torch
import torchvision
from torch import nn

from budwood.testing.networks import randomize


def test_the_same_seed_gives_the_same_numbers_and_modes_stay() -> None:
    models = [torchvision.models.mobilenet_v3_small(weights=None) for _ in range(3)]
    models[0].features[0].eval()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        randomize(model, seed)
    a, b, c = (model.state_dict() for model in models)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a if "num_batches" not in name)
    assert models[0].training and not models[0].features[0].training and models[1].features[0].training


def test_every_branch_has_a_say() -> None:
    model = randomize(torchvision.models.resnet18(weights=None, zero_init_residual=True), 0).eval()
    assert all(module.weight.min() > 0.4 for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    scale = randomize(torchvision.models.convnext_tiny(weights=None), 0).features[1][0].layer_scale
    assert scale.min() > 0.4


def test_activations_stay_of_a_sane_size() -> None:
    for name in ("resnet152", "efficientnet_b3"):
        model = randomize(torchvision.models.get_model(name, weights=None), 0).eval()
        with torch.no_grad():
            spread = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))).std().item()
        assert 0.01 < spread < 100, f"{name}: {spread}"


def test_a_network_without_parameters() -> None:
    randomize(nn.BatchNorm2d(3, affine=False), 0)
    randomize(nn.ReLU(), 0)
