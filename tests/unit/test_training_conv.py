"""Convolutions with weights in the arena, and their gradient, through the bindings: plans built by hand against
PyTorch's convolution and its derivatives in double precision, in the real layouts of every instruction set."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv2d

from budwood.engine import _native, native
from budwood.engine.layout import choose, sharing, tiles
from budwood.engine.lower import from_map
from budwood.engine.lowering.conv import WIDEST, blocks
from budwood.engine.lowering.operand import Operand, taps
from budwood.engine.moves import Moves, Window, table
from budwood.engine.storage import Buffer, View, arrange

ISAS = native.instruction_sets()
Floats = NDArray[np.float32]


@dataclass
class Case:
    """A k x k convolution with stride 1 that keeps the plane's size; a mask of its weights."""

    isa: str
    images: int
    channels: int
    outputs: int
    plane: tuple[int, int]
    kernel: int
    density: float
    budget: int = 600  # lines of a block of operands

    def __post_init__(self) -> None:
        random = np.random.default_rng([self.images, self.channels, self.outputs, self.kernel, *self.plane])
        shape = (self.outputs, self.channels, self.kernel, self.kernel)
        self.mask = random.random(shape) < self.density
        self.mask[0] = False  # an output channel without weights
        self.weight = np.where(self.mask, random.standard_normal(shape), 0).astype(np.float32)
        self.x = random.standard_normal((self.images, self.channels, *self.plane)).astype(np.float32)
        self.dy = random.standard_normal((self.images, self.outputs, *self.plane)).astype(np.float32)

    @property
    def values(self) -> Floats:
        return self.weight[self.mask]

    def csr(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        flat = self.mask.reshape(self.outputs, -1)
        start = np.concatenate([[0], np.cumsum(flat.sum(1))]).astype(np.int64)
        return np.nonzero(flat)[1].astype(np.int32), start

    def reference(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The output, and the gradient to the non-zeros, in double precision."""
        weight = torch.tensor(self.weight, dtype=torch.float64, requires_grad=True)
        y = conv2d(torch.tensor(self.x, dtype=torch.float64), weight, padding=self.kernel // 2)
        y.backward(torch.tensor(self.dy, dtype=torch.float64))
        assert weight.grad is not None
        return y.detach().numpy(), weight.grad.numpy()[self.mask]


class HandMade:
    """A plan: the images and the output's gradient come in, the output and the weights' gradient go out.

    Inputs: x, dy, the values. Outputs: y, the gradient. Turns: one brings x and the weights, one a group convolves, one
    brings dy, one makes the gradient.
    """

    def __init__(self, case: Case, dense: bool = False) -> None:
        self.case, self.dense = case, dense
        lanes = _native.lanes(case.isa)
        self.layout = choose(case.plane, sharing(case.plane, case.images, lanes), lanes)
        self.kept = case.images // self.layout.images
        t = taps((case.kernel, case.kernel), (1, 1), (case.kernel // 2,) * 4, (1, 1))
        self.x = self._view(case.channels, t.halo)
        self.y, self.dy = self._view(case.outputs), self._view(case.outputs)
        at = arrange([self.x.buffer, self.y.buffer, self.dy.buffer])
        operands = case.channels * case.kernel**2
        count = -(-case.outputs // 3) * 3 * operands if dense else len(case.values)
        sizes = [case.x.size, case.dy.size, case.weight.size if dense else len(case.values)]
        self.plan = plan = _native.Plan(case.isa, at + count, sizes, [case.dy.size, len(case.values)])
        operand = Operand(self.x, 1, t.taps)
        tile = -(-self.layout.width // tiles(self.layout.width, WIDEST))
        cut = blocks(case.channels, len(t.taps), operand.lines(tile), case.budget)
        offsets = np.ascontiguousarray(operand.offsets().ravel())
        columns, start = case.csr()

        plan.segment(self.kept)  # 0
        self._bring(0, self.x)
        if t.halo != (0, 0):
            self._halo()
        plan.segment(self.kept)  # 1
        common = (self.x.numbers(), self.y.numbers(), None, offsets, WIDEST, cut, False)
        if dense:
            order = plan.dense_conv_packed(*common, 1, at)
            assert len(order) == count
        else:
            order = plan.sparse_conv_packed(*common, columns, start, at)
        self._out()
        plan.segment(self.kept)  # 2
        self._bring(1, self.dy)
        plan.segment(1)  # 3
        plan.conv_gradient(self.x.numbers(), self.dy.numbers(), offsets, WIDEST, cut, columns, start, 1)
        plan.segment(1)  # 4
        plan.pack(2, at, order)
        groups = range(self.kept)
        plan.order([(4, 0), *((s, g) for s in (0, 1, 2) for g in groups), (3, 0)])

    def _view(self, channels: int, halo: tuple[int, int] = (0, 0)) -> View:
        return View(Buffer(self.layout, channels, self.case.images, halo, self.kept, born=0, last=1), 0, channels)

    def _table(
        self, view: View, source: Callable[..., Any], window: Window, halo: tuple[int, int], changed: bool
    ) -> Moves:
        row, lanes = view.buffer.row, self.layout.lanes
        return table(
            self.layout, halo, lambda y, x: y * row + x * lanes, self.case.plane, source, window, only_changed=changed
        )

    def _bring(self, number: int, view: View) -> None:
        """Beyond the image it leaves zeros: what conv_gradient asks for."""
        height, width = self.case.plane
        image = view.channels * height * width

        def place(n: Any, row: Any, column: Any) -> Any:
            return n * image + row * width + column, np.full(1, -1)

        m = self._table(view, place, Window(), (0, 0), False)
        self.plan.input(number, image, height * width, self.layout.images, view.numbers(), m.moves, m.row, m.index, 0.0)

    def _halo(self) -> None:
        view = self.x
        m = self._table(view, from_map(view, self.layout), Window(), view.buffer.halo, True)
        self.plan.repack(view.numbers(), view.numbers(), m.moves, m.row, m.index, 0.0, 1)

    def _out(self) -> None:
        height, width = self.case.plane
        images, row, column = np.meshgrid(
            np.arange(self.layout.images), np.arange(height), np.arange(width), indexing="ij"
        )
        y, x, lane = self.layout.places(images, row, column)
        at = np.ascontiguousarray((y * self.y.buffer.row + x * self.layout.lanes + lane).ravel())
        channel = height * width
        size = (self.case.outputs * channel, channel, self.layout.images)
        self.plan.output(self.y.numbers(), 0, *size, at)

    def forward(self, arena: _native.Arena, threads: int = 1) -> Floats:
        y = np.full(self.case.dy.shape, np.nan, np.float32)
        weights = self.case.weight if self.dense else self.case.values
        self.plan.run_turns(arena, 0, 1 + 2 * self.kept, [self.case.x, None, weights], [y, None], threads, False)
        return y

    def backward(self, arena: _native.Arena, threads: int = 1) -> Floats:
        gradient = np.full(len(self.case.values), np.nan, np.float32)
        first, last = 1 + 2 * self.kept, 2 + 3 * self.kept
        self.plan.run_turns(arena, first, last, [None, self.case.dy, None], [None, gradient], threads, False)
        return gradient


CASES = (
    (1, 3, 5, (9, 11), 3, 0.4),
    (2, 8, 20, (28, 28), 1, 0.3),
    (3, 5, 9, (56, 56), 3, 0.2),
    (4, 6, 17, (14, 14), 3, 0.5),
    (16, 24, 33, (7, 7), 3, 0.1),
    (16, 40, 8, (7, 5), 1, 0.2),
    (2, 2, 3, (16, 23), 5, 1.0),
)


def close(got: Floats, wanted: NDArray[Any], terms: int) -> None:
    """Within what rounding may do to sums of so many numbers of about 1."""
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6 * terms**0.5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("numbers", CASES, ids=str)
def test_output_and_gradient(isa: str, numbers: Any) -> None:
    case = Case(isa, *numbers)
    made = HandMade(case)
    y, gradient = case.reference()
    arena = made.plan.take()
    close(made.forward(arena), y, case.channels * case.kernel**2)
    close(made.backward(arena), gradient, case.dy[:, 0].size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("budget", [40, 100, 100_000])
def test_blocks_do_not_matter(isa: str, budget: int) -> None:
    case = Case(isa, 4, 13, 19, (28, 20), 3, 0.3, budget)
    made, (y, gradient) = HandMade(case), case.reference()
    arena = made.plan.take()
    close(made.forward(arena), y, 117)
    close(made.backward(arena), gradient, case.dy[:, 0].size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("outputs", [1, 3, 25])
def test_dense_weights(isa: str, outputs: int) -> None:
    case = Case(isa, 2, 4, outputs, (14, 14), 3, 0.7)
    made = HandMade(case, dense=True)
    close(made.forward(made.plan.take()), case.reference()[0], 36)


@pytest.mark.parametrize("isa", ISAS)
def test_error_is_within_twice_that_of_pytorch(isa: str) -> None:
    """On gradients with a mean, where long sums lose the most."""
    case = Case(isa, 16, 8, 8, (56, 56), 3, 0.5)
    case.x, case.dy = np.abs(case.x), np.abs(case.dy)
    made = HandMade(case)
    arena = made.plan.take()
    made.forward(arena)
    exact = case.reference()[1]
    weight = torch.tensor(case.weight, requires_grad=True)
    conv2d(torch.tensor(case.x), weight, padding=1).backward(torch.tensor(case.dy))
    assert weight.grad is not None

    def error(got: Floats) -> float:
        return float(np.sqrt(np.mean(np.square(got / exact - 1))))

    assert error(made.backward(arena)) < 2 * error(weight.grad.numpy()[case.mask])


@pytest.mark.parametrize("isa", ISAS)
def test_threads_change_no_bit(isa: str) -> None:
    case = Case(isa, 16, 40, 30, (14, 14), 3, 0.3)
    made = HandMade(case)
    arena = made.plan.take()
    y, gradient = made.forward(arena), made.backward(arena)
    for threads in (2, 3, 5):
        assert made.forward(arena, threads).tobytes() == y.tobytes()
        assert made.backward(arena, threads).tobytes() == gradient.tobytes()


def test_arenas_are_apart() -> None:
    """Two forwards before their backwards: each finds its own activations; weights are those of its own forward."""
    case = Case(ISAS[0], 2, 6, 10, (14, 14), 3, 0.4)
    made = HandMade(case)
    first, second = made.plan.take(), made.plan.take()
    made.forward(first)
    x, wanted = case.x, case.reference()[1]
    case.x = np.ascontiguousarray(x[:, ::-1])
    made.forward(second)
    close(made.backward(second), case.reference()[1], case.dy[:, 0].size)
    close(made.backward(first), wanted, case.dy[:, 0].size)


def test_an_arena_outlives_its_plan_in_python() -> None:
    case = Case(ISAS[0], 1, 3, 4, (7, 7), 1, 1.0)
    made = HandMade(case)
    arena = made.plan.take()
    del made
    gc.collect()
    del arena
    gc.collect()


def test_run_does_all_turns() -> None:
    case = Case(ISAS[0], 2, 6, 10, (14, 14), 3, 0.4)
    made = HandMade(case)
    y, gradient = np.empty_like(case.dy), np.empty(len(case.values), np.float32)
    seconds = made.plan.run([case.x, case.dy, case.values], [y, gradient], 1, True)
    arena = made.plan.take()
    assert made.forward(arena).tobytes() == y.tobytes() and made.backward(arena).tobytes() == gradient.tobytes()
    assert all(s > 0 for s in seconds)


def test_run_turns_refuses() -> None:
    case = Case(ISAS[0], 1, 3, 4, (7, 7), 1, 1.0)
    made, other = HandMade(case), HandMade(case)
    arena = made.plan.take()
    x, dy, w = case.x, case.dy, case.values
    y, gradient = np.empty_like(dy), np.empty(len(w), np.float32)

    def turns(first: int, last: int, inputs: Any, outputs: Any, arena: Any = arena) -> None:
        made.plan.run_turns(arena, first, last, inputs, outputs, 1, False)

    for first, last in ((-1, 1), (0, 99), (2, 1)):
        with pytest.raises(ValueError, match="no such turns"):
            turns(first, last, [x, dy, w], [y, gradient])
    with pytest.raises(ValueError, match="another plan"):
        turns(0, 1, [x, dy, w], [y, gradient], other.plan.take())
    with pytest.raises(ValueError, match="input 2 is used"):
        turns(0, 1, [x, dy, None], [y, gradient])
    with pytest.raises(ValueError, match="output 0 is used"):
        turns(0, 3, [x, None, w], [None, gradient])
    with pytest.raises(ValueError, match="output 1 is used"):
        turns(4, 5, [None, None, None], [None, None])
    with pytest.raises(ValueError, match="wrong number"):
        turns(0, 1, [x, dy], [y, gradient])
    with pytest.raises(ValueError, match="input 0 must be"):
        turns(0, 2, [x.astype(np.float64), None, w], [y, None])
    turns(0, 0, [None] * 3, [None] * 2)


def test_pack() -> None:
    """Every number once, twice or not at all, at any place of the arena; many, so that threads share them."""
    isa, count = ISAS[0], 50_000
    index = np.random.default_rng(0).integers(-1, 100, count)
    values = np.arange(1, 101, dtype=np.float32)
    plan = _native.Plan(isa, count + 7, [100], [count + 7])
    plan.segment(1)
    plan.pack(0, 5, index)
    vector = (0, count + 7, 0, 1, 1, 1, count + 7, 1, 1, 0, 0)
    plan.output(vector, 0, count + 7, 1, 1, np.zeros(1, np.int64))
    plan.order([(0, 0)])
    for threads in (1, 2):
        out = np.empty(count + 7, np.float32)
        plan.run([values], [out], threads, False)
        assert not out[:5].any() and not out[-2:].any()
        np.testing.assert_array_equal(out[5:-2], np.where(index < 0, 0, values[index]))


LANES = _native.lanes(ISAS[0])


def gradient_step(groups: int = 1, **changed: Any) -> None:
    """Two output channels of one vector each, two operands, in an arena of just that; three weights."""
    plan = _native.Plan(ISAS[0], 4 * LANES, [5], [3])
    plan.segment(groups)
    sizes = (1, 1, 2, 1, LANES, 0, 0)
    arguments: dict[str, Any] = {
        "operand": (0, 0, 0, LANES, *sizes),
        "gradient": (2 * LANES, 0, 0, LANES, *sizes),
        "offsets": np.array([0, LANES]),
        "widest": 1,
        "blocks": np.array([0, 2]),
        "columns": np.array([0, 1, 1], np.int32),
        "start": np.array([0, 2, 3]),
        "number": 0,
    }
    plan.conv_gradient(**(arguments | changed))


def pack_step(**changed: Any) -> None:
    plan = _native.Plan(ISAS[0], 20, [5], [3])
    plan.segment(1)
    arguments: dict[str, Any] = {"number": 0, "at": 0, "index": np.zeros(0, np.int64)}
    plan.pack(**(arguments | changed))


def test_steps_at_the_edge_are_possible() -> None:
    gradient_step()
    pack_step()
    pack_step(at=20)
    pack_step(at=19, index=np.array([4]))


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("segment of one group", {"groups": 2}),
        ("no such output", {"number": 1}),
        ("no such output", {"number": -1}),
        ("number for each weight", {"columns": np.array([0, 1], np.int32), "start": np.array([0, 1, 2])}),
        ("fewer groups", {"gradient": (2 * LANES, 0, 0, LANES, 2, 1, 2, 1, LANES, 0, 0)}),
        ("outside the arena", {"gradient": (3 * LANES, 0, 0, LANES, 1, 1, 2, 1, LANES, 0, 0)}),
        ("outside the arena", {"offsets": np.array([-1, LANES])}),
        ("outside the arena", {"offsets": np.array([0, 2 * LANES * 2])}),
        ("lanes", {"operand": (0, 0, 0, LANES, 1, 1, 2, 1, 1, 0, 0)}),
        ("no operand", {"columns": np.array([0, 2, 1], np.int32)}),
        ("no operand", {"columns": np.array([0, -1, 1], np.int32)}),
        ("too far apart", {"columns": np.array([1, 0, 1], np.int32), "blocks": np.array([0, 1, 2])}),
        ("CSR", {"start": np.array([0, 3])}),
        ("CSR", {"start": np.array([0, 4, 3])}),
        ("blocks", {"blocks": np.array([0, 1])}),
        ("vector", {"widest": 0}),
    ],
)
def test_gradient_steps_that_cannot_be(message: str, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_step(**changed)


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("no such input", {"number": 1}),
        ("outside the arena", {"at": -1}),
        ("outside the arena", {"at": 20, "index": np.array([0])}),
        ("outside the input", {"index": np.array([5])}),
    ],
)
def test_pack_steps_that_cannot_be(message: str, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        pack_step(**changed)
