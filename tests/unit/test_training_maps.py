"""The native steps of training on maps, in plans built by hand, against PyTorch's autograd in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from budwood.engine import _native, native
from budwood.engine.layout import Layout, choose, sharing
from budwood.engine.lower import from_map
from budwood.engine.lowering.channelwise import Scratch
from budwood.engine.lowering.operand import taps
from budwood.engine.moves import Window, table, together
from budwood.engine.storage import Buffer, View, arrange

Floats = NDArray[np.float32]
ISAS = native.instruction_sets()
PLANES = [(7, 7), (14, 14), (13, 9), (28, 28), (30, 17)]
INF = float("inf")
CLAMPS = {"none": (-INF, INF), "relu": (0.0, INF), "relu6": (0.0, 6.0)}


class Hand:
    """A plan whose steps are called by the test, each in a segment of its own. Its memory begins as NaN.

    What a step is to do is said before the places of the maps are known: `then` takes a function of the plan.
    """

    def __init__(self, isa: str, images: int) -> None:
        self.isa, self.images, self.lanes = isa, images, _native.lanes(isa)
        self.buffers: list[Buffer] = []
        self.inputs: list[Floats] = [np.full(1, np.nan, np.float32)]
        self.outputs: list[Floats] = []
        self.steps: list[tuple[int, Callable[[_native.Plan], Any]]] = []

    def layout(self, plane: tuple[int, int]) -> Layout:
        return choose(plane, sharing(plane, self.images, self.lanes), self.lanes)

    def map(self, plane: tuple[int, int] | None, channels: int, halo: tuple[int, int] = (0, 0)) -> View:
        layout = None if plane is None else self.layout(plane)
        kept = 1 if layout is None else self.images // layout.images
        self.buffers.append(Buffer(layout, channels, self.images, halo, kept, 0, 1))
        return View(self.buffers[-1], 0, channels)

    def vector(self, floats: int) -> Buffer:
        self.buffers.append(Buffer(None, floats, 1, born=0, last=1))
        return self.buffers[-1]

    def then(self, step: Callable[[_native.Plan], Any], groups: int = 1) -> None:
        self.steps.append((groups, step))

    def input(self, values: Floats) -> int:
        self.inputs.append(np.ascontiguousarray(values, np.float32))
        return len(self.inputs) - 1

    def output(self, *shape: int) -> int:
        self.outputs.append(np.full(shape, np.nan, np.float32))
        return len(self.outputs) - 1

    def bring(self, values: Floats, fill: float, halo: tuple[int, int] = (0, 0)) -> View:
        """A map of the values [images, channels, H, W], `fill` where no pixel is."""
        _, channels, height, width = values.shape
        view = self.map((height, width), channels, halo)
        number, layout = self.input(values), view.buffer.layout
        assert layout is not None
        area, row = height * width, view.buffer.row

        def place(image: Any, y: Any, x: Any) -> tuple[Any, Any]:
            return image * channels * area + y * width + x, np.full(1, -1)

        moves = table(layout, halo, lambda y, x: y * row + x * layout.lanes, (height, width), place, Window())
        m = together([moves], [0])

        def step(plan: _native.Plan) -> None:
            plan.input(number, channels * area, area, layout.images, view.numbers(), m.moves, m.row, m.index, fill)

        self.then(step, view.buffer.kept)
        return view

    def read(self, view: View) -> int:
        """The number of an output that gets a map's pixels."""
        layout = view.buffer.layout
        assert layout is not None
        height, width = layout.plane
        number = self.output(self.images, view.channels, height, width)
        image, y, x = np.meshgrid(np.arange(layout.images), np.arange(height), np.arange(width), indexing="ij")
        vector, lane = from_map(view, layout)(image, y, x)
        at = np.ascontiguousarray((vector + lane).ravel())
        area = height * width
        self.then(
            lambda plan: plan.output(view.numbers(), number, view.channels * area, area, layout.images, at),
            view.buffer.kept,
        )
        return number

    def mask(self, plane: tuple[int, int]) -> Floats:
        layout = self.layout(plane)
        _, row, column = layout.pixels(np.arange(layout.height), np.arange(layout.width))
        inside = (row < plane[0]) & (column < plane[1])
        return np.zeros(0, np.float32) if inside.all() else inside.astype(np.float32).ravel()

    def run(self, threads: int = 1) -> list[NDArray[np.float64]]:
        floats = arrange(self.buffers)
        plan = _native.Plan(self.isa, floats, [a.size for a in self.inputs], [a.size for a in self.outputs])
        plan.segment(1)
        plan.pack(0, 0, np.zeros(floats, np.int64))
        turns = [(0, 0)]
        for number, (groups, step) in enumerate(self.steps, 1):
            plan.segment(groups)
            step(plan)
            turns += [(number, group) for group in range(groups)]
        plan.order(turns)
        plan.run(self.inputs, self.outputs, threads, False)
        return [a.astype(np.float64) for a in self.outputs]


def numbers(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def near(got: NDArray[np.float64], want: torch.Tensor | NDArray[np.float64], within: float) -> None:
    """Largest difference in units of the largest number wanted."""
    expected = np.asarray(want, np.float64).reshape(got.shape)
    assert np.abs(got - expected).max() <= within * max(np.abs(expected).max(), 1e-30)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (1000.0, 1.0), (-3.0, 1e-3)])
def test_statistics_are_those_of_all_pixels_of_all_images(
    isa: str, plane: tuple[int, int], mean: float, scale: float
) -> None:
    x = mean + scale * numbers(4, 5, *plane)
    h = Hand(isa, 4)
    source, at_mean, at_var = h.bring(x, np.nan), h.vector(5), h.vector(5)
    mask, count, number = h.mask(plane), 4 * plane[0] * plane[1], h.output(2, 5)
    h.then(lambda p: p.batch_statistics(source.numbers(), mask, count, at_mean.offset, at_var.offset))
    h.then(lambda p: p.statistics_out(at_mean.offset, at_var.offset, number))
    (got,) = h.run()
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(got[0], exact.mean((0, 2, 3)), rtol=2e-7, atol=1e-7 * scale)
    np.testing.assert_allclose(got[1], exact.var((0, 2, 3)), rtol=2e-6)


def test_a_first_row_far_from_the_rest_costs_no_digits() -> None:
    """The numbers are summed less the mean of the first row."""
    x = 1e4 + numbers(4, 3, 28, 28)
    x[:, :, 0] = 0
    h = Hand(ISAS[0], 4)
    source, at_mean, at_var, number = h.bring(x, 0), h.vector(3), h.vector(3), h.output(2, 3)
    h.then(lambda p: p.batch_statistics(source.numbers(), h.mask((28, 28)), 4 * 784, at_mean.offset, at_var.offset))
    h.then(lambda p: p.statistics_out(at_mean.offset, at_var.offset, number))
    (got,) = h.run()
    np.testing.assert_allclose(got, np.stack([x.mean((0, 2, 3), np.float64), x.var((0, 2, 3), np.float64)]), rtol=2e-6)


class Normed:
    """Batch norm with a residual and a clamp, forward and backward, by the plan and by PyTorch."""

    def __init__(
        self, isa: str, plane: tuple[int, int], clamp: str, residual: bool, frozen: bool, *, in_place: bool = False
    ) -> None:
        self.clamp, self.frozen = clamp, frozen
        shape = (4, 6, *plane)
        self.x, self.gradient = 2 + 3 * numbers(*shape, seed=1), numbers(*shape, seed=2)
        self.beside = 2 * numbers(*shape, seed=3) if residual else None
        self.weight, self.bias = 1 + numbers(6, seed=4), 2 * numbers(6, seed=5)
        self.mean, self.var = numbers(6, seed=6), np.square(numbers(6, seed=7)) + 1
        h = self.hand = Hand(isa, 4)
        source, gradient = h.bring(self.x, np.nan), h.bring(self.gradient, 0, (1, 1))
        beside = None if self.beside is None else h.bring(self.beside, np.nan)
        out = h.map(plane, 6, (1, 1))
        to, residual_to = (gradient, h.map(plane, 6)) if in_place else (h.map(plane, 6), gradient)
        mask, count = h.mask(plane), 4 * plane[0] * plane[1]
        weight, bias, eps, (low, high) = h.input(self.weight), h.input(self.bias), 1e-5, CLAMPS[clamp]
        mean, var = h.vector(6), h.vector(6)
        weight_out, bias_out = h.output(6), h.output(6)
        if frozen:
            given = h.input(self.mean), h.input(self.var)
            h.then(lambda p: p.pack(given[0], mean.offset, np.arange(6)))
            h.then(lambda p: p.pack(given[1], var.offset, np.arange(6)))
        else:
            h.then(lambda p: p.batch_statistics(source.numbers(), mask, count, mean.offset, var.offset))
        h.then(
            lambda p: p.batch_norm(
                source.numbers(), out.numbers(), beside.numbers() if beside else None, mask, mean.offset, var.offset,
                weight, bias, eps, low, high,
            )
        )  # fmt: skip
        h.then(
            lambda p: p.batch_norm_gradient(
                source.numbers(), out.numbers(), gradient.numbers(), to.numbers(),
                residual_to.numbers() if residual else None, mask, count, mean.offset, var.offset, weight, eps, low,
                high, weight_out, bias_out, frozen,
            )
        )  # fmt: skip
        self.residual = residual
        for view in (out, to, *([residual_to] if residual else [])):
            h.read(view)

    def torch(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Gradients to weight and bias, output, gradients to source and residual."""
        given = [self.x, self.weight, self.bias] + ([self.beside] if self.beside is not None else [])
        x, weight, bias, *beside = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in given)
        statistics = [torch.tensor(a, dtype=dtype) for a in (self.mean, self.var)]
        y = functional.batch_norm(x, *statistics, weight, bias, training=not self.frozen, eps=1e-5)
        y = y + beside[0] if beside else y
        y = {"none": lambda v: v, "relu": functional.relu, "relu6": functional.relu6}[self.clamp](y)
        y.backward(torch.tensor(self.gradient, dtype=dtype))
        return [weight.grad, bias.grad, y.detach(), x.grad, *(b.grad for b in beside)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_and_its_gradients(
    isa: str, plane: tuple[int, int], clamp: str, residual: bool, frozen: bool
) -> None:
    normed = Normed(isa, plane, clamp, residual, frozen)
    for got, want in zip(normed.hand.run(), normed.torch(torch.float64), strict=True):
        near(got, want, 2e-6)


def test_a_gradient_in_the_place_of_the_one_it_comes_from() -> None:
    apart, within = (Normed(ISAS[0], (13, 9), "relu", True, False, in_place=p) for p in (False, True))
    for a, b in zip(apart.hand.run(), within.hand.run(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    normed = Normed(ISAS[0], (28, 28), "relu", True, False)
    for a, b in zip(normed.hand.run(), normed.hand.run(threads), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("clamp", ["relu", "relu6"])
def test_nothing_passes_back_at_the_ends_of_a_clamp(clamp: str) -> None:
    """Outputs exactly 0 and 6; torch.nn.functional lets no gradient through at either."""
    x = np.array([-1, 0, 1, 6, 7, 3, 0, 6, 5], np.float32).reshape(1, 1, 3, 3)
    normed = Normed(ISAS[0], (3, 3), clamp, False, True)
    # sqrt(1 + eps) cancels: the output is the clamped input itself.
    normed.x[:], normed.mean[:], normed.var[:], normed.bias[:] = x, 0, 1, 0
    normed.weight[:] = np.sqrt(1 + 1e-5)
    got = normed.hand.run()  # the plan reads these very arrays
    np.testing.assert_array_equal(got[2][0, 0].ravel(), np.clip(x.ravel(), *CLAMPS[clamp]))
    want = [a.numpy() for a in normed.torch(torch.float64)]
    np.testing.assert_array_equal(got[3] == 0, want[3] == 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("plane", PLANES)
def test_the_gradient_of_a_global_average_is_spread(isa: str, plane: tuple[int, int]) -> None:
    values = numbers(4, 3)
    h = Hand(isa, 4)
    source, out, number = h.map(None, 3), h.map(plane, 3, (1, 2)), h.input(values)
    images = h.layout(plane).images
    h.then(lambda p: p.input_vector(number, source.numbers(), 4))
    h.then(lambda p: p.spread(source.numbers(), out.numbers(), images, h.mask(plane), 1 / (plane[0] * plane[1])))
    h.read(out)
    (got,) = h.run()
    near(got, np.broadcast_to(values[:, :, None, None] / (plane[0] * plane[1]), got.shape), 2e-7)


WINDOWS = [  # plane, kernel, stride, padding, dilation
    ((112, 112), 3, 2, 1, 1),
    ((28, 28), 3, 2, 1, 1),
    ((14, 14), 2, 2, 0, 1),
    ((13, 9), 3, 1, 1, 1),
    ((15, 14), 3, 2, 0, 1),
    ((17, 12), 3, 1, 2, 2),
    ((28, 28), 5, 2, 2, 1),
]


def windowed(
    h: Hand, x: Floats, kernel: int, stride: int, padding: int, dilation: int, fill: float, rubbish: float = 1e30
) -> tuple[View, dict[str, Any], NDArray[np.int64], tuple[int, int]]:
    """The source, the arguments that say how its planes are laid out (but for source), the taps, the output's plane."""
    source = h.bring(x, rubbish, (1, 0))
    out = tuple((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in x.shape[2:])
    assert len(out) == 2
    window = taps((kernel,) * 2, (stride,) * 2, (padding,) * 4, (dilation,) * 2)
    scratch = Scratch(h.layout(out), window)

    class Shapes:
        phased: tuple[str, ...] = ()

        def shape(self, name: str) -> tuple[int, ...]:
            return x.shape[1:]

    arguments = scratch.arguments(Shapes(), "x", source, fill)  # type: ignore[arg-type]
    del arguments["source"]
    return source, arguments, scratch.offsets(), out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [w for w in WINDOWS if 2 * w[3] <= w[1]])  # PyTorch pads by half a window at most
@pytest.mark.parametrize("ties", [False, True])
def test_the_gradient_of_max_pooling_goes_to_the_first_largest_pixel(
    isa: str, window: tuple[tuple[int, int], int, int, int, int], ties: bool
) -> None:
    plane, kernel, stride, padding, dilation = window
    x = numbers(4, 3, *plane)
    x = np.maximum(np.round(x), 0) if ties else x
    h = Hand(isa, 4)
    source, arguments, offsets, size = windowed(h, x, kernel, stride, padding, dilation, -INF)
    g = numbers(4, 3, *size, seed=1)
    gradient, out, to = h.bring(g, 0), h.map(size, 3), h.map(plane, 3)
    factors = np.ones(1, np.float32)
    images = h.layout(size).images
    h.then(
        lambda p: p.pool(**arguments, source=source.numbers(), out=out.numbers(), taps=offsets, largest=True,
                         factors=factors),
        4 // images,
    )  # fmt: skip
    h.then(
        lambda p: p.max_pool_gradient(**arguments, source=source.numbers(), out=out.numbers(), taps=offsets,
                                      gradient=gradient.numbers(), to=to.numbers())
    )  # fmt: skip
    h.read(to)
    (got,) = h.run()
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    functional.max_pool2d(given, kernel, stride, padding, dilation).backward(torch.tensor(g, dtype=torch.float64))
    assert given.grad is not None
    near(got, given.grad, 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", WINDOWS[1:])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolution_and_its_gradients(
    isa: str, window: tuple[tuple[int, int], int, int, int, int], multiplier: int
) -> None:
    plane, kernel, stride, padding, dilation = window
    x, w = numbers(4, 3, *plane), numbers(3 * multiplier, 1, kernel, kernel, seed=2)
    h = Hand(isa, 4)
    source, arguments, offsets, size = windowed(h, x, kernel, stride, padding, dilation, 0.0)
    g = numbers(4, 3 * multiplier, *size, seed=1)
    gradient, out, to = h.bring(g, 0), h.map(size, 3 * multiplier), h.map(plane, 3)
    weights, given, weight_out = h.vector(w.size), h.input(w), h.output(*w.shape)
    h.then(lambda p: p.pack(given, weights.offset, np.arange(w.size)))
    h.then(
        lambda p: p.depthwise_packed(**arguments, source=source.numbers(), out=out.numbers(), residual=None,
                                     taps=offsets, weights_at=weights.offset),
        4 // h.layout(size).images,
    )  # fmt: skip
    h.then(
        lambda p: p.depthwise_gradient(**arguments, source=source.numbers(), taps=offsets, gradient=gradient.numbers(),
                                       to=to.numbers(), weights_at=weights.offset, number=weight_out)
    )  # fmt: skip
    h.read(out)
    h.read(to)
    got = h.run()
    exact = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, w)]
    y = functional.conv2d(*exact, None, stride, padding, dilation, groups=3)
    y.backward(torch.tensor(g, dtype=torch.float64))
    for a, b in zip(got, (exact[1].grad, y.detach(), exact[0].grad), strict=True):
        assert b is not None
        near(a, b, 2e-6)


def refused(arguments: dict[str, Any], what: str) -> None:
    plan = _native.Plan(ISAS[0], 1 << 16, [4, 5], [4, 4, 8])
    lanes = _native.lanes(ISAS[0])
    plan.segment(arguments.pop("groups", 1))
    step = arguments.pop("step")
    one = (0, 2 * 4 * 2 * lanes, 4 * 2 * lanes, 2 * lanes, 2, 2, 4, 2, lanes, 0, 0)
    given: dict[str, Any] = {"source": one, "mask": np.zeros(0, np.float32), "mean_at": 0, "var_at": 0}
    if step == "batch_statistics":
        given["count"] = 8
    else:
        given |= {"out": one, "weight": 0, "eps": 1e-5, "low": 0.0, "high": INF}
    if step == "batch_norm":
        given |= {"bias": 0, "residual": None}
    elif step == "batch_norm_gradient":
        given |= {
            "gradient": one,
            "to": (1 << 15, *one[1:]),
            "residual_to": None,
            "count": 8,
            "weight_out": 0,
            "bias_out": 1,
        }
        given["frozen"] = False
    changed = {k: v(one) if callable(v) else v for k, v in arguments.items()}
    getattr(plan, step)(**given)  # as it is, it is taken
    with pytest.raises(ValueError, match=what):
        getattr(plan, step)(**(given | changed))


def moved(place: int, value: int) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    return lambda one: (*one[:place], value, *one[place + 1 :])


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"step": "batch_statistics", "mean_at": (1 << 16) - 3}, "outside the arena"),
        ({"step": "batch_statistics", "var_at": -1}, "outside the arena"),
        ({"step": "batch_statistics", "count": 0}, "one value or more"),
        ({"step": "batch_statistics", "mask": np.ones(3, np.float32)}, "one number per pixel"),
        ({"step": "batch_statistics", "source": moved(0, 1 << 16)}, "outside the arena"),
        ({"step": "batch_statistics", "source": moved(8, 1)}, "lanes"),
        ({"step": "batch_norm", "out": moved(4, 1)}, "not like its source"),
        ({"step": "batch_norm", "out": moved(1, 1 << 16)}, "outside the arena"),
        ({"step": "batch_norm", "residual": moved(6, 3)}, "not like its source"),
        ({"step": "batch_norm", "weight": 1}, "one number for each channel"),
        ({"step": "batch_norm", "bias": 2}, "no such input"),
        ({"step": "batch_norm_gradient", "to": moved(5, 1)}, "not alike"),
        ({"step": "batch_norm_gradient", "residual_to": moved(0, 1 << 15)}, "the same place"),
        ({"step": "batch_norm_gradient", "to": lambda one: one}, "after its gradient is begun"),
        ({"step": "batch_norm_gradient", "residual_to": lambda one: one}, "after its gradient is begun"),
        ({"step": "batch_norm_gradient", "weight_out": 2}, "another size"),
        ({"step": "batch_norm_gradient", "bias_out": 3}, "no such output"),
    ],
)
def test_what_would_reach_outside_is_refused(changed: dict[str, Any], what: str) -> None:
    refused(dict(changed), what)


def test_a_step_over_all_images_needs_a_segment_of_one_turn() -> None:
    plan = _native.Plan(ISAS[0], 1 << 16, [], [])
    plan.segment(2)
    lanes = _native.lanes(ISAS[0])
    with pytest.raises(ValueError, match="one group"):
        plan.batch_statistics((0, lanes, lanes, lanes, 1, 1, 1, 1, lanes, 0, 0), np.zeros(0, np.float32), 1, 0, 0)
