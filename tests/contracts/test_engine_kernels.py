"""Every operator of the engine on every instruction set of this machine, through small graphs, against float64.

The yardstick is `testing.engine.excess`: at most twice PyTorch's error in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from budwood.engine import native
from budwood.engine.graph import (
    ACTIVATIONS,
    Activate,
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Array,
    Concat,
    Conv,
    Edges,
    Flatten,
    Graph,
    GraphError,
    LayerNorm,
    Linear,
    Mul,
    Node,
    Pad,
    Pair,
    Pool,
    Select,
    Shape,
    Softmax,
)
from budwood.engine.interpret import activate
from budwood.engine.program import Program
from budwood.testing.engine import assert_agrees, draw_inputs, excess, meaning, rms, run_plan

ISAS = native.instruction_sets()
CHANNELS = (1, 2, 15, 16, 17, 64)
DENSITIES = (0.0, 0.02, 0.1, 0.5, 1.0)
IMAGES = (1, 3, 4, 16)
# Around the blocks that lanes are dealt out to (2, 4, 8, 16 pixels), the sizes at which images begin to share vectors
# (100 and 400 pixels) and the widest tiles (8 and 14 vectors).
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 16, 17, 20, 31)
PLANES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 17),
    (3, 3),
    (4, 4),
    (5, 7),
    (7, 7),
    (8, 8),
    (9, 11),
    (10, 10),
    (14, 14),
    (31, 17),
]

each_isa = pytest.mark.parametrize("isa", ISAS)


def draw(seed: int, *shape: int, density: float = 1.0) -> Array:
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape, np.float32) * (random.random(shape) < density)
    return values.astype(np.float32)


def of_one(node: Node, *shapes: Shape) -> Graph:
    """A graph of one node, which has inputs of these shapes and the name "y"."""
    names = tuple(f"x{number}" for number in range(len(shapes)))
    return Graph(dict(zip(names, shapes, strict=True)), (replace(node, name="y", inputs=names),), ("y",))


def check(graph: Graph, isa: str, images: int = 1, note: object = "") -> None:
    inputs = draw_inputs(graph, images, seed=images)
    assert_agrees(graph, inputs, run_plan(graph, inputs, isa, images), f"{isa}, {images} images, {note}")


def conv(
    weight: Array,
    *,
    stride: Pair = (1, 1),
    padding: Edges | int = 0,
    dilation: Pair = (1, 1),
    groups: int = 1,
    activation: Activation | None = None,
    bias: bool = True,
) -> Conv:
    return Conv(
        "",
        (),
        weight,
        draw(99, len(weight)) if bias else None,
        stride,
        (padding,) * 4 if isinstance(padding, int) else padding,
        dilation,
        groups,
        activation or Activation(),
    )


# -- the yardstick ----------------------------------------------------------------------------------------------


def test_the_yardstick_can_fail() -> None:
    """A single weight that is off by the 50,000th part of itself, or a single wrong number, is seen."""
    for density in (0.1, 1.0):
        weight = draw(1, 16, 16, 3, 3, density=density)
        graph = of_one(conv(weight, padding=1), (16, 9, 9))
        inputs = draw_inputs(graph, 4)
        (exact,), (single,) = meaning(graph, inputs), meaning(graph, inputs, torch.float32)
        (found,) = run_plan(graph, inputs, ISAS[0])
        assert excess(found, exact, single) <= 1
        spoilt = weight.copy()
        spoilt.reshape(-1)[np.abs(weight).argmax()] *= 1 + 2e-5
        (wrong,) = run_plan(of_one(conv(spoilt, padding=1), (16, 9, 9)), inputs, ISAS[0])
        assert excess(wrong, exact, single) > 1
        for value in (np.nan, np.inf, found[1, 2, 3, 4] + 1e-3):
            wrong = found.copy()
            wrong[1, 2, 3, 4] = value
            assert not excess(wrong, exact, single) <= 1
        assert rms(single - exact) < 1e-6 * rms(exact)


# -- convolution ------------------------------------------------------------------------------------------------


def windows(kernel: int) -> Iterator[tuple[int, Edges, int]]:
    """Stride, padding and dilation."""
    half = kernel // 2
    paddings: set[Edges] = {(0,) * 4, (half,) * 4, (0, 1, 2, 0), (kernel, 0, 1, kernel - 1), (half, half, 0, half)}
    for stride, dilation in itertools.product((1, 2, 3, 4), (1, 2, 3)):
        same: Edges = (half * dilation,) * 4
        yield from ((stride, padding, dilation) for padding in sorted(paddings | {same}))


@each_isa
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
def test_convolution_windows(isa: str, kernel: int) -> None:
    done = 0
    for number, (stride, padding, dilation) in enumerate(windows(kernel)):
        node = conv(
            draw(number, 4, 3, kernel, kernel, density=(0.3, 1.0)[number % 2]),
            stride=(stride, stride),
            padding=padding,
            dilation=(dilation, dilation),
        )
        for plane in ((13, 12), (5, 6)) if number % 3 else ((9, 31), (2, 3)):
            try:
                graph = of_one(node, (3, *plane))
            except GraphError:
                continue  # the kernel is larger than the image
            done += 1
            check(graph, isa, IMAGES[done % 4], (kernel, stride, padding, dilation, plane))
    assert done > 20


@each_isa
def test_convolution_windows_that_are_not_square(isa: str) -> None:
    kernels, strides, dilations = ((1, 3), (3, 1), (1, 7), (2, 5)), ((1, 2), (2, 1), (3, 1)), ((1, 2), (2, 1), (1, 1))
    for kernel, stride, dilation in itertools.product(kernels, strides, dilations):
        node = conv(draw(3, 5, 4, *kernel, density=0.6), stride=stride, dilation=dilation, padding=(1, 0, 3, 2))
        check(of_one(node, (4, 9, 14)), isa, 4, (kernel, stride, dilation))


@each_isa
@pytest.mark.parametrize("density", DENSITIES)
def test_convolution_channels(isa: str, density: float) -> None:
    for number, (channels, out) in enumerate(itertools.product(CHANNELS, CHANNELS)):
        kernel = (1, 3)[number % 2]
        weight = draw(number, out, channels, kernel, kernel, density=density)
        weight[number % out] = 0
        if out > 4:
            weight[1::3] = 0  # rows of very different length side by side
        node = conv(weight, padding=kernel // 2, bias=number % 5 > 0)
        for plane in (PLANES[number % len(PLANES)], (7, 7)):
            check(of_one(node, (channels, *plane)), isa, IMAGES[number % 4], (channels, out, kernel, density, plane))


@each_isa
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_convolution_planes(isa: str, density: float) -> None:
    for number, (height, width) in enumerate(itertools.product(SIZES, SIZES)):
        kernel, stride = ((3, 1), (1, 1), (3, 2), (2, 2))[number % 4]
        if kernel == 2 and min(height, width) < 2:
            kernel = 1
        node = conv(draw(number, 5, 3, kernel, kernel, density=density), padding=kernel // 3, stride=(stride, stride))
        check(of_one(node, (3, height, width)), isa, IMAGES[number % 3], (kernel, stride, height, width))


@each_isa
def test_convolution_groups(isa: str) -> None:
    shapes = [(2, 4, 6), (2, 34, 2), (4, 16, 32), (3, 3, 3), (16, 16, 32), (17, 17, 17), (17, 17, 51), (64, 64, 64)]
    for number, (groups, channels, out) in enumerate(shapes):
        for kernel, stride, density in itertools.product((1, 2, 3, 5), (1, 2), (0.0, 0.2, 1.0)):
            weight = draw(number, out, channels // groups, kernel, kernel, density=density)
            node = conv(weight, stride=(stride, stride), padding=kernel // 2, groups=groups)
            plane = PLANES[(number + kernel + stride) % len(PLANES)]
            check(of_one(node, (channels, *plane)), isa, IMAGES[number % 4], (groups, channels, out, kernel, plane))


@each_isa
def test_long_sums_of_few_pixels(isa: str) -> None:
    """Where tiles are narrow, the cache would hold blocks of hundreds of products, one sum each."""
    cases = [
        (1, 64, 2, 1, 1.0),
        (1, 64, 2, 1, 0.5),
        (1, 64, 3, 17, 1.0),
        (32, 1024, 3, 1024, 0.5),
        (1, 176, 1, 16, 1.0),
    ]
    for number, (groups, channels, kernel, out, density) in enumerate(cases):
        for seed, plane in itertools.product(range(4), ((7, 7), (8, 8))):
            weight = draw(10 * number + seed, out, channels // groups, kernel, kernel, density=density)
            node = conv(weight, stride=(4, 4), padding=1, groups=groups)
            check(of_one(node, (channels, *plane)), isa, 3, (groups, channels, kernel, out, density, seed, plane))


@each_isa
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_convolution_residual_and_activation(isa: str, groups: int) -> None:
    """The residual is an input; then it is another convolution's output, which may be written over."""
    for number, kind in enumerate(ACTIVATIONS):
        f = Activation(kind, slope=0.2, low=-0.5, high=0.75)
        plane, images = PLANES[number % len(PLANES)], IMAGES[number % 4]
        node = conv(
            draw(number, 16, 16 // groups, 3, 3, density=(0.2, 1.0)[number % 2]), padding=1, groups=groups, activation=f
        )
        check(of_one(node, (16, *plane), (16, *plane)), isa, images, (kind, plane))
        before = replace(conv(draw(9, 16, 16, 1, 1)), name="a", inputs=("x",))
        body = replace(conv(draw(8, 16, 16, 1, 1, density=0.2)), name="b", inputs=("a",))
        chain = (before, body, replace(node, name="y", inputs=("b", "a")))
        for outputs in (("y",), ("y", "a")):
            check(Graph({"x": (16, *plane)}, chain, outputs), isa, images, (kind, plane, "chain"))


@each_isa
def test_stem_and_pooling(isa: str) -> None:
    """A convolution of the input that only a pooling with a stride reads is made in the pooling's phases."""
    for size, kernel, pool in itertools.product(((17, 17), (20, 31), (9, 8)), (3, 7), (2, 3)):
        stem = replace(
            conv(draw(1, 8, 3, kernel, kernel), stride=(2, 2), padding=kernel // 2, activation=Activation("relu")),
            name="c",
            inputs=("x",),
        )
        for kind in ("max", "average"):
            top = Pool("y", ("c",), kind, (pool, pool), (2, 2), (pool // 2,) * 4)
            for images in IMAGES:
                check(Graph({"x": (3, *size)}, (stem, top), ("y",)), isa, images, (size, kernel, pool, kind))


@pytest.mark.slow
@each_isa
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
def test_convolution_grid(isa: str, kernel: int) -> None:
    """The whole of it."""
    cases = itertools.product((1, 2, 3, 4), (0, kernel // 2), CHANNELS, CHANNELS, DENSITIES, PLANES)
    for number, (stride, padding, channels, out, density, plane) in enumerate(cases):
        if min(plane) + 2 * padding < kernel:
            continue
        node = conv(
            draw(number, out, channels, kernel, kernel, density=density), stride=(stride, stride), padding=padding
        )
        check(
            of_one(node, (channels, *plane)), isa, IMAGES[number % 4], (stride, padding, channels, out, density, plane)
        )


@each_isa
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17])
def test_batches(isa: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Program, which cuts a batch into pieces: images that share vectors, convolutions, gate and classifier."""
    monkeypatch.setattr("budwood.engine.program.instruction_set", lambda: isa)
    graph = network()
    program = Program(graph, threads=1)
    inputs = draw_inputs(graph, count)
    assert len(inputs[0]) == count  # there are numbers enough
    assert_agrees(graph, inputs, program.run(inputs), f"{isa}, {count} images")


def network() -> Graph:
    relu = Activation("relu")
    nodes: tuple[Node, ...] = (
        replace(conv(draw(0, 16, 3, 3, 3), stride=(2, 2), padding=1, activation=relu), name="stem", inputs=("x",)),
        Pool("pool", ("stem",), "max", (3, 3), (2, 2), (1, 1, 1, 1)),
        replace(conv(draw(1, 32, 16, 3, 3, density=0.1) / 4, padding=1, activation=relu), name="a", inputs=("pool",)),
        replace(conv(draw(2, 32, 1, 3, 3) / 3, padding=1, groups=32), name="b", inputs=("a",)),
        AdaptivePool("mean", ("b",)),
        Flatten("flat", ("mean",)),
        Linear("gate", ("flat",), draw(3, 32, 32), draw(4, 32), Activation("sigmoid")),
        Mul("scaled", ("b", "gate")),
        replace(conv(draw(5, 32, 32, 1, 1, density=0.2) / 3, activation=relu), name="c", inputs=("scaled", "a")),
        replace(conv(draw(6, 40, 32, 3, 3, density=0.1) / 5, stride=(2, 2), padding=1), name="d", inputs=("c",)),
        AdaptivePool("last", ("d",)),
        Flatten("features", ("last",)),
        Linear("y", ("features",), draw(7, 101, 40), draw(8, 101)),
    )
    return Graph({"x": (3, 37, 41)}, nodes, ("y", "c"))


# -- products with a matrix -------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("density", DENSITIES)
def test_linear(isa: str, density: float) -> None:
    for number, (channels, out) in enumerate(itertools.product(CHANNELS, (*CHANNELS, 100))):
        weight = draw(number, out, channels, density=density)
        weight[number % out] = 0
        f = Activation(ACTIVATIONS[number % 6])
        for images in (IMAGES[number % 4], 5):
            check(of_one(Linear("", (), weight, draw(1, out), f), (channels,)), isa, images, (channels, out, density))


@each_isa
def test_convolution_to_a_single_pixel(isa: str) -> None:
    for number, plane in enumerate(((1, 1), (2, 3), (5, 5))):
        for density, groups, residual in itertools.product((0.05, 1.0), (1, 2, 6), (False, True)):
            weight = draw(number, 12, 6 // groups, *plane, density=density)
            node = conv(weight, groups=groups, activation=Activation("hardswish"))
            shapes = [(6, *plane)] + [(12, 1, 1)] * residual
            check(of_one(node, *shapes), isa, IMAGES[number], (plane, density, groups))
            check(of_one(replace(node, padding=(1, 1, 1, 1), stride=(9, 9)), *shapes), isa, IMAGES[number], "padded")


# -- pooling ----------------------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling(isa: str, kind: str) -> None:
    kernels = ((2, 2), (3, 3), (1, 3), (5, 5), (7, 2))
    for number, (kernel, stride, ceil) in enumerate(itertools.product(kernels, (1, 2, 3), (False, True))):
        paddings: tuple[Edges, ...] = ((0, 0, 0, 0), (kernel[0] // 2,) * 2 + (kernel[1] // 2,) * 2, (0, 1, 0, 1))
        for padding, counted, dilation in itertools.product(paddings, (False, True), (1, 2)):
            if (kind == "max" and counted) or (kind == "average" and dilation > 1) or padding[1] >= kernel[0]:
                continue
            node = Pool("", (), kind, kernel, (stride, stride), padding, (dilation,) * 2, ceil, counted)
            for plane in (PLANES[number % len(PLANES)], (14, 9)):
                try:
                    graph = of_one(node, (3, *plane))
                except GraphError:
                    continue
                check(graph, isa, IMAGES[number % 4], (kernel, stride, ceil, padding, counted, dilation, plane))


@each_isa
def test_average_pooling_with_dilation(isa: str) -> None:
    """PyTorch has none; ONNX does."""
    for padding, counted in itertools.product(((0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0)), (False, True)):
        node = Pool("", (), "average", (3, 2), (2, 1), padding, (2, 3), False, counted)
        check(of_one(node, (5, 9, 11)), isa, 4, (padding, counted))


@each_isa
def test_adaptive_pooling(isa: str) -> None:
    for number, (size, plane) in enumerate(itertools.product(((1, 1), (2, 3), (7, 7), (6, 1), (1, 5)), PLANES)):
        check(of_one(AdaptivePool("", (), size), (5, *plane)), isa, IMAGES[number % 4], (size, plane))


# -- elementwise ------------------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(isa: str, kind: str) -> None:
    """By themselves and behind every kind of operator, on maps and vectors."""
    f = Activation(kind, slope=0.2, low=-0.5, high=0.75)
    for number, plane in enumerate(((1, 1), (3, 5), (17, 9))):
        shape, images = (5, *plane), IMAGES[number]
        scale = draw(1, 5)
        for node, shapes in (
            (Activate("", (), f), [shape]),
            (Affine("", (), scale, draw(2, 5), f), [shape]),
            (Add("", (), f), [shape, shape]),
            (Mul("", (), f), [shape, shape]),
            (Add("", (), f), [shape, (5,)]),
            (Mul("", (), f), [shape, (5, 1, 1)]),
            (Mul("", (), f), [shape, (1, *plane)]),
        ):
            check(of_one(node, *shapes), isa, images, (kind, node.op, shapes))
        check(of_one(Linear("", (), draw(3, 17, 5), draw(4, 17), f), (5,)), isa, images, kind)
        check(of_one(Linear("", (), draw(3, 17, 5, density=0.2), draw(4, 17), f), (5,)), isa, images, kind)


@each_isa
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_far_out(isa: str, kind: str) -> None:
    """From 1e-30 to 1e30 and at their corners: the distance of every single number."""
    f = Activation(kind, slope=0.2, low=-0.5, high=0.75)
    magnitude = np.concatenate([np.logspace(-30, 30, 601), np.linspace(0, 20, 4001), np.linspace(80, 110, 301)])
    values = np.concatenate([magnitude, -magnitude, [0.5, 3, 6, 0.75, -3, -0.5]]).astype(np.float32)
    graph = of_one(Activate("", (), f), (len(values),))
    (found,), (exact,) = run_plan(graph, [values[None]], isa), meaning(graph, [values[None]])
    (single,) = meaning(graph, [values[None]], torch.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        far = np.abs(found - exact)
        assert np.isfinite(found).all() or kind in ("hardswish",)
        near = np.abs(values) < 1e9
        # Results between 0 and 1 are made from 1 + something, and x times such a thing: a unit in the last place of it.
        allowed = 2 * np.abs(single - exact) + 4 * 2.0**-24 * (np.abs(exact) + np.minimum(np.abs(values[None]), 1))
        wrong = (far > allowed) & near
    assert not wrong.any(), f"{kind}({values[wrong[0]][:3]}) = {found[wrong][:3]}, not {exact[wrong][:3]}"


# -- moving values ----------------------------------------------------------------------------------------------


@each_isa
def test_concat_select_pad_flatten(isa: str) -> None:
    for number, plane in enumerate(PLANES):
        images = IMAGES[number % 4]
        exact: list[tuple[Node, list[Shape]]] = [
            (Concat("", ()), [(3, *plane), (1, *plane), (16, *plane)]),
            (Select("", (), (4, 0, 0, 2, 3)), [(5, *plane)]),
            (Select("", (), (1, 2, 3)), [(5, *plane)]),
            (Pad("", (), (1, 0, 2, 3), -1.5), [(5, *plane)]),
            (Pad("", (), (0, 0, 0, 0)), [(5, *plane)]),
            (Flatten("", ()), [(5, *plane)]),
        ]
        for node, shapes in exact:
            graph = of_one(node, *shapes)
            inputs = draw_inputs(graph, images)
            (found,), (wanted,) = run_plan(graph, inputs, isa, images), meaning(graph, inputs)
            assert np.array_equal(found, wanted), f"{isa} {node.op} {plane} {images}"


@each_isa
def test_concat_of_convolutions(isa: str) -> None:
    """Parts are written where the whole stands; one of them twice, one also read by itself."""
    for number, plane in enumerate(PLANES):
        nodes: tuple[Node, ...] = (
            replace(conv(draw(1, 3, 4, 3, 3), padding=1), name="a", inputs=("x",)),
            replace(conv(draw(2, 17, 3, 1, 1, density=0.3)), name="b", inputs=("a",)),
            Concat("c", ("a", "b", "x", "a")),
            Concat("d", ("c", "b")),
            Select("e", ("d",), tuple(reversed(range(44)))),
            Select("f", ("e",), tuple(range(5, 20))),
            replace(conv(draw(3, 6, 15, 3, 3, density=0.1), padding=1), name="y", inputs=("f",)),
        )
        check(Graph({"x": (4, *plane)}, nodes, ("y", "d")), isa, IMAGES[number % 4], plane)


# -- norms and gates --------------------------------------------------------------------------------------------


@each_isa
def test_layer_norm_and_softmax(isa: str) -> None:
    for channels, plane, images in itertools.product((1, 2, 17, 96), ((1, 1), (3, 5), (14, 14)), (1, 4)):
        # A single channel's is its offset: nothing to measure an error by.
        node = LayerNorm("", (), draw(1, channels), draw(2, channels), 1e-3)
        check(of_one(node, (channels, *plane)), isa, images, (channels, plane))
        check(of_one(node, (channels,)), isa, images, (channels,))
        check(of_one(Softmax("", ()), (channels,)), isa, images, ("softmax", channels))


@each_isa
def test_layer_norm_far_from_zero(isa: str) -> None:
    """The variance of 1000 +- 1, which the mean of squares would lose."""
    graph = of_one(LayerNorm("", (), draw(1, 64), draw(2, 64), 1e-6), (64, 5, 7))
    inputs = [x + np.float32(1000) for x in draw_inputs(graph, 4)]
    assert_agrees(graph, inputs, run_plan(graph, inputs, isa), isa)


@each_isa
def test_softmax_of_large_numbers(isa: str) -> None:
    graph = of_one(Softmax("", ()), (37,))
    inputs = [100 * x for x in draw_inputs(graph, 16)] + []
    (found,) = run_plan(graph, inputs, isa)
    assert_agrees(graph, inputs, [found], isa)
    inputs = [np.full((1, 37), 3e38, np.float32)]
    np.testing.assert_allclose(run_plan(graph, inputs, isa)[0], 1 / 37, rtol=1e-6)


@each_isa
def test_squeeze_excite(isa: str) -> None:
    for number, (plane, as_linear) in enumerate(itertools.product(PLANES, (False, True))):
        relu, gate = Activation("relu"), Activation(("sigmoid", "hardsigmoid")[number % 2])
        nodes: list[Node] = [AdaptivePool("m", ("x",))]
        if as_linear:
            nodes += [
                Flatten("f", ("m",)),
                Linear("s", ("f",), draw(1, 4, 17), draw(2, 4), relu),
                Linear("g", ("s",), draw(3, 17, 4), draw(4, 17), gate),
            ]
        else:
            nodes += [
                replace(conv(draw(1, 4, 17, 1, 1), activation=relu), name="s", inputs=("m",)),
                replace(conv(draw(3, 17, 4, 1, 1), activation=gate), name="g", inputs=("s",)),
            ]
        nodes += [Mul("y", ("x", "g"))]
        for images in (1, 16):
            check(Graph({"x": (17, *plane)}, tuple(nodes), ("y",)), isa, images, plane)


# -- not a number, and infinity ---------------------------------------------------------------------------------

SPECIAL = (np.nan, np.inf, -np.inf)


def kinds(x: np.ndarray) -> np.ndarray:
    """0 for a finite number, 1 for infinity, -1 for -infinity, 2 for not a number."""
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0)).astype(int)


def skipping(node: Conv, x: Array, residual: Array | None) -> np.ndarray:
    """The convolution in float64 without the products with weights of zero, which x may make NaN."""

    def summed(weight: np.ndarray, x: np.ndarray) -> torch.Tensor:
        image = torch.from_numpy(x.astype(np.float64))
        top, bottom, left, right = node.padding
        image = torch.nn.functional.pad(image, (left, right, top, bottom))
        kernel = torch.from_numpy(weight.astype(np.float64))
        return torch.nn.functional.conv2d(image, kernel, None, node.stride, 0, node.dilation, node.groups)

    w = node.weight
    up = summed(w > 0, x == np.inf) + summed(w < 0, x == -np.inf) > 0
    down = summed(w < 0, x == np.inf) + summed(w > 0, x == -np.inf) > 0
    nan = summed(w != 0, np.isnan(x)) > 0
    y = summed(w, np.where(np.isfinite(x), x, 0))
    y[up] = torch.inf
    y[down] = -torch.inf
    y[nan | (up & down)] = torch.nan
    if node.bias is not None:
        y = y + torch.from_numpy(node.bias.astype(np.float64))[:, None, None]
    if residual is not None:
        y = y + torch.from_numpy(residual.astype(np.float64))
    return activate(y, node.activation).numpy()


def strike(inputs: list[Array], seed: int, values: tuple[float, ...] = SPECIAL) -> list[Array]:
    """The inputs with a single number each replaced by one of these, in the first image and in the last."""
    random = np.random.default_rng(seed)
    struck = [x.copy() for x in inputs]
    for x in struck:
        for image in {0, len(x) - 1}:
            place = tuple(int(random.integers(n)) for n in x.shape[1:])
            x[(image, *place)] = values[int(random.integers(len(values)))]
    return struck


def assert_same_kinds(graph: Graph, inputs: list[Array], isa: str, images: int, note: object = "") -> None:
    """Not a number and infinite exactly where PyTorch's result is; the rest as without them.

    In float64: in float32 some of PyTorch's vectors answer NaN to gelu(infinity).
    """
    found, wanted = run_plan(graph, inputs, isa, images), meaning(graph, inputs)
    for y, reference in zip(found, wanted, strict=True):
        assert np.array_equal(kinds(y), kinds(reference)), f"{isa} {images} {note}"
        finite = kinds(reference) == 0
        np.testing.assert_allclose(y[finite], reference[finite], rtol=1e-4, atol=1e-4, err_msg=f"{isa} {note}")


@each_isa
@pytest.mark.parametrize("density", [0.1, 0.7, 1.0])
def test_convolutions_spread_what_is_not_finite(isa: str, density: float) -> None:
    """Through every weight that is not zero, and nowhere else: not into another pixel, channel, group or image.

    A product with a weight of zero is skipped or made, at the kernel's choice.
    """
    number = 0
    for groups, kernel, plane in itertools.product((1, 2, 4), (1, 3), ((1, 1), (5, 7), (9, 20), (3, 3))):
        for stride, padding, residual in ((1, kernel // 2, True), (2, kernel // 2, False), (3, kernel - 1, False)):
            number += 1
            weight = draw(number, 8, 4 // groups, kernel, kernel, density=density)
            f = Activation(ACTIVATIONS[number % len(ACTIVATIONS)], low=-1, high=1)
            node = conv(weight, stride=(stride, stride), padding=padding, groups=groups, activation=f)
            images = IMAGES[number % 4]
            shapes = [(4, *plane)] + [(8, *plane)] * residual
            graph = of_one(node, *shapes)
            inputs = strike(draw_inputs(graph, images, seed=number), number)
            (found,) = run_plan(graph, inputs, isa, images)
            skipped = skipping(node, inputs[0], inputs[1] if residual else None)
            (made,) = meaning(graph, inputs)
            same = (kinds(found) == kinds(skipped)) | (kinds(found) == kinds(made))
            assert same.all(), (isa, density, groups, kernel, plane, stride, f.kind, images, np.argwhere(~same)[:3])
            finite = (kinds(skipped) == 0) & (kinds(found) == 0)
            np.testing.assert_allclose(found[finite], skipped[finite], rtol=1e-4, atol=1e-4)


@each_isa
def test_pooling_and_moving_spread_what_is_not_finite(isa: str) -> None:
    for number, plane in enumerate(PLANES):
        shape = (5, *plane)
        nodes: list[Node] = [
            AdaptivePool("", (), (1, 1)),
            AdaptivePool("", (), (2, 3)),
            Pad("", (), (1, 2, 0, 1), 2.0),
            Select("", (), (4, 1, 1)),
            Flatten("", ()),
            Affine("", (), draw(1, 5), draw(2, 5)),
            LayerNorm("", (), draw(1, 5), draw(2, 5)),
        ]
        for kind, counted in (("max", True), ("average", True), ("average", False)):
            for kernel, stride in (((3, 3), (2, 2)), ((2, 2), (1, 1)), ((3, 3), (1, 1))):
                nodes.append(Pool("", (), kind, kernel, stride, (1, 1, 1, 1), count_padding=counted))
        for node in nodes:
            graph = of_one(node, shape)
            for seed, images in ((number, IMAGES[number % 4]), (number + 50, 16)):
                inputs = strike(draw_inputs(graph, images, seed), seed)
                assert_same_kinds(graph, inputs, isa, images, (node, plane))


@each_isa
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_keep_what_is_not_finite(isa: str, kind: str) -> None:
    f = Activation(kind, low=-0.5, high=0.75)
    special = np.array([np.nan, np.inf, -np.inf, 1.0, -1.0, -np.nan, 0.0, 7.0, -0.0], np.float32)
    graph = of_one(Activate("", (), f), (1, 3, 27))
    inputs = [np.tile(special, 9).reshape(1, 1, 3, 27)]
    assert_same_kinds(graph, inputs, isa, 1, kind)
    weight = np.ones((1, 1, 1, 1), np.float32)
    for node in (
        conv(weight, activation=f, bias=False),
        Add("", (), f),
        Affine("", (), weight[0, 0, 0], 0 * weight[0, 0, 0], f),
    ):
        if isinstance(node, Add):
            assert_same_kinds(
                of_one(node, (1, 3, 27), (1, 3, 27)), [inputs[0], 0 * np.ones_like(inputs[0])], isa, 1, kind
            )
        else:
            assert_same_kinds(of_one(node, (1, 3, 27)), inputs, isa, 1, (kind, node.op))
    for rows in (1, 9):
        vector = special.reshape(-1, 1)[:rows]
        weight = np.full((17, 1), 1, np.float32)
        assert_same_kinds(of_one(Linear("", (), weight, None, f), (1,)), [vector], isa, rows, (kind, "Linear"))
        padded = np.concatenate([vector, np.zeros((rows, 5), np.float32)], 1)
        weight = np.eye(1, 6, dtype=np.float32) * np.ones((17, 1), np.float32)
        graph = of_one(Linear("", (), weight, None, f), (6,))  # sparse
        assert_same_kinds(graph, [padded], isa, rows, (kind, "sparse Linear"))


@each_isa
def test_an_operator_of_two_spreads_what_is_not_finite(isa: str) -> None:
    for number, (plane, op) in enumerate(itertools.product(PLANES, (Add, Mul))):
        for second in ((5, *plane), (5,), (5, 1, 1), (1, *plane)):
            graph = of_one(op("", ()), (5, *plane), second)
            images = IMAGES[number % 4]
            inputs = strike(draw_inputs(graph, images, number), number)
            assert_same_kinds(graph, inputs, isa, images, (op, plane, second))


@each_isa
def test_softmax_with_what_is_not_finite(isa: str) -> None:
    graph = of_one(Softmax("", ()), (7,))
    for value in SPECIAL:
        for images in (1, 4):
            assert_same_kinds(graph, strike(draw_inputs(graph, images), 1, (value,)), isa, images, value)
    everything = np.full((2, 7), -np.inf, np.float32)
    assert_same_kinds(graph, [everything], isa, 2, "all -infinity")


@each_isa
def test_what_is_not_finite_is_gone_with_the_next_call(isa: str) -> None:
    """Nothing of a call is left in the arena for the next to stumble over; and what one image holds stays with it."""
    from budwood.engine.lower import lower

    graph = network()
    for images in (1, 4, 16):
        (clean,) = draw_inputs(graph, images)[:1]
        clean = clean[:images]

        def run(plan: object, x: Array) -> list[Array]:
            outputs = [np.empty((len(x), *graph.shapes[name]), np.float32) for name in graph.outputs]
            plan.run([x], outputs, 1)  # type: ignore[attr-defined]
            return outputs

        fresh = run(lower(graph, images, isa), clean)
        plan = lower(graph, images, isa)
        for poison in SPECIAL:
            run(plan, np.full_like(clean, poison))
            again = run(plan, clean)
            assert all(np.array_equal(a, b) for a, b in zip(again, fresh, strict=True)), (images, poison)
            if images > 1:
                spoilt = clean.copy()
                spoilt[1] = poison
                others = [i for i in range(images) if i != 1]
                for a, b in zip(run(plan, spoilt), fresh, strict=True):
                    assert np.array_equal(a[others], b[others]), f"{isa}: an image spoils others, {images}, {poison}"
                    assert math.prod(a[1].shape) and not np.isfinite(a[1]).all()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch cuts long sums between its threads, so its own error depends on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- long sums --------------------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize(
    ("channels", "kernel", "density", "images"),
    [
        (25088, 0, 1.0, 1),
        (4096, 0, 0.1, 4),
        (2048, 0, 1.0, 1),
        (1024, 0, 1.0, 4),
        (512, 0, 1.0, 16),
        (512, 0, 1.0, 4),
        (256, 0, 1.0, 1),
        (512, 3, 1.0, 1),
        (512, 3, 0.1, 1),
        (256, 3, 0.4, 4),
        (256, 3, 0.02, 4),
        (256, 3, 0.1, 4),
        (2048, 1, 1.0, 4),
        (2048, 1, 0.1, 4),
    ],
)
def test_long_sums(isa: str, channels: int, kernel: int, density: float, images: int, one_thread: None) -> None:
    """kernel 0: a product of vectors with a matrix."""
    if kernel == 0:
        weight = draw(1, 200, channels, density=density)
        graph = of_one(Linear("", (), weight, draw(2, 200)), (channels,))
    else:
        node = conv(draw(1, 32, channels, kernel, kernel, density=density), padding=kernel // 2)
        graph = of_one(node, (channels, 7, 7))
    check(graph, isa, images, (channels, kernel, density))
