"""GraSP: w (H g), against the full Hessian and against what shrinking a weight does to the gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.grasp import GraSP, GraSPOptions
from budwood.testing.pruners import toy_data, toy_network
from budwood.train.data import batches_from


def network() -> nn.Sequential:
    """26 weights, with curved activations and biases that do not take part."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3, bias=False))


def draw() -> Any:
    random = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(12, 3, 1, 1, generator=random).flatten(1), torch.arange(12) % 3)

    def batches(size: int, salt: int) -> Any:
        order = torch.randperm(12, generator=torch.Generator().manual_seed(salt)).split(size)
        while True:
            for part in order:
                yield data.tensors[0][part], data.tensors[1][part]

    return batches


def loss_of(temperature: float, count: int, size: int) -> Any:
    """The sum of `count` losses as a function of all weights in one vector, in float64."""
    model = network().double()
    names = list(prunable(model, head=True))
    shapes = [model.get_parameter(name).shape for name in names]
    batches = draw()(size, 0)
    seen = [next(batches) for _ in range(count)]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        total = torch.zeros((), dtype=torch.float64)
        for images, targets in seen:
            logits = torch.func.functional_call(model, weights, images.double())
            total = total + F.cross_entropy(logits / temperature, targets)
        return total

    return loss, torch.cat([model.get_parameter(name).detach().flatten() for name in names])


def scores(mask: Mask, options: GraSPOptions, model: nn.Module) -> Tensor:
    pruner = GraSP(0.0, options)
    pruner.plan_ = Plan(0, 0, batches=draw())
    return torch.cat([score.flatten() for score in pruner.scores(model, mask, 0.0, 0).values()]).double()


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("pruned", [False, True])
def test_as_by_the_full_hessian(temperature: float, pruned: bool) -> None:
    """Gradients of pruned weights count for nothing, as these cannot move."""
    loss, flat = loss_of(temperature, 3, 4)
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[::3] = not pruned
    flat = flat * kept
    gradient = torch.autograd.functional.jacobian(loss, flat) * kept
    hessian = torch.autograd.functional.hessian(loss, flat)
    expected = flat * (hessian @ gradient)
    model = network()
    weights = prunable(model, head=True)
    parts = kept.split([w.numel() for w in weights.values()])
    mask = Mask({name: part.reshape(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)})
    mask.apply_(model)
    found = scores(mask, GraSPOptions(gradients=3, batch=4, temperature=temperature), model)
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0


def test_the_weights_that_stay_are_those_the_gradient_needs() -> None:
    """By its meaning: shrink one weight by a little, and see what is left of the squared norm of the gradient. The
    weights that are pruned are those where the most is left."""
    loss, flat = loss_of(1.0, 3, 4)

    def strength(at: Tensor) -> float:
        return float(torch.autograd.functional.jacobian(loss, at).square().sum())

    left = []
    for q in range(len(flat)):
        less = flat.clone()
        less[q] *= 1 - 1e-5
        left.append(strength(less) - strength(flat))
    expected = torch.ones(len(flat), dtype=torch.bool)
    expected[torch.tensor(left).argsort(descending=True)[:13]] = False
    model = network()
    mask = Mask.ones(prunable(model, head=True))
    options = GraSPOptions(gradients=3, batch=4, temperature=1.0)
    found = GraSP(0.5, options).start(model, mask, Plan(0, 0, batches=draw()))
    assert torch.equal(torch.cat([found[name].flatten() for name in found]), expected)


def test_by_hand() -> None:
    """One weight w before a softmax of (w, 0), class 0: L = log(1 + e^-w). At w = 1, p = 1 / (1 + e) = 0.2689: the
    gradient is -p, the Hessian p (1 - p), so the score w H g = -p^2 (1 - p) = -0.05288."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            self.layer.weight.data.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            logit: Tensor = self.layer(x)
            return torch.cat([logit, torch.zeros_like(logit)], 1)

    def batches(size: int, salt: int) -> Any:
        while True:
            yield torch.ones(1, 1), torch.tensor([0])

    model = One()
    pruner = GraSP(0.0, GraSPOptions(gradients=1, batch=1, temperature=1.0))
    pruner.plan_ = Plan(0, 0, batches=batches)
    found = pruner.scores(model, Mask.ones({"layer.weight": model.layer.weight}), 0.0, 0)
    assert float(found["layer.weight"]) == pytest.approx(-0.05288, rel=1e-3)


def test_the_network_stays_as_it_is() -> None:
    model = toy_network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told: list[tuple[int, int]] = []
    plan = Plan(
        0, 0, batches=batches_from(toy_data(), 0, 0, torch.device("cpu")), progress=lambda *done: told.append(done)
    )
    GraSP(0.5, GraSPOptions(gradients=2, batch=8)).start(model, Mask.ones(prunable(model, head=True)), plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_batch_norm_has_the_statistics_of_each_batch() -> None:
    one, other = toy_network(), toy_network()
    other[1].running_mean.fill_(3.0)
    other[1].running_var.fill_(9.0)
    mask, found = Mask.ones(prunable(one, head=True)), []
    for model in (one, other):
        pruner = GraSP(0.0, GraSPOptions(gradients=2, batch=8))
        pruner.plan_ = Plan(0, 0, batches=batches_from(toy_data(), 0, 0, torch.device("cpu")))
        found.append(pruner.scores(model, mask, 0.0, 0))
    assert all(torch.equal(found[0][name], found[1][name]) for name in mask)
