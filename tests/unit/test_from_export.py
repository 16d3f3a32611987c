"""The importer of PyTorch modules against PyTorch itself, operator by operator; and what it refuses, and how."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.engine import graph as g
from budwood.engine.from_export import graph_from_exported, graph_from_module
from budwood.engine.interpret import interpret
from budwood.testing.networks import randomize

C, H, W = 8, 9, 12


class Of(nn.Module):
    """A function, and modules that it uses, as a module."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def images(channels: int = C, height: int = H, width: int = W, count: int = 3) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def check(model: nn.Module, x: Tensor | None = None) -> g.Graph:
    """The graph, after it gave what the model gives for another batch than it was made from."""
    x = images() if x is None else x
    randomize(model.double(), 3, x).eval()
    graph = graph_from_module(model, x, dtype=np.float64)
    with torch.no_grad():
        expected, (found,) = model(x), interpret(graph, x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    return graph


def ops(graph: g.Graph) -> list[str]:
    return [node.op for node in graph]


# -- layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(C, 6, 3),
        nn.Conv2d(C, 6, (1, 5), padding="same", bias=False),
        nn.Conv2d(C, 6, (2, 4), padding="same", dilation=(1, 2)),
        nn.Conv2d(C, 6, 3, padding="valid", stride=(2, 1)),
        nn.Conv2d(C, 6, 3, stride=2, padding=(0, 2), dilation=2, groups=2),
        nn.Conv2d(C, C, 7, padding=3, groups=C),
        nn.Conv2d(C, 4, 3, padding=1, padding_mode="zeros"),
    ],
    ids=str,
)
def test_convolutions(conv: nn.Conv2d) -> None:
    assert ops(check(conv)) == ["Conv"]


def test_a_depthwise_convolution_of_one_channel_each_way() -> None:
    check(nn.Conv2d(1, 1, 3), images(1))


def test_linear_of_vectors() -> None:
    x = images()[:, :, 0, 0]
    assert ops(check(nn.Sequential(nn.Linear(C, 5), nn.Linear(5, 1, bias=False)), x)) == ["Linear", "Linear"]


def test_products_with_constant_matrices() -> None:
    m, b = torch.randn(C, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = images()[:, :, 0, 0]
    check(Of(lambda v: torch.addmm(b, v @ m @ m.T, m, alpha=0.5, beta=2)), x)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(C, eps=0.1), nn.BatchNorm2d(C, affine=False), nn.BatchNorm2d(C, momentum=None)],
    ids=str,
)
def test_batch_norm(norm: nn.Module) -> None:
    assert ops(check(norm)) == ["Affine"]


def test_batch_norm_of_vectors() -> None:
    assert ops(check(nn.BatchNorm1d(C), images()[:, :, 0, 0])) == ["Affine"]


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Hardtanh(-0.5, 0.25),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.SiLU(),
        nn.Sigmoid(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.LeakyReLU(0.2),
        nn.Tanh(),
        Of(lambda x: x.clamp(min=0.1)),
        Of(lambda x: x.clamp(0, 6)),
        Of(lambda x: x.clamp_max(0.3)),
        Of(lambda x: F.relu6(x)),
    ],
    ids=str,
)
def test_activations(activation: nn.Module) -> None:
    assert ops(check(activation)) == ["Activate"]


def test_functions_made_of_others() -> None:
    check(nn.PReLU(C))
    check(nn.PReLU())
    check(Of(lambda x: x * torch.sigmoid(1.702 * x)))
    check(Of(lambda x: 0.5 * x * (x + 2).clamp(0, 2)))
    check(Of(lambda x: F.relu(x) ** 2 - x.square()))


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3),
        nn.MaxPool2d((2, 3), stride=2, padding=1, dilation=(2, 1)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, padding=1),
        nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d((2, 5)),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d(1),
        nn.AdaptiveMaxPool2d(3),
        nn.Upsample(scale_factor=2),
        Of(lambda x: x.mean((2, 3), keepdim=True)),
        Of(lambda x: x.mean(3, keepdim=True)),
        Of(lambda x: x.mean((-1, -2))),
        Of(lambda x: x.sum((2, 3))),
        Of(lambda x: x.amax((2, 3))),
        Of(lambda x: x.mean(1, keepdim=True)),
        Of(lambda x: x.sum((1, 2, 3), keepdim=True)),
    ],
    ids=str,
)
def test_pools(pool: nn.Module) -> None:
    check(pool)


def test_padding() -> None:
    assert ops(check(nn.ZeroPad2d((1, 0, 2, 3)))) == ["Pad"]
    assert check(Of(lambda x: F.pad(x, (0, 1), value=1.5))).nodes[0].padding == (0, 0, 0, 1)  # type: ignore[attr-defined]
    check(Of(lambda x: F.pad(x, (-1, 1, 2, -3))))
    check(Of(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5)))


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x[:, :, ::2, ::2],
        lambda x: x[:, :, 1::2, 1:],
        lambda x: x[..., :-1, 2:5],
        lambda x: x[:, 2:7:2],
        lambda x: x[:][:, :, 1:],
        lambda x: x[:, -3:],
        lambda x: x[:, 3].unsqueeze(1),
        lambda x: torch.cat([x[:, :, ::2, ::3], x[:, :, : H // 2 + 1, : W // 3]], 1),
        lambda x: x.flip(1)[:, [0, 5, 5]],
        lambda x: torch.cat(x.split([1, 4, 3], 1)[::-1], 1),
        lambda x: torch.cat(x.chunk(3, 1)[1:], 1),
        lambda x: torch.stack(x.unbind(1)[:3], 1),
        lambda x: torch.index_select(x, 1, torch.tensor([3, 1])),
    ],
)
def test_parts(cut: Callable[..., Tensor]) -> None:
    check(Of(cut))


# -- views ----------------------------------------------------------------------------------------------------


def test_vectors_out_of_maps() -> None:
    graph = check(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(4 * C, 3)))
    assert ops(graph) == ["AdaptivePool", "Flatten", "Linear"]
    check(Of(lambda x: x.reshape(x.shape[0], -1)))
    check(Of(lambda x: x.permute(0, 2, 3, 1).flatten(1)))
    check(Of(lambda x: x.mean((2, 3)).softmax(1)))
    check(Of(lambda x: x.mean((2, 3)).view(-1, C, 1, 1) * x))


def test_channel_shuffle_is_a_select() -> None:
    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    (node,) = check(Of(shuffle))
    assert isinstance(node, g.Select) and node.channels == (0, 4, 1, 5, 2, 6, 3, 7)


@pytest.mark.parametrize("size", [(H, W), (1, 1), (1, 4)])
def test_channels_last_leaves_no_trace(size: tuple[int, int]) -> None:
    """ConvNeXt's block: layer norm and linear layers on [N, H, W, C]."""

    def block(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module, gamma: nn.ParameterList) -> Tensor:
        y = down(F.gelu(up(norm(x.permute(0, 2, 3, 1))))) * gamma[0]
        return x + y.permute(0, 3, 1, 2)

    gamma = nn.ParameterList([nn.Parameter(torch.zeros(C))])
    graph = check(Of(block, nn.LayerNorm(C), nn.Linear(C, 12), nn.Linear(12, C), gamma), images(C, *size))
    assert ops(graph) == ["LayerNorm", "Conv", "Activate", "Conv", "Affine", "Add"]


def test_tokens() -> None:
    check(Of(lambda x, norm: norm(x.flatten(2).transpose(1, 2)).mean(1), nn.LayerNorm(C)))
    check(Of(lambda x, lin: lin(x.flatten(2).mT).mT.unflatten(2, (H, W)), nn.Linear(C, 3)))


def test_space_to_depth() -> None:
    def blocks(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c, h // 3, 3, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 6 * c, h // 3, w // 2)

    assert ops(check(Of(blocks))) == ["Conv", "Select"]
    assert ops(check(nn.PixelUnshuffle(3))) == ["Conv"]


def test_split_attention() -> None:
    def attend(x: Tensor, fc: nn.Module) -> Tensor:
        y = x.view(-1, 2, C // 2, H, W)
        a = fc(y.sum(1).mean((2, 3))).view(-1, 1, 2, C // 2).transpose(1, 2).softmax(1).reshape(-1, C)
        return (y * a.reshape(-1, 2, C // 2, 1, 1)).sum(1)

    check(Of(attend, nn.Linear(C // 2, C)))


def test_selective_kernels() -> None:
    def select(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        y = torch.stack([a(x), b(x)], 1)
        return torch.sum(y * y.mean((3, 4), keepdim=True).softmax(1), 1) + y[:, 1]

    check(Of(select, nn.Conv2d(C, 6, 1), nn.Conv2d(C, 6, 3, padding=1)))


# -- joints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gate",
    [
        lambda x, a: x * torch.sigmoid(a(x.mean((2, 3), keepdim=True))),
        lambda x, a: torch.sigmoid(a(x.mean((2, 3), keepdim=True))).expand_as(x) * x,
        lambda x, a: x * torch.sigmoid(a(x.mean((2, 3))[:, :, None, None])),
        lambda x, a: x * torch.sigmoid(a(x)[:, :1]),
        lambda x, a: x[:, :1] * a(x).mean((2, 3), keepdim=True),
        lambda x, a: x.mean(3, keepdim=True) - a(x.mean(3, keepdim=True)),
    ],
)
def test_gates(gate: Callable[..., Tensor]) -> None:
    check(Of(gate, nn.Conv2d(C, C, 1)))


def test_efficient_channel_attention() -> None:
    def gate(x: Tensor, conv: nn.Module) -> Tensor:
        y = conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return x * y.sigmoid().view(x.shape[0], -1, 1, 1)

    check(Of(gate, nn.Conv1d(1, 1, 3, padding=1, bias=False)))
    check(Of(gate, nn.Conv1d(1, 1, 3, padding=2, dilation=2)))


def test_arithmetic_with_constants() -> None:
    per_channel = torch.randn(C, 1, 1, dtype=torch.float64)
    graph = check(Of(lambda x: 1 - (x * per_channel + 2) / 3 - per_channel.mean()))
    assert set(ops(graph)) == {"Affine"}
    check(Of(lambda x: torch.add(x, per_channel, alpha=3) - torch.rsub(x, 2.0) + (-x)))


def test_what_comes_of_parameters_alone_is_worked_out() -> None:
    def standardized(x: Tensor, conv: nn.Conv2d) -> Tensor:
        weight = F.batch_norm(conv.weight.reshape(1, 6, -1), None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(conv.weight) * conv.bias.exp()[:, None, None, None], conv.bias)

    assert ops(check(Of(standardized, nn.Conv2d(C, 6, 3)))) == ["Conv"]


def test_normalization_of_the_input_by_buffers() -> None:
    class Normalize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(3), persistent=False)
            self.register_buffer("std", torch.rand(3) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            parts = [torch.unsqueeze(x[:, i], 1) * self.std[i] + self.mean[i] for i in range(3)]
            return torch.cat(parts, 1) - self.mean[:, None, None]

    check(Normalize(), images(3))


def _through_a_view(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    y.transpose(2, 3).relu_()
    return y


def _sum_kept_before(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    z = y.flatten(1)
    F.relu_(y)
    return z


def _through_idle_dropout(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    z = F.relu_(F.dropout(y.transpose(2, 3), training=False, inplace=True))
    return z.transpose(2, 3) + y


def _onto_the_images(x: Tensor, conv: nn.Module) -> Tensor:
    z = x.clone().relu_()
    return conv(z) + z


def _added_to_itself(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    y += y
    return F.hardswish(y, inplace=True)


def _twice(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    z = F.relu_(y)
    y *= 2.0
    return z


def _out_into_a_view(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    torch.add(conv(x + 1), 1.0, out=y.transpose(2, 3).transpose(2, 3))
    return y


def _dropped_through_a_view(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    F.dropout(y.transpose(2, 3), 1.0, True, True)
    return y + x


def _statistics_for_their_own_sake(x: Tensor, conv: nn.Module) -> Tensor:
    mean, var = torch.zeros(C, dtype=x.dtype), torch.ones(C, dtype=x.dtype)
    F.batch_norm(x, mean, var, training=True, momentum=1.0)
    return conv(x) - mean.view(C, 1, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "function",
    [_through_a_view, _sum_kept_before, _through_idle_dropout, _onto_the_images, _added_to_itself, _twice],
)
def test_what_is_written_over_is_seen_by_whoever_shares_its_memory(function: Callable[..., Tensor]) -> None:
    check(Of(function, nn.Conv2d(C, C, 3, padding=1)))


@pytest.mark.parametrize("function", [_out_into_a_view, _dropped_through_a_view, _statistics_for_their_own_sake])
def test_what_is_written_on_the_side_is_seen_or_refused(function: Callable[..., Tensor]) -> None:
    with contextlib.suppress(UserError):
        check(Of(function, nn.Conv2d(C, C, 3, padding=1)))


def test_a_parameter_that_the_network_writes_to_is_left_alone() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.ones(C, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            torch.mul(self.p * 1, 2, out=self.p)
            return x * self.p  # type: ignore[no-any-return]

    model = Doubling()
    with contextlib.suppress(UserError):
        graph_from_module(model, images().float())
    assert bool((model.p == 1).all())


def test_operators_in_place_as_networks_have_them_cost_no_second_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object) -> None:
        raise AssertionError("traced once more")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", again)
    for name in ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121"):
        graph_from_module(torchvision.models.get_model(name), torch.zeros(1, 3, 64, 64))
    with pytest.raises(UserError, match="traced once more"):
        graph_from_module(Of(_through_a_view, nn.Conv2d(C, C, 1)), images().float())


@pytest.mark.parametrize("inplace", [False, True])
def test_what_works_in_place_is_seen_by_every_reader(inplace: bool) -> None:
    def block(x: Tensor, conv: nn.Module) -> Tensor:
        y = conv(x)
        z = F.relu(y, inplace=inplace)
        y += 1  # what z is, too, if the ReLU worked in place
        return y * 2 + z

    check(Of(block, nn.Conv2d(C, C, 1)))


# -- the whole ------------------------------------------------------------------------------------------------


def test_the_model_stays_as_it_is_and_its_numbers_are_copied() -> None:
    model = nn.Sequential(nn.Conv2d(C, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(2))
    x = images().float()
    model(x)
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = graph_from_module(model, x[:1])
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    conv = graph.nodes[0]
    assert isinstance(conv, g.Conv) and conv.weight.dtype == np.float32 and conv.weight.flags.c_contiguous
    with torch.no_grad():
        model[0].weight.zero_()
    assert conv.weight.any()
    assert [node.source for node in graph] == ["0", "1", "3", "4"]


def test_the_first_tensor_of_several_is_the_output() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[None, Tensor, Tensor]:
            return None, x.relu(), torch.linalg.inv(x[..., :4, :4])  # what only the second needs may be unknown

    graph = graph_from_module(Two(), images())
    assert ops(graph) == ["Activate"]


def test_several_inputs() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return x * gate[:, :, None, None]

    x, gate = images(), images()[:, :, 0, 0]
    graph = graph_from_exported(torch.export.export(Gate(), (x, gate)), dtype=np.float64)
    assert graph.inputs == {"x": (C, H, W), "gate": (C,)}
    torch.testing.assert_close(interpret(graph, {"x": x, "gate": gate})[0], Gate()(x, gate))


@pytest.mark.parametrize("how", ["dynamic", "one", "core"])
def test_programs(how: str) -> None:
    """With a batch left open, with one image, and in core ATen, where norms and linear layers are taken apart."""

    def whole(x: Tensor, conv: nn.Module, bn: nn.Module, ln: nn.Module, linear: nn.Module) -> Tensor:
        y = F.max_pool2d(F.hardtanh(bn(conv(x))), 2)
        y = ln(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return linear(y.mean((2, 3)).view(x.shape[0], -1)).softmax(-1)

    model = Of(whole, nn.Conv2d(C, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LayerNorm(6), nn.Linear(6, 4)).double()
    x = images()
    randomize(model, 0, x).eval()
    shapes = ({0: torch.export.Dim("n")},) if how == "dynamic" else None
    program = torch.export.export(model, (x[:1] if how == "one" else x,), dynamic_shapes=shapes)
    if how == "core":
        program = program.run_decompositions()
    graph = graph_from_exported(program, dtype=np.float64)
    torch.testing.assert_close(interpret(graph, x)[0], model(x))


# -- what is refused ------------------------------------------------------------------------------------------


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 2)


def refusal(model: nn.Module, x: Tensor | None = None) -> str:
    with pytest.raises(UserError) as caught:
        graph_from_module(model, images() if x is None else x)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_operators_are_all_named_with_their_place() -> None:
    model = nn.Sequential(nn.Conv2d(C, C, 1), nn.Sequential(Odd(), nn.ReLU()), nn.Softplus(), Odd())
    message = refusal(model.double())
    assert message.startswith("operators of the network that are not supported: aten.cumsum.default in `1.0` (")
    assert "Odd) at " in message and "test_from_export.py:" in message
    assert "aten.softplus.default in `2` (torch.nn.modules.activation.Softplus)" in message


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x @ x.mT, "a matrix product of two values"),
        (lambda x: 1 / x, "aten.reciprocal.default"),
        (lambda x: x / x.relu(), "only a division by a constant"),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "'reflect'"),
        (lambda x: x.softmax(1), "softmax over the channels of each pixel"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "does not hold the channels"),
        (lambda x: x.mean(0, keepdim=True) + x, "a sum over the axes [0]"),
        (lambda x: x.flip(0), "axis 0 of"),
        (lambda x: x[:1] + x, "some of the images of a batch"),
        (lambda x: x[:2], "some of the images of a batch"),
        (lambda x: x[::2], "some of the images of a batch"),
        (lambda x: x.reshape(1, -1, H, W).relu() * torch.rand(len(x) * C, 1, 1, dtype=x.dtype), "is random"),
        (lambda x: F.batch_norm(x, None, None, training=True), "batch_norm"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "a divisor of its own"),
        (lambda x: (x > 0) * x, "aten.gt.Scalar"),
        (lambda x: x.mT, "of the network: needs a feature map"),
        (lambda x: x.reshape(-1, C * 2, H, W), "this reshape mixes axes"),
        (lambda x: torch.ones(2), "does not depend on its input"),
        (lambda x: x * x.shape[0], "depends on how many images there are"),
        (lambda x: x / x.size(0), "depends on how many images there are"),
        (lambda x: x.relu() + 3 * len(x), "depends on how many images there are"),
    ],
)
def test_refusals(function: Callable[..., Tensor], reason: str) -> None:
    assert reason in refusal(Of(function))


@pytest.mark.parametrize("number", [1e9, 1e-12, 65504.0, 255, 1e-5, 1 / 224**2, 100])
def test_other_numbers_are_constants(number: float) -> None:
    check(Of(lambda x: x * number))


def test_what_cannot_be_exported_is_a_user_error() -> None:
    def depends(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    assert refusal(Of(depends)).startswith("Of cannot be exported: ")
    assert "wanted is [N, C, H, W]" in refusal(nn.ReLU(), torch.zeros(2, 3, 4))


def test_the_batch_is_not_taken_for_another_size() -> None:
    """A size of 2 that is not the batch stays one."""
    check(nn.Sequential(nn.Conv2d(2, 2, 1), Of(lambda x: x.reshape(-1, 2, 2, 2).flip(1))), images(2, 2, 2))
    model = Of(lambda x: x.reshape(x.shape[0] * 2, C // 2, H, W).relu().reshape(x.shape))
    assert ops(check(model)) == ["Activate"]
