"""What a windowed operator (convolution, pooling) reads: where each tap lies, seen from an output pixel's place.

With stride 1 and the output as large as the input both are laid out alike, and a tap is the same pixel's place moved
by some vectors: the operator reads its input where it stands, halo filled. Otherwise the input is first dealt out in
the output's layout, a plane for each remainder of the stride (the phases), and a tap is a place in one of those.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..graph import Conv, Edges, Node, Pair, Pool
from ..lower import Context, StepInfo, fill_halo, repack
from ..moves import Window
from ..storage import MapNumbers, View, is_vector
from .channels import as_map

Tap = tuple[int, int, int]  # phase, rows, vectors


@dataclass(frozen=True)
class Taps:
    """The taps of a window, row by row, and the phases of the input that they lie in."""

    stride: Pair
    phases: tuple[Pair, ...]
    taps: tuple[Tap, ...]

    @cached_property
    def halo(self) -> Pair:
        return max(abs(t[1]) for t in self.taps), max(abs(t[2]) for t in self.taps)

    @cached_property
    def reach(self) -> dict[Pair, tuple[int, int, int, int]]:
        """Rows above and below, vectors left and right, that the taps in a phase go beyond an output pixel's place."""
        found = dict.fromkeys(self.phases, (0, 0, 0, 0))
        for p, y, x in self.taps:
            phase = self.phases[p]
            up, down, left, right = found[phase]
            found[phase] = max(up, -y), max(down, y), max(left, -x), max(right, x)
        return found

    def some(self, numbers: NDArray[np.int64]) -> Taps:
        """These of the taps alone, one at least."""
        taps = [self.taps[n] for n in numbers]
        phases = sorted({phase for phase, _, _ in taps})
        number = {phase: n for n, phase in enumerate(phases)}
        again = tuple((number[phase], y, x) for phase, y, x in taps)
        return Taps(self.stride, tuple(self.phases[phase] for phase in phases), again)


def taps(kernel: Pair, stride: Pair, padding: Edges, dilation: Pair) -> Taps:
    found: list[tuple[Pair, int, int]] = []
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            y, phase_y = divmod(ky * dilation[0] - padding[0], stride[0])
            x, phase_x = divmod(kx * dilation[1] - padding[2], stride[1])
            found.append(((phase_y, phase_x), y, x))
    phases = tuple(sorted({f[0] for f in found}))
    where = {phase: number for number, phase in enumerate(phases)}
    return Taps(stride, phases, tuple((where[p], y, x) for p, y, x in found))


def conv_taps(node: Conv) -> Taps:
    return taps((node.weight.shape[2], node.weight.shape[3]), node.stride, node.padding, node.dilation)


def pool_taps(node: Pool) -> Taps:
    return taps(node.kernel, node.stride, node.padding, node.dilation)


def reads_in_place(context: Context, name: str, out: str, t: Taps) -> bool:
    """Whether the operator can read the value where it stands; a halo there holds zeros beyond the image."""
    same = context.shape(name)[1:] == context.shape(out)[1:]
    return t.stride == (1, 1) and same and not is_vector(context.shape(name))


def window_of(context: Context, node: Node) -> Taps | None:
    """The taps of an operator that reads its first input in place and wants a halo there."""
    if not isinstance(node, Conv) or node.is_depthwise or is_vector(context.shape(node.name)):
        return None  # depthwise: see channelwise.py
    t = conv_taps(node)
    return t if reads_in_place(context, node.inputs[0], node.name, t) else None


def phased_convolutions(context: Context) -> dict[str, Taps]:
    """Convolutions of an input of the graph that nothing reads but one pooling with a stride, and its taps."""
    graph, users = context.graph, context.graph.users()
    found = {}
    for node in graph:
        if not isinstance(node, Conv) or node.inputs[0] not in graph.inputs or len(node.inputs) != 1:
            continue
        reads = users[node.name]
        if len(reads) != 1 or node.name in graph.outputs or not isinstance(reads[0], Pool):
            continue
        pool, shapes = reads[0], graph.shapes
        t = pool_taps(pool)
        # Every phase must fit the pooling's plane: what reaches beyond it is no place of a convolution's output.
        fits = all(
            -(-(shapes[node.name][1 + a] - phase[a]) // t.stride[a]) <= shapes[pool.name][1 + a]
            for phase in t.phases
            for a in (0, 1)
        )
        if fits and pool.stride != (1, 1) and not is_vector(shapes[pool.name]) and not is_vector(shapes[node.name]):
            found[node.name] = t
            layout = context.storage.view(pool.name).buffer.layout
            view = context.storage.new(layout, shapes[node.name][0] * len(t.phases))
            context.storage.views[node.name] = PhaseView(view.buffer, 0, shapes[node.name][0], len(t.phases))
    return found


def fill_of(node: Pool) -> float:
    """What a pooling window sees beyond the image."""
    return float("-inf") if node.kind == "max" else 0.0


@dataclass(frozen=True)
class Operand:
    """`view` holds the phases of channel c at channels c * phases ...; `offsets` gives [channels, taps] floats."""

    view: View
    phases: int
    taps: tuple[Tap, ...]

    def tap_offsets(self) -> NDArray[np.int64]:
        """Floats from an output pixel's place in the operand (channel 0) to each tap."""
        buffer = self.view.buffer
        assert buffer.layout is not None
        lanes = buffer.layout.lanes
        return np.array([p * buffer.channel + y * buffer.row + x * lanes for p, y, x in self.taps], np.int64)

    def offsets(self) -> NDArray[np.int64]:
        """Floats from an output pixel's place in the operand (channel 0) to each tap of each channel."""
        channels = np.arange(self.channels) * self.phases * self.view.buffer.channel
        return channels[:, None] + self.tap_offsets()[None]

    @property
    def channels(self) -> int:
        return self.view.channels // self.phases

    def lines(self, tile: int) -> int:
        """Vectors that one channel's taps touch for a tile of so many."""
        return len({(p, y, x + t) for p, y, x in self.taps for t in range(tile)})


@dataclass(frozen=True)
class PhaseView(View):
    """Every `phases`-th channel of a buffer, from channel `first` on."""

    phases: int

    def numbers(self) -> MapNumbers:
        n = super().numbers()
        return (*n[:3], n[3] * self.phases, *n[4:])


def operand(context: Context, node: str, name: str, out: View, t: Taps) -> Operand:
    """Adds the steps that make the operand ready; see the module's text."""
    if reads_in_place(context, name, node, t):
        view = context.view(name)
        if t.halo != (0, 0):
            fill_halo(context, name)
        return Operand(view, 1, t.taps)
    return dealt_out(context, node, as_map(context, name), out, [t])[0]


def dealt_out(context: Context, node: str, name: str, out: View, windows: list[Taps]) -> list[Operand]:
    """A value dealt out in the layout of `out` for several windows of one stride; an operand for each."""
    phases = sorted({phase for t in windows for phase in t.phases})
    view = context.storage.new(out.buffer.layout, context.shape(name)[0] * len(phases))
    view.buffer.halo = (max(t.halo[0] for t in windows), max(t.halo[1] for t in windows))
    note = f"{len(phases)} phases" if len(phases) > 1 else ""
    info = StepInfo(node, "operand", "repack", note, context.shape(name))
    moved = [Window(windows[0].stride, phase, _reach(windows, phase)) for phase in phases]
    repack(context, name, view, moved, 0.0, info, outside=name in context.graph.inputs)
    where = {phase: number for number, phase in enumerate(phases)}
    return [Operand(view, len(phases), tuple((where[t.phases[p]], y, x) for p, y, x in t.taps)) for t in windows]


def _reach(windows: list[Taps], phase: Pair) -> tuple[int, int, int, int]:
    found = [t.reach[phase] for t in windows if phase in t.reach]
    return max(f[0] for f in found), max(f[1] for f in found), max(f[2] for f in found), max(f[3] for f in found)
