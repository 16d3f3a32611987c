"""From an optimized graph to a native plan for a fixed number of images.

Every node becomes one or a few steps. A step is first written down with the buffers it reads and writes; when all are
known the buffers get their places in the arena, and the steps are handed to the native plan in their order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .graph import ACTIVATIONS, Activation, Graph, Node, Shape
from .layout import Layout
from .moves import Window, table, together
from .storage import Buffer, Storage, View, arrange, is_vector

Emit = Callable[["_native.Plan"], None]


@dataclass(frozen=True)
class StepInfo:
    """What one step does: `flops` are those of non-zero weights, for one image; `sparsity` is the weight's."""

    node: str
    op: str
    kernel: str
    reason: str
    shape: Shape
    sparsity: float = 0.0
    flops: float = 0.0


@dataclass
class Step:
    info: StepInfo
    group: int  # images that it works on at a time
    reads: list[Buffer]
    writes: list[Buffer]
    emit: Emit


@dataclass
class Context:
    """The plan in the making."""

    graph: Graph
    images: int
    lanes: int
    storage: Storage
    steps: list[Step] = field(default_factory=list)
    filled: list[View] = field(default_factory=list)  # whose halo holds their border
    arrived: set[str] = field(default_factory=set)  # inputs of the graph that stand in the arena
    phased: dict[str, Any] = field(default_factory=dict)  # convolutions made in the phases that a pooling wants
    users: dict[str, list[Node]] = field(default_factory=dict)
    together: dict[str, int] = field(default_factory=dict)  # images that vectors are made for at a time
    maps: dict[str, str] = field(default_factory=dict)  # vectors that were laid out as a map of one pixel, too

    def shape(self, name: str) -> Shape:
        return self.graph.shapes[name]

    def view(self, name: str) -> View:
        """The value's place; an input of the graph is brought into the arena at its first use."""
        if name in self.graph.inputs and name not in self.arrived:
            self.arrived.add(name)
            bring(self, name)
        return self.storage.view(name)

    def further(self, name: str, shape: Shape, view: View) -> str:
        """A value that the graph does not have, under a name like this one that it does not have either."""
        while name in self.graph.shapes:
            name += "'"
        self.graph.shapes[name] = shape
        self.storage.views[name] = view
        return name

    def add(self, info: StepInfo, out: View, reads: Sequence[View], emit: Emit, *, group: int | None = None) -> None:
        if group is None:
            group = self.group_of(info.node, out)
        if info.op != "halo":  # what is written anew has an old border
            self.filled = [view for view in self.filled if view.buffer is not out.buffer]
        self.steps.append(Step(info, group, [v.buffer for v in reads], [out.buffer], emit))

    def group_of(self, name: str, view: View) -> int:
        """Images that a step making this value works on at a time: those that share a vector, or all."""
        layout = view.buffer.layout
        return layout.images if layout else self.together.get(name, self.images)


def activation_arguments(f: Activation) -> tuple[int, tuple[float, float, float]]:
    return ACTIVATIONS.index(f.kind), (f.slope, f.low, f.high)


def _to_place(view: View, layout: Layout) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
    """Offset of vector (y, x) of a channel; the row's stride is known once the buffer is."""
    return lambda y, x: y * view.buffer.row + x * layout.lanes


def from_map(
    view: View, layout: Layout, phased: Any = None
) -> Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The place of pixels of a feature map; `phased`: the phase of a stride that they were made in."""

    def place(
        image: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = 0
        if phased is not None:
            first = phased.number * view.buffer.channel
            row = np.maximum(row - phased.phase[0], 0) // phased.stride[0]
            column = np.maximum(column - phased.phase[1], 0) // phased.stride[1]
        # A group of the destination may take its images from several groups of the source.
        y, x, lane = layout.places(image % layout.images, row, column)
        group = image // layout.images * view.buffer.group
        return first + group + y * view.buffer.row + x * layout.lanes, lane

    return place


def _from_array(image_floats: int, width: int) -> Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]]:
    def place(
        image: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return image * image_floats + row * width + column, np.full(1, -1)

    return place


def repack(
    context: Context,
    name: str,
    to: View,
    windows: Sequence[Window],
    fill: float,
    info: StepInfo,
    *,
    outside: bool = False,
) -> None:
    """A step that lays a value out anew in `to`: pixel (Y, X) of it is the value's pixel that a window names.

    With several windows channel c of the value becomes channels c * windows ... of `to`, one for each. `outside`
    takes the pixels of an input of the graph from the caller's array.
    """
    layout = to.buffer.layout
    assert layout is not None
    channels, height, width = context.shape(name)
    view = None if outside else context.view(name)

    def emit(plan: _native.Plan) -> None:
        buffer = to.buffer
        if view is None:
            place = _from_array(channels * height * width, width)
        else:
            assert view.buffer.layout is not None
            place = from_map(view, view.buffer.layout)
        tables = [table(layout, buffer.halo, _to_place(to, layout), (height, width), place, w) for w in windows]
        m = together(tables, [number * buffer.channel for number in range(len(windows))])
        n = to.numbers()
        target = (*n[:3], n[3] * len(windows), *n[4:6], channels, *n[7:])
        if view is None:
            number = list(context.graph.inputs).index(name)
            size = (channels * height * width, height * width)
            plan.input(number, *size, layout.images, target, m.moves, m.row, m.index, fill)
        else:
            groups = layout.images // view.buffer.layout.images if view.buffer.layout else 1
            plan.repack(view.numbers(), target, m.moves, m.row, m.index, fill, groups)

    context.add(info, to, [] if view is None else [view], emit)


def bring(context: Context, name: str) -> None:
    """The step that brings an input of the graph into the arena."""
    shape = context.shape(name)
    to = context.storage.view(name)
    info = StepInfo(name, "Input", "repack", "", shape)
    if not is_vector(shape):
        return repack(context, name, to, [Window()], 0.0, info, outside=True)
    number = list(context.graph.inputs).index(name)

    def emit(plan: _native.Plan) -> None:
        plan.input_vector(number, to.numbers(), context.group_of(name, to))

    context.add(info, to, [], emit)
    return None


def fill_halo(context: Context, name: str) -> None:
    """The step that fills a value's halo with its neighbours' pixels, and with zeros beyond the image."""
    view = context.view(name)
    layout = view.buffer.layout
    assert layout is not None
    for done in context.filled:
        same = done.buffer is view.buffer and done.first <= view.first
        if same and view.first + view.channels <= done.first + done.channels:
            return
    context.filled.append(view)
    height, width = layout.plane

    def emit(plan: _native.Plan) -> None:
        m = table(
            layout,
            view.buffer.halo,
            _to_place(view, layout),
            (height, width),
            from_map(view, layout),
            Window(),
            only_changed=True,
        )
        plan.repack(view.numbers(), view.numbers(), m.moves, m.row, m.index, 0.0, 1)

    context.add(StepInfo(name, "halo", "repack", "", context.shape(name)), view, [view], emit)


def _group_vectors(context: Context) -> None:
    """Vectors that a feature map waits for (squeeze-excite) are made for the images of its groups, others for all."""
    graph, together = context.graph, context.together
    for node in reversed(graph.nodes):
        images = context.storage.images_of(node.name) or together.get(node.name, 0)
        for name in node.inputs:
            if images and is_vector(context.shape(name)):
                together[name] = min(together.get(name, images), images)


def in_segments(steps: list[Step], images: int) -> list[tuple[int, list[int]]]:
    """(images at a time, numbers of the steps): maximal runs of steps that work on as many images at a time."""
    found: list[tuple[int, list[int]]] = []
    for number, step in enumerate(steps):
        if not found or found[-1][0] != step.group:
            found.append((step.group, []))
        found[-1][1].append(number)
    return found


def _lives(steps: list[Step], segments: list[tuple[int, list[int]]]) -> None:
    """Sets when each buffer is born and dies, and how many groups of images it keeps.

    What is handed from a segment to another is kept for as many images as the greediest segment on the way wants at
    a time; and as earlier segments have their turns again before it is read, it is alive from the beginning on.
    """
    touched: dict[Buffer, set[int]] = {}
    for number, (_, members) in enumerate(segments):
        for s in members:
            for buffer in (*steps[s].reads, *steps[s].writes):
                touched.setdefault(buffer, set()).add(number)
                buffer.born = s if buffer.born < 0 else min(buffer.born, s)
                buffer.last = max(buffer.last, s)
    for buffer, where in touched.items():
        if len(where) == 1 and buffer.layout is not None:
            continue
        first, last = min(where), max(where)
        if buffer.layout is not None:
            most = max(segments[n][0] for n in range(first, last + 1))
            buffer.kept = max(most // buffer.layout.images, 1)
        buffer.born, buffer.last = 0, segments[last][1][-1]


def _turns(segments: list[tuple[int, list[int]]], images: int) -> list[tuple[int, int]]:
    """(segment, group) in the order in which they run: each as soon as the images it wants are ready."""
    done = [0] * len(segments)
    turns: list[tuple[int, int]] = []
    wanted = [(len(segments) - 1, images)]  # a segment, and up to which image; each waits for the one above it
    while wanted:
        number, upto = wanted[-1]
        size = segments[number][0]
        if done[number] >= upto:
            wanted.pop()
        elif number > 0 and done[number - 1] < done[number] + size:
            wanted.append((number - 1, done[number] + size))
        else:
            turns.append((number, done[number] // size))
            done[number] += size
    return turns


class Lowered:
    """A native plan for exactly `images` images. Thread-safe."""

    def __init__(self, context: Context, isa: str) -> None:
        graph, images = context.graph, context.images
        segments = in_segments(context.steps, images)
        _lives(context.steps, segments)
        floats = arrange(context.storage.buffers)
        sizes = [images * int(np.prod(shape)) for shape in graph.inputs.values()]
        out = [images * int(np.prod(graph.shapes[name])) for name in graph.outputs]
        self.plan = _native.Plan(isa, floats, sizes, out)
        self.steps = [step.info for step in context.steps]
        self.arena_bytes = floats * 4
        for group, members in segments:
            self.plan.segment(images // group)
            for number in members:
                context.steps[number].emit(self.plan)
        self.plan.order(_turns(segments, images))

    def run(
        self,
        inputs: Sequence[NDArray[np.float32]],
        outputs: Sequence[NDArray[np.float32]],
        threads: int,
        timed: bool = False,
    ) -> list[float]:
        """Fills the outputs, [images, ...] each; with `timed` the seconds of every step."""
        return self.plan.run(list(inputs), list(outputs), threads, timed)

    def run_each(
        self, inputs: Sequence[NDArray[np.float32]], outputs: Sequence[NDArray[np.float32]], pieces: int, threads: int
    ) -> None:
        """The same for arrays [pieces * images, ...]: a thread takes whole pieces while there is one for each."""
        self.plan.run_each(list(inputs), list(outputs), pieces, threads)


def _ordered(graph: Graph, images: int, lanes: int) -> Graph:
    """The nodes in an order that changes as rarely as it can between steps for few images and for many.

    Nodes on vectors of the latter's end count as such for all images; those of squeeze-excite follow their inputs.
    """
    storage, users = Storage(graph, images, lanes), graph.users()
    number = {node.name: n for n, node in enumerate(graph.nodes)}
    missing = {node.name: len(set(node.inputs)) for node in graph}
    ready: dict[int, list[int]] = {}  # nodes whose inputs are there, by the images of their steps: heaps of numbers

    def arrived(name: str) -> None:
        for user in users[name]:
            missing[user.name] -= 1
            if missing[user.name] == 0:
                heapq.heappush(ready.setdefault(storage.images_of(user.name), []), number[user.name])

    for name in graph.inputs:
        arrived(name)
    order: list[Node] = []
    current = -1
    while heaps := {size: heap for size, heap in ready.items() if heap}:
        fitting = [heap for size, heap in heaps.items() if size in (0, current)]
        node = graph.nodes[heapq.heappop(min(fitting or heaps.values()))]
        current = storage.images_of(node.name) or current
        order.append(node)
        arrived(node.name)
    return graph.with_nodes(order)


def lower(graph: Graph, images: int, isa: str) -> Lowered:
    """The plan of an optimized graph for `images` images at a time, on an instruction set of this machine."""
    from .lowering import LOWER, halos, phased_convolutions

    lanes = _native.lanes(isa)
    graph = _ordered(graph, images, lanes)
    context = Context(graph, images, lanes, Storage(graph, images, lanes))
    context.users = graph.users()
    context.phased = phased_convolutions(context)
    halos(context)
    _group_vectors(context)
    for node in graph:
        LOWER[type(node)](context, node)
    for number, name in enumerate(graph.outputs):
        deliver(context, name, number)
    return Lowered(context, isa)


def deliver(context: Context, name: str, number: int) -> None:
    """The step that writes a value to the caller's array."""
    view, shape = context.view(name), context.shape(name)
    layout = view.buffer.layout
    pixels = int(np.prod(shape[1:]))
    image = shape[0] * pixels

    def emit(plan: _native.Plan) -> None:
        if layout is None:
            images = context.group_of(name, view)
            at = np.arange(images) * view.buffer.channels
            n = view.numbers()
            numbers = (n[0], images * n[1], 0, 1, context.images // images, 1, view.channels, 1, 1, 0, 0)
            return plan.output(numbers, number, image, pixels, images, at)
        rows, columns = np.divmod(np.arange(pixels), shape[2])
        image_of = np.arange(layout.images)[:, None]
        y, x, lane = layout.places(image_of, rows[None], columns[None])
        at = (y * view.buffer.row + x * layout.lanes + lane).ravel()
        return plan.output(view.numbers(), number, image, pixels, layout.images, at)

    info = StepInfo(name, "Output", "copy", "", shape)
    context.steps.append(Step(info, context.group_of(name, view), [view.buffer], [], emit))
