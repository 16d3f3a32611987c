"""Linear layers of non-zeros, held against PyTorch's in double precision; how `accelerate` puts them in."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import budwood
from budwood import UserError
from budwood.engine.training.linear import SparseLinear
from budwood.engine.training.passes import Passes

Found = dict[str, Tensor]


def layer(inside: int, out: int, density: float = 0.2, *, bias: bool = True, few: int = 0) -> SparseLinear:
    """With a row and a column of zeros; `few`: so many non-zeros in all."""
    torch.manual_seed(inside + out)
    kept = torch.rand(out, inside) < density
    kept[out // 2], kept[:, inside // 2] = False, False
    kept[0, 0] = True
    if few:
        kept.fill_(False)
        kept.view(-1)[torch.randperm(out * inside)[:few]] = True
    return SparseLinear(nn.Linear(inside, out, bias=bias), kept)


def plainly(module: nn.Module) -> nn.Module:
    """The same, computed by PyTorch with the zeros filled in."""
    plain = copy.deepcopy(module)
    for name, child in list(plain.named_modules()):
        if isinstance(child, SparseLinear):
            dense = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
            dense.load_state_dict(child.state_dict())
            if not name:
                return dense
            plain.set_submodule(name, dense)
    return plain


def through(module: nn.Module, x: Tensor, gradient: Tensor) -> Found:
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(gradient)
    assert x.grad is not None
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **found}


def masked(found: Found, sparse: SparseLinear) -> Found:
    return {**found, "weight": found["weight"].flatten()[sparse.index.long()]}


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm()) / max(float(b.norm()), 1e-30)


@pytest.mark.parametrize(("inside", "out"), [(7, 5), (33, 17), (100, 130), (257, 129), (2, 60), (60, 2), (9000, 12)])
@pytest.mark.parametrize("rows", [1, 2, 3, 17, 64, 301])
def test_as_near_to_float64_as_pytorch(inside: int, out: int, rows: int) -> None:
    sparse = layer(inside, out)
    x, gradient = torch.randn(rows, inside), torch.randn(rows, out)
    found = through(sparse, x, gradient)
    right = masked(through(plainly(sparse).double(), x.double(), gradient.double()), sparse)
    near = masked(through(plainly(sparse), x, gradient), sparse)
    assert len(sparse.plans) == (1 if sparse.kind == "sparse" else 0)
    for what, wanted in right.items():
        assert found[what].shape == wanted.shape
        assert apart(found[what], wanted) < 2 * apart(near[what], wanted) + 1e-7, what


@pytest.mark.parametrize("few", [0, 1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_few_non_zeros(few: int, bias: bool) -> None:
    sparse = layer(20, 30, 0.2, bias=bias, few=few)
    if few == 0:
        sparse = SparseLinear(nn.Linear(20, 30, bias=bias), torch.zeros(30, 20, dtype=torch.bool))
    x, gradient = torch.randn(9, 20), torch.randn(9, 30)
    found = through(sparse, x, gradient)
    for what, wanted in masked(through(plainly(sparse).double(), x.double(), gradient.double()), sparse).items():
        torch.testing.assert_close(found[what].double(), wanted, rtol=1e-5, atol=1e-6, msg=what)


@pytest.mark.parametrize("shape", [(33,), (2, 3, 33), (2, 1, 5, 33), (0, 33)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    sparse = layer(33, 18)
    x, gradient = torch.randn(shape), torch.randn(*shape[:-1], 18)
    found = through(sparse, x, gradient)
    for what, wanted in masked(through(plainly(sparse), x, gradient), sparse).items():
        torch.testing.assert_close(found[what], wanted, rtol=1e-4, atol=1e-5, msg=what)


def test_memory_in_any_order() -> None:
    sparse, x = layer(33, 18), torch.randn(33, 40)
    torch.testing.assert_close(sparse(x.t()), plainly(sparse)(x.t()), rtol=1e-4, atol=1e-5)
    out = sparse(torch.randn(40, 33))
    out.t().backward(torch.randn(18, 40))


def test_bad_input_is_pytorch_s_to_refuse() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(33, 18)(torch.randn(4, 32))


def test_double_and_autocast_go_through_pytorch() -> None:
    sparse = layer(33, 18)
    assert sparse.double()(torch.randn(3, 33, dtype=torch.float64)).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse.float()(torch.randn(3, 33)).dtype == torch.bfloat16
    assert len(sparse.plans) == 0
    parameters = [sparse.double().weight, sparse.bias]
    given = torch.randn(4, 33, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *_: sparse(given), parameters, fast_mode=True)


def test_only_what_wants_a_gradient_gets_one() -> None:
    sparse, x = layer(33, 18), torch.randn(5, 33)
    sparse(x).sum().backward()
    assert sparse.weight.grad is not None and x.grad is None
    sparse.weight.grad = None
    sparse.weight.requires_grad_(False)
    sparse(x.requires_grad_()).sum().backward()
    assert sparse.weight.grad is None and x.grad is not None
    with torch.no_grad():
        assert not sparse(x).requires_grad


def test_a_layer_called_twice_adds_up() -> None:
    sparse = layer(18, 18)
    x, gradient = torch.randn(5, 18), torch.randn(5, 18)
    twice = through(nn.Sequential(sparse, nn.Tanh(), sparse), x, gradient)
    dense = plainly(sparse)
    wanted = through(nn.Sequential(dense, nn.Tanh(), dense), x, gradient)
    torch.testing.assert_close(twice["x"], wanted["x"], rtol=1e-4, atol=1e-5)
    at = sparse.index.long()
    torch.testing.assert_close(twice["0.weight"], wanted["0.weight"].flatten()[at], rtol=1e-4, atol=1e-5)


def test_threads_do_not_change_a_bit() -> None:
    before, found = torch.get_num_threads(), []
    x, gradient = torch.randn(100, 257), torch.randn(100, 129)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(through(layer(257, 129, bias=False), x, gradient))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][what], again[what]) for again in found[1:] for what in again)


# -- in networks -------------------------------------------------------------------------------------------


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 90), nn.ReLU(), nn.Linear(90, 70), nn.ReLU(), nn.Linear(70, 4))
    with torch.no_grad():
        for number in (0, 2):
            model[number].weight *= torch.rand_like(model[number].weight) < 0.15
    return model


class Small(nn.Module):
    """A convolutional network whose classifier is pruned, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d((7, 7))
        hidden = nn.Linear(24 * 49, 64)
        self.classifier = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(0.0), nn.Linear(64, 5))
        with torch.no_grad():
            for layer in (self.features[0], hidden):
                layer.weight *= torch.rand_like(layer.weight) < 0.2

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))  # type: ignore[no-any-return]


def test_state_dict_is_the_dense_one_both_ways() -> None:
    dense, model = perceptron(), budwood.accelerate(perceptron())
    state = model.state_dict()
    assert list(state) == list(dense.state_dict())
    assert all(torch.equal(a, state[n]) for n, a in dense.state_dict().items())
    assert model.get_parameter("0.weight").shape == (int(torch.count_nonzero(dense[0].weight)),)
    assert model.get_parameter("4.weight").shape == (4, 70)
    other = {n: t * 2 for n, t in state.items()}
    model.load_state_dict(other)
    assert all(torch.equal(a, other[n]) for n, a in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r"0\.weight: weights that are not zero"):
        model.load_state_dict({**state, "0.weight": torch.ones(90, 40)})
    with pytest.raises(RuntimeError, match=r"size mismatch for 2\.weight"):
        model.load_state_dict({**state, "2.weight": torch.ones(3, 3)})


def test_a_mask_names_linear_weights() -> None:
    dense = perceptron()
    model = budwood.accelerate(dense, {"2.weight": dense[2].weight != 0})
    assert isinstance(model.get_submodule("2"), SparseLinear) and type(model.get_submodule("0")) is nn.Linear
    with pytest.raises(UserError, match="give this network's"):
        budwood.accelerate(perceptron(), {"2.weight": torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(UserError, match="a single layer"):
        budwood.accelerate(perceptron()[0])


def test_a_perceptron_trains_as_in_pytorch() -> None:
    model = budwood.accelerate(perceptron())
    losses: list[list[float]] = []
    masks = {n: p != 0 for n, p in perceptron().named_parameters() if n.endswith("weight")}
    for net in (model, perceptron().double()):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        losses.append([])
        for _ in range(20):
            target = torch.randint(0, 4, (16,), generator=generator)
            x = torch.randn(16, 40, generator=generator) + 4 * F.one_hot(target, 40)
            loss = F.cross_entropy(net(x.to(next(net.parameters()).dtype)), target)
            optimizer.zero_grad()
            loss.backward()
            if net is not model:
                for name, kept in masks.items():
                    net.get_parameter(name).grad *= kept
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert all(not (model.state_dict()[n] * ~kept).any() for n, kept in masks.items())
    assert len(model.get_submodule("0").plans) == 1
    assert {words[0]: words[-1] for words in map(str.split, model.explain().splitlines())}["0"] == "sparse"


def test_a_classifier_with_zeros_follows_the_region() -> None:
    model = budwood.accelerate(Small())
    images = torch.randn(6, 3, 30, 30)
    F.cross_entropy(model(images), torch.arange(6) % 5).backward()
    assert "engine" in model.last_call and len(model.get_submodule("classifier.0").plans) == 1
    lines = {words[0]: words[-1] for words in map(str.split, model.explain().splitlines())}
    assert "features.0" in lines and lines["classifier.0"] == "sparse"
    double = Small().double()
    F.cross_entropy(double(images.double()), torch.arange(6) % 5).backward()
    for name, p in model.named_parameters():
        wanted = double.get_parameter(name).grad
        if p.ndim == 1 and wanted.ndim > 1:
            wanted = wanted[double.get_parameter(name) != 0]
        torch.testing.assert_close(p.grad.double(), wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_passes_give_gradients_to_the_dense_weights() -> None:
    dense = Small()
    mask = {n: p != 0 for n, p in dense.named_parameters() if n in ("features.0.weight", "classifier.0.weight")}
    images, target = torch.randn(6, 3, 30, 30), torch.arange(6) % 5
    F.cross_entropy(dense(images), target).backward()
    wanted = {n: p.grad * mask.get(n, 1) for n, p in dense.named_parameters()}
    dense.zero_grad()
    F.cross_entropy(Passes(dense, mask)(images), target).backward()
    for name, p in dense.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_copies_begin_without_plans() -> None:
    model = budwood.accelerate(perceptron())
    model(torch.randn(3, 40))
    other = copy.deepcopy(model)
    assert len(other.get_submodule("0").plans) == 0
    torch.testing.assert_close(other(torch.ones(3, 40)), model(torch.ones(3, 40)))


def test_pytorch_s_transformer_layer_stays_dense() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with torch.no_grad():
        block.linear1.weight[0] = 0
    model = budwood.accelerate(nn.Sequential(block)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 8)).shape == (2, 3, 8)
