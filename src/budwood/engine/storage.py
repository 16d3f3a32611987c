"""Where the values of a plan lie: which share a buffer, and where each buffer stands in the arena."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..core.errors import UserError
from .graph import AdaptivePool, Concat, Conv, Flatten, Graph, Pad, Pool, Select, Shape
from .layout import Layout, choose, sharing

MapNumbers = tuple[int, int, int, int, int, int, int, int, int, int, int]
_ALIGN = 16  # floats: a cache line
_MOST = 1 << 36  # floats in an arena


@dataclass(eq=False)
class Buffer:
    """Memory of a feature map's groups of images at hand, or of vectors [images][channels] (layout None)."""

    layout: Layout | None
    channels: int
    images: int
    halo: tuple[int, int] = (0, 0)
    kept: int = 1  # groups in memory at a time
    born: int = -1  # first and last step that touch it
    last: int = -1
    offset: int = 0

    @property
    def channel(self) -> int:
        if self.layout is None:
            return 1
        vectors = self.layout.width + 2 * self.halo[1]
        # A tile is part of a row. Were rows 16 cache lines apart, all tiles would fall on few sets of the cache.
        if vectors > 8 and vectors % 8 == 0:
            vectors += 1
        return vectors * self.layout.lanes

    @property
    def row(self) -> int:
        return self.channels * self.channel if self.layout else 0

    @property
    def group(self) -> int:
        """Floats from one group to the next."""
        return (self.layout.height + 2 * self.halo[0]) * self.row if self.layout else self.channels

    @property
    def floats(self) -> int:
        return self.group * (self.kept if self.layout else self.images)


@dataclass(frozen=True)
class View:
    """Some channels of a buffer."""

    buffer: Buffer
    first: int
    channels: int

    def numbers(self) -> MapNumbers:
        """The fields of `Map` in csrc/runtime/plan.hpp."""
        b = self.buffer
        if b.layout is None:
            return (b.offset + self.first, b.channels, 0, 1, b.images, 1, self.channels, 1, 1, 0, 0)
        start = b.offset + b.halo[0] * b.row + b.halo[1] * b.layout.lanes + self.first * b.channel
        sizes = (b.kept, b.layout.height, self.channels, b.layout.width, b.layout.lanes)
        return (start, b.group, b.row, b.channel, *sizes, *b.halo)

    def part(self, first: int, channels: int) -> View:
        return View(self.buffer, self.first + first, channels)


def is_vector(shape: Shape) -> bool:
    return len(shape) == 1 or shape[1:] == (1, 1)


@dataclass
class Storage:
    """Views of all values of a graph: a concatenation's parts are written where it stands, a slice is a view."""

    graph: Graph
    images: int
    lanes: int
    views: dict[str, View] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._alone = self._grows()
        self._inside: dict[str, tuple[str, int]] = {}  # value -> the value it is a part of, first channel there
        self._parts_of_concats()
        self._slices()
        self._residuals()
        for name in self.graph.shapes:
            self.view(name)

    def _sharing(self, plane: tuple[int, int]) -> int:
        return sharing(plane, self.images, self.lanes)

    def _grows(self) -> bool:
        """Whether some operator would have to deal out images that share a vector to vectors shared by fewer."""
        shapes = self.graph.shapes
        windowed = (Conv, Pool, AdaptivePool, Pad)  # which see a vector as a plane of one pixel; others as a gate
        planes = [
            ((1, 1) if is_vector(shapes[name]) else shapes[name][1:], shapes[node.name][1:])
            for node in self.graph
            for name in node.inputs
            if not is_vector(shapes[node.name]) and (not is_vector(shapes[name]) or isinstance(node, windowed))
        ]
        return any(self._sharing((a[0], a[1])) > self._sharing((b[0], b[1])) for a, b in planes)

    def layout(self, plane: tuple[int, int]) -> Layout:
        return choose(plane, 1 if self._alone else self._sharing(plane), self.lanes)

    def images_of(self, name: str) -> int:
        """Images that share a vector of this value; 0 for a vector [images][channels]."""
        shape = self.graph.shapes[name]
        return 0 if is_vector(shape) else self.layout((shape[1], shape[2])).images

    def _parts_of_concats(self) -> None:
        shapes, made = self.graph.shapes, {n.name: n for n in self.graph}
        begin: dict[str, list[Concat]] = {}  # by the first input, the last ones at the end
        for node in self.graph:
            if isinstance(node, Concat):
                begin.setdefault(node.inputs[0], []).append(node)
        for node in reversed(self.graph.nodes):
            if not isinstance(node, Concat):
                continue
            first = 0
            for number, name in enumerate(node.inputs):
                free = name in made and name not in self._inside and not isinstance(made[name], Select)
                if free and not self._contains(name, node.name) and name not in node.inputs[:number]:
                    self._inside[name] = (node.name, first)
                first += shapes[name][0]
            earlier = begin[node.inputs[0]]
            earlier.pop()
            self._prefixes(node, earlier)

    def _prefixes(self, node: Concat, earlier: list[Concat]) -> None:
        """An earlier concatenation of this one's first inputs stands where this one begins (DenseNet)."""
        for other in earlier:
            short = len(other.inputs) < len(node.inputs) and other.name not in self._inside
            if short and other.inputs == node.inputs[: len(other.inputs)]:
                self._inside[other.name] = (node.name, 0)

    def _slices(self) -> None:
        for node in self.graph:
            if isinstance(node, Flatten) and is_vector(self.graph.shapes[node.inputs[0]]):
                self._inside.setdefault(node.name, (node.inputs[0], 0))
            if isinstance(node, Select) and node.name not in self._inside:
                first = node.channels[0]
                if node.channels == tuple(range(first, first + len(node.channels))):
                    self._inside[node.name] = (node.inputs[0], first)

    def _residuals(self) -> None:
        """A convolution writes over its residual where nobody reads that later: half the memory to touch."""
        last = {name: number for number, node in enumerate(self.graph) for name in node.inputs}
        last.update({name: len(self.graph.nodes) for name in self.graph.outputs})
        shared = {outer for outer, _ in self._inside.values()} | set(self._inside) | set(self.graph.inputs)
        for number, node in enumerate(self.graph):
            if not isinstance(node, Conv) or len(node.inputs) < 2 or node.name in shared:
                continue
            residual = node.inputs[1]
            if is_vector(self.graph.shapes[node.name]):
                continue
            if residual not in shared and last[residual] == number and residual != node.inputs[0]:
                self._inside[node.name] = (residual, 0)

    def _contains(self, outer: str, inner: str) -> bool:
        while inner in self._inside:
            inner = self._inside[inner][0]
            if inner == outer:
                return True
        return False

    def is_part(self, name: str, of: str, first: int) -> bool:
        """Whether the value lies at channel `first` of the other, so that no copy is owed."""
        a, b = self.view(name), self.view(of)
        return a.buffer is b.buffer and a.first == b.first + first

    def new(self, layout: Layout | None, channels: int) -> View:
        self.buffers.append(Buffer(layout, channels, self.images))
        return View(self.buffers[-1], 0, channels)

    def view(self, name: str) -> View:
        if name not in self.views:
            shape = self.graph.shapes[name]
            if name in self._inside:
                outer, first = self._inside[name]
                self.views[name] = self.view(outer).part(first, shape[0])
            else:
                layout = None if is_vector(shape) else self.layout((shape[1], shape[2]))
                self.views[name] = self.new(layout, shape[0])
        return self.views[name]


def arrange(buffers: list[Buffer]) -> int:
    """Gives every buffer its offset, so that no two which are alive together overlap; answers the arena's floats.

    Largest first, each at the lowest place that is free for its life. Raises UserError where they need more than the
    native plan counts.
    """
    placed = sorted((buffer for buffer in buffers if buffer.born >= 0), key=lambda b: -b.floats)
    # Of those that have their place: first and last step, first float and the first behind it. Plans may be long.
    born, last, start, end = np.zeros((4, len(placed)), np.int64)
    for n, buffer in enumerate(placed):
        alive = np.flatnonzero((born[:n] <= buffer.last) & (buffer.born <= last[:n]))
        alive = alive[np.argsort(start[alive], kind="stable")]
        free = np.maximum.accumulate(np.concatenate([[0], end[alive]]))  # from where on, before each and behind all
        fits = np.flatnonzero(free[:-1] + buffer.floats <= start[alive])
        buffer.offset = int(free[fits[0]] if len(fits) else free[-1])
        born[n], last[n], start[n] = buffer.born, buffer.last, buffer.offset
        end[n] = -(-(buffer.offset + buffer.floats) // _ALIGN) * _ALIGN
    floats = int(end.max(initial=0))
    if floats >= _MOST:
        raise UserError(f"the network's values would take {floats * 4 / 1e9:,.0f} GB; give smaller images")
    return floats
