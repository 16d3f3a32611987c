"""`budwood.accelerate` as a PyTorch module: parameters, state dicts, optimizers, modes, fallbacks and refusals."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import budwood
from budwood import Mask, UserError
from budwood.engine.training.sparse import SparseConv2d, same_edges


def network(sparsity: float = 0.8) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 1, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU6(),
        nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False),
        nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    with torch.no_grad():
        for layer in (model[3], model[6]):
            layer.weight *= torch.rand_like(layer.weight) >= sparsity
    return model


def loss(model: nn.Module, images: Tensor) -> Tensor:
    return F.cross_entropy(model(images), torch.arange(len(images)) % 4)


def used(model: nn.Module) -> str:
    return model.explain().splitlines()[-1]


def images(count: int = 4, **kind: object) -> Tensor:
    return torch.randn(count, 3, 20, 20, generator=torch.Generator().manual_seed(1)).to(**kind)


def test_parameters_are_the_non_zeros_under_the_same_names():
    dense = network()
    kept = {n: int(torch.count_nonzero(p)) for n, p in dense.named_parameters()}
    model = budwood.accelerate(network())
    assert list(dict(model.named_parameters())) == list(dict(dense.named_parameters()))
    assert model.get_parameter("3.weight").shape == (kept["3.weight"],)
    assert model.get_parameter("6.weight").shape == (kept["6.weight"],)
    assert model.get_parameter("0.weight").shape == (8, 3, 3, 3)


def test_state_dict_is_the_dense_one_both_ways():
    dense, model = network(), budwood.accelerate(network())
    state = model.state_dict()
    assert list(state) == list(dense.state_dict())
    assert all(torch.equal(a, state[n]) for n, a in dense.state_dict().items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model, images()).backward()
    optimizer.step()
    trained = model.state_dict()
    assert not torch.equal(trained["3.weight"], state["3.weight"])
    assert torch.equal(trained["3.weight"] != 0, state["3.weight"] != 0)
    dense.load_state_dict(trained)
    other = budwood.accelerate(network())
    other.load_state_dict(trained)
    assert all(torch.equal(a, trained[n]) for n, a in other.state_dict().items())
    for net in (model, other, dense):
        net.eval()
    with torch.no_grad():
        assert torch.equal(model(images()), other(images()))
        torch.testing.assert_close(model(images()), dense(images()), rtol=1e-4, atol=1e-5)


def test_state_dict_of_another_mask_or_shape_is_refused():
    model = budwood.accelerate(network())
    other = network(0.5).state_dict()
    with pytest.raises(RuntimeError, match=r"3\.weight: weights that are not zero"):
        model.load_state_dict(other)
    with pytest.raises(RuntimeError, match=r"size mismatch for 3\.weight"):
        model.load_state_dict({**model.state_dict(), "3.weight": torch.zeros(12, 8, 1, 1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({n: t for n, t in model.state_dict().items() if n != "3.weight"})


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_optimizer_state_is_of_the_non_zeros(kind):
    model = budwood.accelerate(network())
    optimizer = kind(model.parameters(), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    loss(model, images()).backward()
    optimizer.step()
    held = sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.numel() > 1)
    kept = sum(int(torch.count_nonzero(t)) for n, t in network().named_parameters() if n in ("3.weight", "6.weight"))
    others = sum(p.numel() for n, p in network().named_parameters() if n not in ("3.weight", "6.weight"))
    # Norms' biases begin at zero but are parameters all the same.
    assert held == (kept + others) * (1 if kind is torch.optim.SGD else 2)


def test_a_mask_says_which_zeros_stay():
    dense = network()
    mask = Mask({"3.weight": dense[3].weight != 0})
    model = budwood.accelerate(dense, mask)
    assert isinstance(model.get_submodule("3"), SparseConv2d)
    assert isinstance(model.get_submodule("6"), nn.Conv2d)
    assert mask.holds(model.state_dict())
    with pytest.raises(UserError, match="give this network's"):
        budwood.accelerate(network(), {"3.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(UserError, match=r"names 'conv9\.weight'"):
        budwood.accelerate(network(), {"conv9.weight": torch.ones(1, dtype=torch.bool)})


def test_a_convolution_without_a_weight_left_stays_without():
    model = budwood.accelerate(network(), {"3.weight": torch.zeros(12, 8, 3, 3, dtype=torch.bool)})
    loss(model, images()).backward()
    assert model.get_parameter("3.weight").numel() == 0
    assert not model.state_dict()["3.weight"].any()
    assert "without a weight left" in model.explain()


def test_an_optimizer_before_accelerate_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="call accelerate first"):
        budwood.accelerate(model)
    del optimizer
    budwood.accelerate(model)


def test_accelerated_twice_is_refused():
    with pytest.raises(UserError, match="accelerated already"):
        budwood.accelerate(budwood.accelerate(network()))


def test_gradients_accumulate_over_several_forward_passes():
    model = budwood.accelerate(network())
    loss(model, images(4)).backward()
    first = {n: p.grad.clone() for n, p in model.named_parameters()}
    a, b = loss(model, images(4)), loss(model, images(8))
    model.zero_grad()
    b.backward()
    second = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    a.backward()
    assert all(torch.equal(p.grad, first[n]) for n, p in model.named_parameters())
    loss(model, images(8)).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, first[name] + second[name], rtol=1e-6, atol=1e-7)


def test_a_second_backward_pass_is_refused():
    model = budwood.accelerate(network())
    value = loss(model, images())
    value.backward(retain_graph=True)
    with pytest.raises(UserError, match="call the network again"):
        value.backward()


def test_a_weight_changed_before_backward_is_noticed():
    model = budwood.accelerate(network())
    value = loss(model, images())
    with torch.no_grad():
        model.get_parameter("3.weight").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("name", ["3.weight", "1.bias", "10.weight"])
def test_frozen_parameters_get_no_gradient(name):
    model = budwood.accelerate(network())
    model.get_parameter(name).requires_grad_(False)
    loss(model, images()).backward()
    assert "engine" in used(model)
    assert {n for n, p in model.named_parameters() if p.grad is None} == {name}


def test_gradcheck_of_the_reference_path():
    model = budwood.accelerate(network()).double()
    parameters = [model.get_parameter(n) for n in ("3.weight", "6.weight", "1.weight")]
    given = images(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *_: model(given), parameters, atol=1e-6, fast_mode=True)
    assert "PyTorch alone" in used(model)


class Conv2dSame(nn.Conv2d):
    """What timm's convolution with TensorFlow's padding is known by; `padded` is that padding by hand, at 5 x 6."""

    padded = (0, 1, 1, 1)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, (3, 1), stride=(1, 3), padding=(2, 0), bias=False),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        Conv2dSame(4, 6, 3, stride=2, bias=False),
        Conv2dSame(4, 4, 3, stride=2, groups=4),
    ],
    ids=["plain", "stride", "uneven", "dilation", "groups", "depthwise", "same", "same depthwise"],
)
def test_gradcheck_of_a_convolution_by_itself(conv):
    conv = copy.deepcopy(conv).double()
    torch.manual_seed(0)
    with torch.no_grad():
        conv.weight *= torch.rand_like(conv.weight) >= 0.5
    sparse = SparseConv2d(conv, conv.weight != 0)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(sparse(x), conv(F.pad(x, getattr(conv, "padded", (0, 0, 0, 0)))))

    def out(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(sparse, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(out, (x, sparse.weight))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (images(dtype=torch.float64), "float32"),
        (images(0), "empty"),
    ],
)
def test_what_the_engine_does_not_do_goes_through_pytorch(given, why):
    model = budwood.accelerate(network())
    model.eval()
    if given.dtype == torch.float64:
        model.double()
    assert model(given).shape == (len(given), 4)
    assert used(model).startswith("last call: PyTorch alone") and why in used(model)


def test_images_get_a_gradient_if_they_want_one():
    model = budwood.accelerate(network())
    double = copy.deepcopy(model).double()
    given, wanted = images().requires_grad_(), images(dtype=torch.float64).requires_grad_()
    loss(model, given).backward()
    assert "engine" in used(model)
    loss(double, wanted).backward()
    torch.testing.assert_close(given.grad.double(), wanted.grad, rtol=1e-4, atol=1e-6)
    for p in model.parameters():
        p.requires_grad_(False)
    before, given.grad = given.grad, None
    loss(model, given).backward()
    assert torch.equal(given.grad, before)


def test_under_autocast_the_region_stays_in_float32():
    model = budwood.accelerate(network())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images())
    assert out.dtype == torch.bfloat16 and "engine" in used(model)
    other = budwood.accelerate(network())(images())
    torch.testing.assert_close(out.float(), other, rtol=0.05, atol=0.05)


def test_hooks_inside_are_called():
    model = budwood.accelerate(network())
    seen = []
    handle = model.get_submodule("4").register_forward_hook(lambda *_: seen.append(1))
    model(images())
    assert seen == [1] and "hooks" in used(model)
    handle.remove()
    model(images())
    assert "engine" in used(model)


def test_modes_and_copies():
    model = budwood.accelerate(network())
    model(images())
    assert not model.eval().get_submodule("1").training and model.train().get_submodule("1").training
    other = copy.deepcopy(model)
    other.get_parameter("3.weight").data.zero_()
    assert model.get_parameter("3.weight").abs().sum() > 0
    assert other(images()).shape == (4, 4) and "engine" in used(other)


def test_what_cannot_be_split_is_pytorch_s_alone():
    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = network()[3]

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    model = budwood.accelerate(Turns())
    assert model(torch.ones(1, 8, 4, 4)).shape == (1, 12, 4, 4)
    assert "cannot be traced" in used(model)


def test_a_feature_map_may_be_what_pytorch_goes_on_with():
    torch.manual_seed(0)
    tail = nn.Sequential(nn.GELU(), nn.Conv2d(12, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = budwood.accelerate(nn.Sequential(*network()[:5], tail))
    double = copy.deepcopy(model).double()
    model(images()).square().sum().backward()
    assert "engine" in used(model) and "GELU" in model.explain()
    double(images(dtype=torch.float64)).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), double.parameters(), strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_padding_same_is_tensorflow_s():
    # By hand: 5 pixels, kernel 3, stride 2 give 3 outputs, which reach over 7 pixels: one more on each side.
    assert same_edges((5, 6), (3, 3), (2, 2), (1, 1)) == (1, 1, 0, 1)
    assert same_edges((4, 4), (1, 5), (1, 1), (1, 2)) == (0, 0, 4, 4)
    assert same_edges((7, 7), (1, 1), (2, 2), (1, 1)) == (0, 0, 0, 0)
