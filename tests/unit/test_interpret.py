"""Every node's meaning against the module of torch.nn that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from budwood.engine import graph as g
from budwood.engine.interpret import interpret


def random(*shape: int) -> g.Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def image(*shape: int) -> Tensor:
    return torch.from_numpy(random(*shape)).double()


def result(node: g.Node, *inputs: Tensor) -> Tensor:
    """The node's value alone; its shape is the one the graph foretells."""
    names = [f"x{i}" for i in range(len(inputs))]
    graph = g.Graph(
        {n: tuple(x.shape[1:]) for n, x in zip(names, inputs, strict=True)},
        (g.renamed(node, dict(zip(node.inputs, names, strict=True))),),
        (node.name,),
    )
    (y,) = interpret(graph, dict(zip(names, inputs, strict=True)))
    assert tuple(y.shape) == (inputs[0].shape[0], *graph.shapes[node.name])
    assert y.dtype == inputs[0].dtype
    return y


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "tanh": nn.Tanh(),
    "clamp": lambda x: x.clamp(-0.5, 1.5),
}


@pytest.mark.parametrize("kind", g.ACTIVATIONS)
def test_activations(kind: str) -> None:
    x = torch.cat([torch.linspace(-8, 8, 101), torch.tensor([math.inf, -math.inf])]).double()[None]
    activation = g.Activation(kind, slope=0.2, low=-0.5, high=1.5)
    found = result(g.Activate("y", ("x",), activation), x)
    finite = x.isfinite()
    same(found[finite], ACTIVATIONS[kind](x)[finite])
    if kind not in ("hardswish", "silu", "gelu", "gelu_tanh"):  # minus infinity times zero
        same(found, ACTIVATIONS[kind](x))
    assert result(g.Activate("y", ("x",), activation), torch.full((1, 3), math.nan)).isnan().all()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_conv(groups: int, bias: bool) -> None:
    module = nn.Conv2d(6, 12, (3, 5), (2, 1), (1, 2), (1, 2), groups, bias).double()
    weight, x = module.weight.detach().float().numpy(), image(2, 6, 11, 17)
    module.weight.data = torch.from_numpy(weight).double()
    offset = None
    if bias:
        offset = random(12)
        module.bias.data = torch.from_numpy(offset).double()  # type: ignore[union-attr]
    node = g.Conv("y", ("x",), weight, offset, (2, 1), (1, 1, 2, 2), (1, 2), groups)
    same(result(node, x), module(x))


def test_conv_pads_each_edge_by_itself_and_adds_the_residual_before_the_activation() -> None:
    x, weight = image(2, 3, 8, 9), random(4, 3, 3, 3)
    edges = (0, 1, 2, 0)
    wanted = nn.functional.conv2d(nn.ZeroPad2d((2, 0, 0, 1))(x), torch.from_numpy(weight).double())
    same(result(g.Conv("y", ("x",), weight, None, padding=edges), x), wanted)
    residual = image(*wanted.shape)
    node = g.Conv("y", ("x", "r"), weight, None, padding=edges, activation=g.Activation("relu"))
    same(result(node, x, residual), (wanted + residual).relu())


def test_linear() -> None:
    x, weight, bias = image(3, 5), random(4, 5), random(4)
    wanted = nn.functional.linear(x, torch.from_numpy(weight).double(), torch.from_numpy(bias).double())
    same(result(g.Linear("y", ("x",), weight, bias), x), wanted)
    same(result(g.Linear("y", ("x",), weight, bias, g.Activation("relu6")), x), wanted.clamp(0, 6))


def test_affine_is_batch_norm() -> None:
    module = nn.BatchNorm2d(4).eval()
    module.running_mean, module.running_var = torch.rand(4), torch.rand(4) + 0.5
    module.double()
    scale = (1 / (module.running_var + module.eps).sqrt()).float()  # type: ignore[operator]
    offset = (-module.running_mean * scale).float()  # type: ignore[operator]
    x = image(2, 4, 5, 5)
    found = result(g.Affine("y", ("x",), scale.numpy(), offset.numpy()), x)
    torch.testing.assert_close(found, module(x), rtol=1e-5, atol=1e-5)
    vector = image(2, 4)
    same(result(g.Affine("y", ("x",), random(4), random(4)), vector), vector * torch.from_numpy(random(4)).double()
         + torch.from_numpy(random(4)).double())  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 4, 1, 1), (2, 1, 5, 6), (2, 4)])
def test_add_and_mul_broadcast_the_second(shape: tuple[int, ...]) -> None:
    a, b = image(2, 4, 5, 6), image(*shape)
    fitted = b[:, :, None, None] if b.ndim == 2 else b
    same(result(g.Add("y", ("a", "b")), a, b), a + fitted)
    same(result(g.Mul("y", ("a", "b"), g.Activation("relu")), a, b), (a * fitted).relu())


def test_a_map_of_one_pixel_goes_with_a_vector() -> None:
    a, b = image(2, 4), image(2, 4, 1, 1)
    same(result(g.Add("y", ("a", "b")), a, b), a + b.flatten(1))


def test_concat_select_flatten_softmax() -> None:
    a, b = image(2, 3, 4, 5), image(2, 2, 4, 5)
    same(result(g.Concat("y", ("a", "b")), a, b), torch.cat([a, b], 1))
    same(result(g.Select("y", ("a",), (2, 0, 2)), a), a[:, [2, 0, 2]])
    same(result(g.Flatten("y", ("a",)), a), nn.Flatten()(a))
    same(result(g.Softmax("y", ("a",)), a.flatten(1)), nn.Softmax(1)(a.flatten(1)))
    shuffled = result(g.Select("y", ("x",), (0, 3, 1, 4, 2, 5)), image(1, 6, 2, 2))
    same(shuffled, nn.ChannelShuffle(2)(image(1, 6, 2, 2)))


POOLS = [
    (kernel, stride, padding)
    for kernel in (1, 2, 3, 5)
    for stride in (1, 2, 3)
    for padding in range(kernel // 2 + 1)
]  # fmt: skip


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), POOLS)
def test_pools(kernel: int, stride: int, padding: int, ceil: bool) -> None:
    for height, width in ((7, 8), (9, 10), (5, 6)):
        x = image(2, 3, height, width)
        edges = (padding,) * 4
        node = g.Pool("y", ("x",), "max", (kernel, kernel), (stride, stride), edges, ceil=ceil)
        same(result(node, x), nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)(x))
        for counted in (False, True):
            node = g.Pool("y", ("x",), "average", (kernel,) * 2, (stride,) * 2, edges, (1, 1), ceil, counted)
            wanted = nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=counted)
            same(result(node, x), wanted(x))


def test_a_max_pool_may_be_dilated_and_negative() -> None:
    x = -image(1, 2, 9, 9).abs() - 1
    node = g.Pool("y", ("x",), "max", (3, 3), (2, 2), (1, 1, 1, 1), (2, 2))
    same(result(node, x), nn.MaxPool2d(3, 2, 1, 2)(x))


def test_pools_pad_each_edge_by_itself() -> None:
    x = image(1, 2, 6, 7)
    edges, outside = (0, 1, 1, 0), nn.ConstantPad2d((1, 0, 0, 1), -math.inf)
    same(result(g.Pool("y", ("x",), "max", (3, 3), (2, 2), edges), x), nn.MaxPool2d(3, 2)(outside(x)))
    padded, ones = nn.ZeroPad2d((1, 0, 0, 1))(x), nn.ZeroPad2d((1, 0, 0, 1))(torch.ones_like(x))
    average = nn.AvgPool2d(3, 2)
    node = g.Pool("y", ("x",), "average", (3, 3), (2, 2), edges, count_padding=True)
    same(result(node, x), average(padded))
    node = g.Pool("y", ("x",), "average", (3, 3), (2, 2), edges, count_padding=False)
    same(result(node, x), average(padded) / average(ones))


def test_adaptive_pool_pad_layer_norm() -> None:
    x = image(2, 4, 7, 10)
    same(result(g.AdaptivePool("y", ("x",)), x), x.mean((2, 3), keepdim=True))
    same(result(g.AdaptivePool("y", ("x",), (3, 4)), x), nn.AdaptiveAvgPool2d((3, 4))(x))
    same(result(g.Pad("y", ("x",), (1, 2, 0, 3), -2.5), x), nn.ConstantPad2d((0, 3, 1, 2), -2.5)(x))
    scale, offset = random(4), random(4) + 1
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    wanted = (x - mean) / (var + 1e-3).sqrt() * torch.from_numpy(scale).double()[:, None, None]
    wanted = wanted + torch.from_numpy(offset).double()[:, None, None]
    same(result(g.LayerNorm("y", ("x",), scale, offset, 1e-3), x), wanted)


def test_inputs_are_checked_and_outputs_are_in_order() -> None:
    graph = g.Graph({"x": (4,)}, (g.Select("a", ("x",), (0,)), g.Select("b", ("x",), (1,))), ("b", "a", "x"))
    x = image(3, 4)
    b, a, same_x = interpret(graph, x)
    same(torch.cat([a, b], 1), x[:, :2])
    same(same_x, x)
    with pytest.raises(ValueError, match="input x"):
        interpret(graph, image(3, 5))
    with pytest.raises(ValueError, match="inputs are"):
        interpret(graph, {"z": x})


def test_every_kind_of_node_has_a_meaning() -> None:
    from budwood.engine.interpret import run

    # Those of training are no part of a program: PyTorch's own gradients are their reference.
    for kind in [kind for kind in g.Node.__subclasses__() if kind.__module__ == g.__name__]:
        assert run.dispatch(kind) is not run.dispatch(g.Node), kind
