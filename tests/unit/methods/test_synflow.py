"""SynFlow: the flow through the network, its conservation, and that no layer is ever cut through."""

import itertools

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.magnitude import Magnitude
from budwood.prune.schedule import exponential
from budwood.prune.synflow import SynFlow, SynFlowOptions, flow_scores, flowing
from budwood.testing.pruners import sparse_mask, toy_data, toy_network

AT_ONCE = Plan(0, 0)


def ones(model: nn.Module) -> Mask:
    return Mask.ones(prunable(model, head=True))


def sums(model: nn.Module, size: int) -> dict[str, float]:
    mask = ones(model)
    return {name: float(score.sum()) for name, score in flow_scores(flowing(model), list(mask), mask, size).items()}


def test_by_hand() -> None:
    """W1 = ((1, -2, 0), (0, 1, 3)), W2 = ((2, -1)), three ones in: R = 2 (1 + 2) + 1 (1 + 3) = 10. Each weight's share
    of it: (2, 4, 0), (0, 1, 3) and (6, 4); the greatest is 6. Of half the weights the greatest stay."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model.get_parameter("1.weight").data = torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 3.0]])
    model.get_parameter("3.weight").data = torch.tensor([[2.0, -1.0]])
    mask = ones(model)
    found = flow_scores(flowing(model), list(mask), mask, size=1)
    assert torch.allclose(found["1.weight"] * 6, torch.tensor([[2.0, 4.0, 0.0], [0.0, 1.0, 3.0]], dtype=torch.float64))
    assert torch.allclose(found["3.weight"] * 6, torch.tensor([[6.0, 4.0]], dtype=torch.float64))
    kept = SynFlow(0.5, SynFlowOptions(iterations=1, size=1)).start(model, mask, AT_ONCE)
    assert kept["1.weight"].tolist() == [[False, True, False], [False, False, True]]
    assert kept["3.weight"].tolist() == [[True, True]]


def test_density_falls_by_the_same_factor() -> None:
    assert exponential(0.0, 0.9, 2) == pytest.approx([1 - 0.1**0.5, 0.9])
    assert exponential(0.0, 0.9999, 4) == pytest.approx([0.9, 0.99, 0.999, 0.9999])
    assert exponential(0.5, 0.875, 2) == pytest.approx([0.75, 0.875])
    hundred = exponential(0.0, 0.9, 100)
    assert len(hundred) == 100 and hundred[0] == pytest.approx(1 - 0.1**0.01) and hundred[-1] == 0.9
    assert hundred[49] == pytest.approx(1 - 0.1**0.5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 1000))
def test_every_layer_carries_all_of_it(widths: list[int], seed: int) -> None:
    """The conservation law: without biases the sums over the layers are equal."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in zip([3, *widths], widths, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(widths[-1] * 4, 2, bias=False))
    found = list(sums(model, 4).values())
    assert found == pytest.approx([found[0]] * len(found), rel=1e-9)


def plainly(model: nn.Module, sparsity: float, iterations: int, size: int) -> Mask:
    """Its authors' loop, in float64: absolute values of everything, score |w dR/dw|, the weights that go are put to
    zero. A plain network of ReLU."""
    model = model.double().eval()
    for tensor in model.state_dict().values():
        tensor.abs_()
    names = list(prunable(model, head=True))
    weights = [model.get_parameter(name) for name in names]
    total = sum(w.numel() for w in weights)
    for k in range(1, iterations + 1):
        model.zero_grad()
        model(torch.ones(1, 3, size, size, dtype=torch.float64)).sum().backward()
        scores = torch.cat([(w.grad * w).detach().abs().flatten() for w in weights if w.grad is not None])
        keep = torch.zeros(total, dtype=torch.bool)
        keep[scores.argsort(descending=True)[: total - round((1 - (1 - sparsity) ** (k / iterations)) * total)]] = True
        with torch.no_grad():
            for weight, bits in zip(weights, keep.split([w.numel() for w in weights]), strict=True):
                weight.mul_(bits.reshape(weight.shape))
    return Mask.from_zeros({name: model.get_parameter(name).detach() for name in names})


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_as_the_plain_loop(sparsity: float) -> None:
    model = toy_network()
    for _ in range(2):
        model(toy_data()[:][0])
    found = SynFlow(sparsity, SynFlowOptions(iterations=12, size=6)).start(model, ones(model), AT_ONCE)
    other = toy_network()
    other.load_state_dict(model.state_dict())
    assert found == plainly(other, sparsity, 12, 6)


def tower() -> nn.Sequential:
    """Six layers, one of them of 1024 small weights, and others of few that are great."""
    torch.manual_seed(0)
    widths = [3, 4, 32, 32, 4, 4, 2]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_one_weight_a_layer_is_left_where_magnitude_cuts_layers_through() -> None:
    model = tower()
    mask = ones(model)
    sparsity = 1 - 6 / mask.total
    found = SynFlow(sparsity, SynFlowOptions(iterations=100, size=1)).start(model, mask, AT_ONCE)
    assert found.counts() == dict.fromkeys(mask, 1)
    found.apply_(model)
    positive = flowing(model)
    assert positive(torch.ones(1, 3, 1, 1, dtype=torch.float64)).sum().item() > 0
    assert min(Magnitude(sparsity).start(tower(), mask, AT_ONCE).counts().values()) == 0
    once = SynFlow(sparsity, SynFlowOptions(iterations=1, size=1)).start(tower(), mask, AT_ONCE)
    assert min(once.counts().values()) == 0


def test_float64_carries_what_float32_cannot() -> None:
    """30 layers that multiply by 32 each: 1e45."""
    layers = [nn.Linear(32, 32, bias=False) for _ in range(30)]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 32, bias=False), *layers)
    for layer in layers:
        nn.init.ones_(layer.weight)
    assert not bool(torch.isfinite(model.float()(torch.ones(1, 3, 1, 1)).abs().sum()))
    found = list(sums(model, 1).values())
    assert found == pytest.approx([found[0]] * 31)


class SqueezeExcite(nn.Module):
    def __init__(self, gate: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.less, self.more = nn.Conv2d(8, 2, 1, bias=False), nn.Conv2d(2, 8, 1, bias=False)
        self.inner, self.gate = inner, gate

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.gate(self.more(self.inner(self.less(self.squeeze(x)))))
        return x * scale


class Homemade(nn.Module):
    """The gate is made by a sequence, and multiplied outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.Flatten(), nn.Linear(8, 2, bias=False), nn.ReLU(), nn.Linear(2, 8, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x.mean((2, 3), keepdim=True))[:, :, None, None]


SQUEEZES = {
    "sigmoid": lambda: SqueezeExcite(nn.Sigmoid(), nn.SiLU(inplace=True)),
    "hardsigmoid": lambda: SqueezeExcite(nn.Hardsigmoid(), nn.ReLU()),
    "homemade": Homemade,
}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU])
@pytest.mark.parametrize("squeeze", SQUEEZES)
def test_gates_and_bent_activations_let_the_flow_pass(squeeze: str, activation: type[nn.Module]) -> None:
    """As they are, a ReLU6 or a sigmoid would be saturated and every weight before it worth nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), activation(), SQUEEZES[squeeze](), nn.Conv2d(8, 8, 3, bias=False),
        activation(), SQUEEZES[squeeze](), nn.Flatten(), nn.Linear(32, 2, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(100)
    found = sums(model, 6)
    assert len(found) == 7
    assert list(found.values()) == pytest.approx([next(iter(found.values()))] * 7, rel=1e-9)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"])
def test_known_networks_keep_every_layer_and_stay_as_they_were(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    model.eval().get_submodule("features").train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    found = SynFlow(0.8, SynFlowOptions(iterations=3, size=32)).start(model, ones(model), AT_ONCE)
    assert abs(found.sparsity - 0.8) < 1e-6 and min(found.counts().values()) > 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    model.eval()(torch.randn(1, 3, 32, 32))


def test_from_a_sparse_network() -> None:
    model = toy_network()
    mask = sparse_mask(ones(model))
    mask.apply_(model)
    found = SynFlow(0.8, SynFlowOptions(iterations=5, size=6)).start(model, mask, AT_ONCE)
    assert not found.revived_since(mask) and found.kept == round(0.2 * found.total)
    same = SynFlow(mask.sparsity, SynFlowOptions(iterations=5, size=6)).start(model, mask, AT_ONCE)
    assert same == mask


def test_bad_input_is_one_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(UserError, match=r"takes no image of 64 x 64.*--option size="):
        SynFlow(0.5).start(model, ones(model), AT_ONCE)
    model.get_parameter("1.weight").data[0, 0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        SynFlow(0.5, SynFlowOptions(size=2)).start(model, ones(model), AT_ONCE)
