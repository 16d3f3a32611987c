"""Gradients, running statistics and training runs of accelerated networks, held against PyTorch's.

The float64 reference is the same network in plain PyTorch. A float32 result may be at most about twice as far from it
as PyTorch's own float32 result is.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F
from torchvision.models import vgg as torchvision_vgg
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import make_layers

import budwood
from budwood import UserError
from budwood.engine.training.module import Accelerated
from budwood.engine.training.region import split

Gradients = dict[str, Tensor]


def conv_norm(
    inside: int, out: int, kernel: int, stride: int, groups: int = 1, padding: int | None = None
) -> list[nn.Module]:
    edge = kernel // 2 if padding is None else padding
    return [nn.Conv2d(inside, out, kernel, stride, edge, groups=groups, bias=False), nn.BatchNorm2d(out)]


class Inverted(nn.Module):
    """The block of MobileNetV2 and EfficientNet-Lite."""

    def __init__(self, channels: int, out: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = channels * 3
        self.body = nn.Sequential(
            *conv_norm(channels, wide, 1, 1),
            nn.ReLU6(),
            *conv_norm(wide, wide, kernel, stride, groups=wide),
            nn.ReLU6(),
            *conv_norm(wide, out, 1, 1),
        )
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def residual(kind: type[BasicBlock | Bottleneck]) -> nn.Module:
    """torchvision's blocks as a ResNet has them, but narrow: stem, pooling, a block with and without a downsample."""
    wide = kind.expansion

    def block(inside: int, planes: int, stride: int) -> nn.Module:
        out = planes * wide
        down = nn.Sequential(*conv_norm(inside, out, 1, stride)) if stride > 1 or inside != out else None
        return kind(inside, planes, stride, down)

    stem = [*conv_norm(3, 16, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [block(16, 16, 1), block(16 * wide, 16, 1), block(16 * wide, 24, 2), block(24 * wide, 40, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40 * wide, 5))


def basic() -> nn.Module:
    return residual(BasicBlock)


def bottleneck() -> nn.Module:
    return residual(Bottleneck)


def mobile() -> nn.Module:
    layers = [*conv_norm(3, 16, 3, 2), nn.ReLU6()]
    for inside, out, stride in ((16, 32, 1), (32, 48, 2), (48, 48, 1), (48, 64, 2)):
        layers += [*conv_norm(inside, inside, 3, stride, groups=inside), nn.ReLU()]
        layers += [*conv_norm(inside, out, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))


def lite() -> nn.Module:
    blocks = [Inverted(16, 24, 2, 3), Inverted(24, 24, 1, 5), Inverted(24, 40, 2, 5), Inverted(40, 40, 1, 3)]
    head = [*conv_norm(40, 64, 1, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0)]
    return nn.Sequential(*conv_norm(3, 16, 3, 2), nn.ReLU6(), *blocks, *head, nn.Linear(64, 5))


def odd() -> nn.Module:
    """Convolutions that change the plane, dilation, groups, stride 3 and a pooling that does not fit."""
    return nn.Sequential(
        *conv_norm(3, 12, 3, 1, padding=0),
        nn.ReLU(),
        *conv_norm(12, 16, 3, 2, padding=0),
        nn.ReLU(),
        *conv_norm(16, 16, 3, 1, groups=2, padding=2),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Conv2d(16, 24, 3, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(24, momentum=None),
        nn.ReLU6(),
        *conv_norm(24, 20, 5, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 5),
    )


def bare() -> nn.Module:
    """Biases, activations and none of both between convolutions, and one batch norm behind a bias."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, 2, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, groups=2),
        nn.ReLU6(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
        nn.Conv2d(24, 20, 3, padding=1, bias=False),
        nn.MaxPool2d(3, 2),
        nn.ReLU(),
        nn.Conv2d(20, 24, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


class Before(nn.Module):
    """Activations before the convolutions: what is summed is no norm's output, and is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=b) for b in (False, True, False, False))
        self.relu = nn.ReLU()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, norm in enumerate(self.norms):
            inside = self.convs[2 * number](self.relu(norm(x)))
            x = x + self.convs[2 * number + 1](self.relu(inside))
        return self.head(self.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


def average() -> nn.Module:
    """Average pooling of several kinds, with a single channel as well."""
    return nn.Sequential(
        *conv_norm(3, 16, 3, 1),
        nn.AvgPool2d(2),
        *conv_norm(16, 24, 3, 1),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d((3, 2), 1, (0, 1), divisor_override=5),
        *conv_norm(24, 1, 3, 1, padding=2),
        nn.AvgPool2d(3, 1, 1),
        nn.Conv2d(1, 12, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def vgg(norm: bool) -> nn.Module:
    """torchvision's layers, but narrow."""
    features = make_layers([16, "M", 24, "M", 40, 40, "M", 32], batch_norm=norm)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d((7, 7)), nn.Flatten(), nn.Linear(32 * 49, 5))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "basic": basic,
    "bottleneck": bottleneck,
    "mobile": mobile,
    "lite": lite,
    "odd": odd,
    "bare": bare,
    "before": Before,
    "average": average,
    "vgg": lambda: vgg(False),
    "vgg_bn": lambda: vgg(True),
}


def pruned(model: nn.Module, sparsity: float) -> nn.Module:
    """Random zeros in every convolution but the stem, in depthwise ones half as many; batch norms off their start."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for conv in convs[1:]:
            conv.weight *= torch.rand_like(conv.weight) >= (sparsity if conv.groups == 1 else sparsity / 2)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
    return model


def smooth(model: nn.Module) -> nn.Module:
    """Without what has a kink: a value near it may round to either side, and no error is bounded then."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU | nn.ReLU6 | nn.MaxPool2d):
                setattr(module, name, nn.Identity())
    return model


def made(kind: str, *, sparsity: float = 0.8, seed: int = 0, kinks: bool = True) -> Accelerated:
    torch.manual_seed(seed)
    model = NETWORKS[kind]()
    return budwood.accelerate(pruned(model if kinks else smooth(model), sparsity))


def plainly(model: Accelerated) -> nn.Module:
    """The same network, of which nothing goes through the engine: a hook inside is enough."""
    plain = copy.deepcopy(model)
    next(plain.children()).register_forward_hook(lambda module, given, out: None)
    return plain


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, Gradients]:
    model.zero_grad()
    out = model(images)
    F.cross_entropy(out.double(), torch.arange(len(images)) % 5).backward()
    return out.detach().double(), {
        n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None
    }


def together(found: Gradients) -> Tensor:
    return torch.cat([found[name].flatten() for name in sorted(found)])


def went_through_the_engine(model: Accelerated) -> bool:
    return "engine," in model.last_call


def apart(a: Tensor, b: Tensor, scale: float = 0.0) -> float:
    """Relative error of the norm; `scale`: where the right answer is nearly zero, what to hold it against."""
    return float((a - b).norm()) / max(float(b.norm()), scale)


@pytest.mark.parametrize(
    ("kind", "size", "batch"),
    [
        ("basic", (48, 48), 4),
        ("basic", (70, 35), 3),
        ("bottleneck", (33, 33), 16),
        ("bottleneck", (49, 60), 5),
        ("mobile", (30, 30), 16),
        ("mobile", (29, 41), 5),
        ("lite", (30, 30), 5),
        ("lite", (55, 38), 1),
        ("odd", (32, 32), 4),
        ("odd", (47, 38), 3),
        ("bare", (21, 26), 3),
        ("bare", (47, 38), 16),
        ("before", (21, 26), 3),
        ("average", (33, 41), 3),
        ("average", (32, 24), 16),
        ("vgg", (64, 64), 2),
        ("vgg_bn", (57, 64), 4),
    ],
)
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_gradients_are_as_near_to_float64_as_pytorch_s(kind, size, batch, sparsity):
    model = made(kind, sparsity=sparsity, kinks=False)
    double, single = copy.deepcopy(model).double(), plainly(model)
    images = torch.randn(batch, 3, *size)
    out, found = gradients(model, images)
    assert went_through_the_engine(model)
    right, wanted = gradients(double, images.double())
    near, theirs = gradients(single, images)
    assert not went_through_the_engine(single)
    assert found.keys() == wanted.keys()
    assert apart(out, right) < 2 * apart(near, right) + 5e-7
    total = float(together(wanted).norm())
    assert apart(together(found), together(wanted)) < 2 * apart(together(theirs), together(wanted)) + 1e-6
    for name, gradient in wanted.items():
        # Where the norms behind cancel it the gradient of a bias is nearly zero, and rounding is left, of which the one
        # has less by chance: some roundings of the whole gradient are allowed.
        least = 1e-6 * float(gradient.norm()) + 3e-7 * total
        assert float((found[name] - gradient).norm()) < 2 * float((theirs[name] - gradient).norm()) + least, name


BEGINNINGS: dict[str, list[nn.Module]] = {
    "sparse": conv_norm(3, 16, 3, 1),
    "stride": conv_norm(3, 16, 5, 2),
    "depthwise": conv_norm(3, 3, 3, 1, groups=3) + conv_norm(3, 16, 1, 1),
    "norm": [nn.BatchNorm2d(3), *conv_norm(3, 16, 3, 1, padding=0)],
}


@pytest.mark.parametrize("kind", BEGINNINGS)
@pytest.mark.parametrize("batch", [1, 16])
def test_gradients_to_the_images(kind, batch):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 3, 1)  # which `pruned` leaves alone
    begin = pruned(nn.Sequential(stem, *copy.deepcopy(BEGINNINGS[kind])), 0.6)[1:]
    model = budwood.accelerate(begin)
    found = []
    for net in (copy.deepcopy(model).double(), model, plainly(model)):
        images = torch.randn(batch, 3, 21, 30, generator=torch.Generator().manual_seed(1))
        images = images.to(next(net.parameters()).dtype).requires_grad_()
        net(images).pow(3).sum().backward()
        found.append(images.grad.double())
    assert went_through_the_engine(model)
    assert apart(found[1], found[0]) < 2 * apart(found[2], found[0]) + 5e-7


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_of_networks_with_kinks(kind):
    """Seeds of which most put no value on a kink's other side; then the gradients agree to float32's accuracy."""
    errors = []
    for seed in range(3):
        model = made(kind, seed=seed)
        images = torch.randn(3, 3, 40, 40)
        _, found = gradients(model, images)
        assert went_through_the_engine(model)
        _, wanted = gradients(copy.deepcopy(model).double(), images.double())
        total = float(torch.cat([g.flatten() for g in wanted.values()]).norm())
        errors.append(max(apart(found[n], g, 1e-2 * total) for n, g in wanted.items()))
    assert sorted(errors)[1] < 2e-5
    assert max(errors) < 0.2


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(2, ceil_mode=True)])
def test_average_pooling_with_windows_of_several_sizes_ends_the_region(pool):
    found = split(nn.Sequential(*conv_norm(3, 8, 3, 1), pool, nn.Conv2d(8, 8, 1), nn.ReLU()))
    assert found.region.output == "1" and "windows of several sizes" in found.reason


def test_average_pooling_alone_is_no_region():
    with pytest.raises(UserError, match="no beginning of the network"):
        split(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5)))


@pytest.mark.parametrize(("kind", "last"), [("vgg11", "features.20"), ("vgg11_bn", "features.28")])
def test_torchvision_s_vgg_up_to_its_average(kind, last):
    with torch.device("meta"):
        found = split(getattr(torchvision_vgg, kind)())
    assert found.region.output == last and len(found.region.convolutions) == 8
    assert found.reason.startswith("avgpool")


@pytest.mark.parametrize(("kind", "batch"), [("basic", 3), ("lite", 4), ("odd", 5)])
def test_running_statistics(kind, batch):
    model = made(kind)
    double = copy.deepcopy(model).double()
    for _ in range(3):
        images = torch.randn(batch, 3, 47, 52) * 2 + 1
        model(images)
        double(images.double())
    assert went_through_the_engine(model)
    right = dict(double.named_buffers())
    for name, found in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert int(found) == 3
        if name.endswith("running_mean"):
            deviation = right[name.replace("mean", "var")].sqrt()
            assert float(((found - right[name]) / deviation).abs().max()) < 1e-5, name
        if name.endswith("running_var"):
            torch.testing.assert_close(found.double(), right[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["bottleneck", "lite"])
def test_evaluation_uses_running_statistics(kind):
    model = made(kind)
    for _ in range(20):
        model(torch.randn(4, 3, 48, 48))
    model.eval()
    images = torch.randn(6, 3, 48, 48)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        out = model(images)
    assert went_through_the_engine(model)
    torch.testing.assert_close(out, plainly(model)(images).detach(), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(a, before[n]) for n, a in model.state_dict().items())


def test_batch_norm_may_be_frozen_in_part():
    """Norms in evaluation inside a network in training: their statistics are constants, the others' are not."""
    model = made("lite", kinks=False)
    for _ in range(5):
        model(torch.randn(8, 3, 48, 48))
    for number, norm in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train(number % 2 == 0)
    images = torch.randn(4, 3, 48, 48)
    _, plain = gradients(plainly(model), images)
    _, found = gradients(model, images)
    _, wanted = gradients(copy.deepcopy(model).double(), images.double())
    for name, gradient in wanted.items():
        assert apart(found[name], gradient, 1e-3) < 2 * apart(plain[name], gradient, 1e-3) + 1e-6, name


def test_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    images = torch.randn(5, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            # Without the head, which is PyTorch's: its sums may depend on the threads.
            torch.manual_seed(0)
            model = budwood.accelerate(pruned(bottleneck()[:9], 0.8))
            out = model(images)
            out.pow(3).sum().backward()
            assert went_through_the_engine(model)
            found.append([out, *(p.grad for p in model.parameters()), *model.buffers()])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_training_follows_masked_pytorch():
    """Twenty steps from one start: the losses differ no more than rounding lets them, and the mask holds."""
    model = made("lite")
    plain = plainly(model)
    losses: list[list[float]] = [[], []]
    for which, net in enumerate((model, plain)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
        generator = torch.Generator().manual_seed(1)
        for _ in range(20):
            target = torch.randint(0, 5, (8,), generator=generator)
            images = torch.randn(8, 3, 48, 48, generator=generator) + target.view(-1, 1, 1, 1) / 2
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), target)
            loss.backward()
            optimizer.step()
            losses[which].append(loss.item())
    assert went_through_the_engine(model)
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=0.02, abs=0.01)


def fifty_steps(net: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The losses of the steps, and the weights after them."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.002, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(50):
        target = torch.randint(0, 5, (4,), generator=generator)
        images = torch.randn(4, 3, 24, 24, generator=generator) + target.view(-1, 1, 1, 1) / 2
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images.to(dtype)).double(), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses).double(), torch.cat([p.detach().double().flatten() for p in net.parameters()])


@pytest.mark.parametrize("kind", ["basic", "lite"])
def test_fifty_steps_stay_as_near_to_float64_as_pytorch_s(kind):
    """Without kinks and at a low rate, where a rounding error stays one: else training multiplies it, by chance."""
    errors: list[list[float]] = []
    for seed in range(3):
        model = made(kind, seed=seed, kinks=False)
        double, plain = copy.deepcopy(model).double(), plainly(model)
        losses, weights = fifty_steps(double, torch.float64)
        for net in (model, plain):
            found = fifty_steps(net, torch.float32)
            errors.append([float((found[0] - losses).norm()), apart(found[1], weights)])
        assert went_through_the_engine(model) and not went_through_the_engine(plain)
    ours, theirs = torch.tensor(errors[::2]).sum(0), torch.tensor(errors[1::2]).sum(0)
    assert (theirs > 0).all() and (ours <= 2 * theirs).all(), (ours, theirs)


def own_gradients(rank: int) -> tuple[Accelerated, Tensor, Tensor]:
    model = made("basic")
    images = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(7))[rank * 4 : rank * 4 + 4]
    return model, images, torch.arange(4) + rank


def in_a_group(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, images, target = own_gradients(rank)
    together = nn.parallel.DistributedDataParallel(model)
    F.cross_entropy(together(images), target).backward()
    torch.save({n: p.grad for n, p in model.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradients_are_averaged_over_processes(tmp_path):
    """DistributedDataParallel around an accelerated network: what each process finds alone, averaged."""
    multiprocessing.spawn(in_a_group, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = []
    for rank in (0, 1):
        model, images, target = own_gradients(rank)
        F.cross_entropy(model(images), target).backward()
        alone.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
        torch.testing.assert_close(gradient, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6, msg=name)
