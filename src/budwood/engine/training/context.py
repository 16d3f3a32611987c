"""The training plan in the making: what both passes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..graph import Graph
from ..layout import Layout
from ..lower import Context, Emit, Step, StepInfo
from ..lowering.conv import Kind, near, tiling
from ..lowering.operand import Operand, Taps
from ..storage import Buffer, View
from .choice import Choice, chosen
from .nodes import Convolve, Ints, Norm, Pattern

GRADIENT = "gradient"
IDENTITY = (0, (0.01, float("-inf"), float("inf")))


@dataclass
class Pack:
    """Numbers of an input that are brought to the arena, in the order that `index` has when all steps are added."""

    number: int
    view: View
    index: Ints
    backward: bool


@dataclass(frozen=True)
class Matrix:
    """A convolution's weights as a kernel sees them, in CSR: where a row starts, and for each weight of it its column
    and its number in the pattern."""

    start: Ints
    columns: NDArray[np.int32]
    entry: Ints
    width: int

    @staticmethod
    def of(rows: int, width: int, row: Ints, column: Ints, entry: Ints) -> Matrix:
        """The weights stand in the pattern's order, in which the columns of a row rise."""
        rising = np.argsort(row.astype(np.min_scalar_type(rows)), kind="stable")  # few bits are sorted fastest
        start = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=rows), out=start[1:])
        return Matrix(start, np.ascontiguousarray(column[rising], np.int32), entry[rising], width)

    @property
    def rows(self) -> int:
        return len(self.start) - 1

    @property
    def packed(self) -> int:
        """Weights of the dense kernel, which computes three rows at a time."""
        return -(-self.rows // 3) * 3 * self.width

    def density(self, groups: int) -> float:
        """Of a convolution of so many groups, whose channels see only those of their own."""
        return len(self.entry) * groups / (self.rows * self.width)


@dataclass
class Training:
    context: Context
    modes: dict[str, bool]  # whether each norm takes the batch's statistics
    inputs: list[tuple[str, str, int]]  # module, what of it, floats
    outputs: list[tuple[str, str, int]]
    isa: str
    packs: list[Pack] = field(default_factory=list)
    operands: dict[str, Operand] = field(default_factory=dict)  # of the convolutions
    matrices: dict[str, Matrix] = field(default_factory=dict)  # of the convolutions, as the forward pass wants them
    weights: dict[str, View] = field(default_factory=dict)  # of the depthwise ones, as they lie in the arena
    statistics: dict[str, tuple[View, View]] = field(default_factory=dict)  # mean and variance of the norms
    forward: int = -1  # steps of the forward pass, once it is whole

    @property
    def images(self) -> int:
        return self.context.images

    def input(self, module: str, what: str) -> int:
        return next(n for n, (m, w, _) in enumerate(self.inputs) if (m, w) == (module, what))

    def output(self, module: str, what: str) -> int:
        return next(n for n, (m, w, _) in enumerate(self.outputs) if (m, w) == (module, what))

    def vector(self, floats: int) -> View:
        buffer = Buffer(None, floats, 1)
        self.context.storage.buffers.append(buffer)
        return View(buffer, 0, floats)

    def like(self, view: View) -> View:
        """A map of the same layout and channels; its halo comes with who wants one."""
        return self.context.storage.new(view.buffer.layout, view.channels)

    def named(self, name: str, like: str, view: View) -> str:
        """Makes a view known to the lowering's helpers under a name."""
        self.context.graph.shapes[name] = self.context.shape(like)
        self.context.storage.views[name] = view
        return name

    def add(self, info: StepInfo, reads: Sequence[View], writes: Sequence[View], emit: Emit) -> None:
        """A whole step: it handles all images in one turn."""
        context = self.context
        context.filled = [v for v in context.filled if all(v.buffer is not w.buffer for w in writes)]
        context.steps.append(Step(info, self.images, [v.buffer for v in reads], [w.buffer for w in writes], emit))

    def pack(self, module: str, what: str, floats: int, index: Ints | None = None) -> Pack:
        at = np.arange(floats) if index is None else index
        self.packs.append(Pack(self.input(module, what), self.vector(floats), at, self.forward >= 0))
        return self.packs[-1]

    # -- convolutions -------------------------------------------------------------------------------------

    def multiply(self, node: Convolve, m: Matrix, source: Operand, out: View, residual: View | None, what: str) -> None:
        """The step that makes `out` of an operand and the node's weights, sparse or dense."""
        density, packed = m.density(node.pattern.groups), {"sparse": len(m.entry), "dense": m.packed}

        def add(plan: _native.Plan, kind: Kind, source: Operand, out: View, residual: View | None, at: int) -> Ints:
            common: dict[str, Any] = {
                "operand": source.view.numbers(),
                "out": out.numbers(),
                "residual": None if residual is None else residual.numbers(),
                **tiling(source, out, density, kind),
                "by_channels": False,
                "weights_at": at,
            }
            return _sparse(plan, m, common) if kind == "sparse" else _dense(plan, m, common)

        def alone(plan: _native.Plan, kind: Kind, source: Operand, out: View) -> None:
            add(plan, kind, source, out, None, 0)

        if node.pattern.groups > 1:
            # A block of the grouped dense kernel cannot hold channels of two groups.
            choice = Choice("sparse", f"{node.pattern.groups} groups")
        elif not near(source):
            choice = Choice("dense", "its operands lie far apart")
        else:
            choice = chosen(self.isa, density, max(packed.values()), source, out, alone)
        pack = self.pack(node.name, "weight", packed[choice.kind], np.zeros(0, np.int64))
        reads = [source.view, pack.view] + ([] if residual is None else [residual])
        shape = self.context.shape(node.name)
        flops = 2.0 * len(m.entry) * shape[1] * shape[2]
        info = StepInfo(node.name, what, choice.kind, choice.reason, shape, 1 - density, flops)

        def emit(plan: _native.Plan) -> None:
            pack.index = add(plan, choice.kind, source, out, residual, pack.view.buffer.offset)

        self.context.add(info, out, reads, emit)


def _sparse(plan: _native.Plan, m: Matrix, common: dict[str, Any]) -> Ints:
    return np.asarray(m.entry[plan.sparse_conv_packed(**common, columns=m.columns, start=m.start)])


def _dense(plan: _native.Plan, m: Matrix, common: dict[str, Any]) -> Ints:
    entry = np.full(m.rows * m.width + 1, -1)  # the last one for what only fills up
    entry[np.repeat(np.arange(m.rows), np.diff(m.start)) * m.width + m.columns] = m.entry
    return np.asarray(entry[plan.dense_conv_packed(**common, groups=1)])


def forward_matrix(pattern: Pattern, taps: int) -> Matrix:
    out, channel, tap = pattern.entries()
    return Matrix.of(pattern.shape[0], pattern.channels * taps, out, channel * taps + tap, np.arange(pattern.count))


def backward_matrix(pattern: Pattern, taps: Taps, phase: int) -> Matrix:
    """What the input's pixels of a phase get from the output's: rows are input channels, columns (output, tap)."""
    out, channel, tap = pattern.entries()
    of_phase = np.array([p == phase for p, _, _ in taps.taps])
    number, count = np.cumsum(of_phase) - 1, int(of_phase.sum())
    here = of_phase[tap]
    column = out[here] * count + number[tap[here]]
    return Matrix.of(pattern.channels, pattern.shape[0] * count, channel[here], column, np.flatnonzero(here))


def mask(layout: Layout) -> NDArray[np.float32]:
    """[height * width * lanes], 0 where a lane holds no pixel; empty where all do."""
    _, row, column = layout.pixels(np.arange(layout.height), np.arange(layout.width))
    inside = (row < layout.plane[0]) & (column < layout.plane[1])
    return np.zeros(0, np.float32) if inside.all() else np.ascontiguousarray(inside, np.float32).ravel()


def sizes(graph: Graph, images: int) -> tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]]:
    """Inputs and outputs of the plan: (module, what, floats)."""
    shapes = graph.shapes
    floats = images * int(np.prod(shapes[graph.outputs[0]]))
    inputs = [("", "image", images * int(np.prod(next(iter(graph.inputs.values()))))), ("", "gradient", floats)]
    outputs = [("", "features", floats), ("", "image", inputs[0][2])]
    for node in graph:
        if isinstance(node, Convolve):
            inputs.append((node.name, "weight", node.pattern.count))
            full = node.pattern.size if node.pattern.is_depthwise else node.pattern.count
            outputs.append((node.name, "weight", full))
        if isinstance(node, Norm):
            channels = shapes[node.name][0]
            inputs += [(node.name, what, channels) for what in ("weight", "bias", "running_mean", "running_var")]
            outputs += [(node.name, "weight", channels), (node.name, "bias", channels)]
            outputs.append((node.name, "statistics", 2 * channels))
    return inputs, outputs
