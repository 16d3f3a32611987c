"""A native plan of both passes for images of one size, and its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import _native
from ..graph import AdaptivePool, Graph, Shape
from ..lower import Context, Step, StepInfo, deliver, in_segments
from ..storage import Buffer, Storage, arrange, is_vector
from .backward import Backward, made_again
from .context import GRADIENT, Training, sizes
from .forward import forward
from .nodes import Norm
from .region import INPUT, Region

Segments = list[tuple[int, list[int]]]


class TrainingPlan:
    """For exactly `images` images of `shape` (C, H, W). `modes`: whether each norm takes the batch's statistics.

    Without `gradients` there is no backward pass, and what it would read need not be kept; `to_image`: it has the
    gradient to the images, too.
    Raises ValueError where a feature map has a single pixel, which no plan is made for.
    """

    def __init__(
        self,
        region: Region,
        images: int,
        shape: Shape,
        modes: Mapping[str, bool],
        gradients: bool,
        isa: str,
        to_image: bool = False,
    ) -> None:
        t = _lowered(region, images, shape, modes, gradients, isa, to_image)
        steps = t.context.steps
        parts = [in_segments(steps[: t.forward], images), in_segments(steps[t.forward :], images)]
        later = [(group, [s + t.forward for s in members]) for group, members in parts[1]]
        segments = parts[0] + later
        _lives(t, steps, segments)
        floats = arrange(t.context.storage.buffers)
        self.inputs, self.outputs = t.inputs, t.outputs
        self.input_of = {key[:2]: n for n, key in enumerate(t.inputs)}
        self.output_of = {key[:2]: n for n, key in enumerate(t.outputs)}
        self.arena_bytes = floats * 4
        shapes = t.context.graph.shapes
        self.features: Shape = shapes[region.output]
        norms = {n.name: shapes[n.name] for n in region.norms}
        self.frozen = [name for name in norms if not modes[name]]
        self.measured = {name: made[0] for name, made in norms.items() if modes[name]}  # channels
        self.counts = {name: images * made[1] * made[2] for name, made in norms.items()}  # values of a channel
        self.images, self.gradients, self.to_image = images, gradients, to_image
        # Of depthwise convolutions with zeros: which of all weights there are.
        self.kept = {
            c.name: torch.from_numpy(c.pattern.index).long()
            for c in region.convolutions
            if c.pattern.is_depthwise and c.pattern.index is not None
        }
        self.steps: list[StepInfo] = []
        self._plan = _native.Plan(isa, floats, [f for *_, f in t.inputs], [f for *_, f in t.outputs])
        self._emit(t, segments)
        packs = len(segments), len(segments) + 1
        turns = [[(packs[0], 0)], [(packs[1], 0)]]
        for number, (group, _) in enumerate(segments):
            turns[number >= len(parts[0])] += [(number, g) for g in range(images // group)]
        self._plan.order(turns[0] + turns[1])
        self._cut, self._end = len(turns[0]), len(turns[0]) + len(turns[1])

    def _emit(self, t: Training, segments: Segments) -> None:
        """Packs come last, as only the steps that read them know their order, but have their turns first."""
        for group, members in segments:
            self._plan.segment(t.images // group)
            for s in members:
                step = t.context.steps[s]
                step.emit(self._plan)
                natively = 2 if step.info.kernel == "statistics" else 1
                self.steps += [step.info] * natively
        for backward in (False, True):
            self._plan.segment(1)
            for pack in t.packs:
                if pack.backward == backward:
                    self._plan.pack(pack.number, pack.view.buffer.offset, np.ascontiguousarray(pack.index))
                    self.steps.append(StepInfo(t.inputs[pack.number][0], "pack", "pack", "", ()))

    def take(self) -> Any:
        """Memory for one forward pass and the backward pass that follows it."""
        return self._plan.take()

    def free(self) -> None:
        """Gives back the memory of passes that are done; the next one takes it anew."""
        self._plan.free_arenas()

    def kernels(self) -> dict[str, str]:
        """What makes each convolution's output, and its input's gradient; measured ones with how they compared."""
        found: dict[str, dict[str, None]] = {}
        for step in self.steps:
            if step.kernel in ("sparse", "dense", "depthwise"):
                why = f" ({step.reason})" if step.reason else ""
                found.setdefault(step.node, {})[f"{step.op} {step.kernel}{why}"] = None
        return {name: ", ".join(texts) for name, texts in found.items()}

    def forward(
        self, arena: Any, inputs: Sequence[Any], outputs: Sequence[Any], threads: int, timed: bool = False
    ) -> list[float]:
        return self._plan.run_turns(arena, 0, self._cut, list(inputs), list(outputs), threads, timed)

    def backward(
        self, arena: Any, inputs: Sequence[Any], outputs: Sequence[Any], threads: int, timed: bool = False
    ) -> list[float]:
        return self._plan.run_turns(arena, self._cut, self._end, list(inputs), list(outputs), threads, timed)


def _lowered(
    region: Region,
    images: int,
    shape: Shape,
    modes: Mapping[str, bool],
    gradients: bool,
    isa: str,
    to_image: bool,
) -> Training:
    graph = region.graph(shape)
    single = [n.name for n in graph if is_vector(graph.shapes[n.name]) and not isinstance(n, AdaptivePool)]
    if single:
        raise ValueError(f"the feature map of {single[0]} has a single pixel")
    out = graph.shapes[region.output]
    both = Graph({INPUT: shape, GRADIENT: out}, region.nodes, (region.output,))
    lanes = _native.lanes(isa)
    storage = Storage(both, images, lanes)
    t = Training(Context(both, images, lanes, storage), dict(modes), *sizes(graph, images), isa)
    t.context.users = both.users()
    overwritten = _in_place(both, storage)
    for node in both:
        forward(t, node)
    deliver(t.context, region.output, 0)
    t.forward = len(t.context.steps)
    if gradients:
        Backward(t, made_again(region.nodes, overwritten), to_image).run(region.nodes)
    return t


def _in_place(graph: Graph, storage: Storage) -> set[str]:
    """A norm writes over its residual where that is a norm's that nobody else needs, not even its gradient.

    Returns what is so overwritten.
    """
    found = set()
    users = graph.users()
    made = {node.name: node for node in graph}
    for node in graph:
        if isinstance(node, Norm) and len(node.inputs) > 1:
            residual = made.get(node.inputs[1])
            if isinstance(residual, Norm) and not residual.clamps and users[residual.name] == [node]:
                storage.views[node.name] = storage.views[residual.name]
                found.add(residual.name)
    return found


def _lives(t: Training, steps: list[Step], segments: Segments) -> None:
    """Every buffer holds all images, and lives from the first segment that touches it to the last."""
    for buffer in t.context.storage.buffers:
        if buffer.layout is not None:
            buffer.kept = t.images // buffer.layout.images
    for _, members in segments:
        for s in members:
            for buffer in (*steps[s].reads, *steps[s].writes):
                _live(buffer, members[0], members[-1])
    for pack in t.packs:
        if pack.view.buffer.last >= 0:
            pack.view.buffer.born = t.forward if pack.backward else 0


def _live(buffer: Buffer, first: int, last: int) -> None:
    buffer.born = first if buffer.born < 0 else min(buffer.born, first)
    buffer.last = max(buffer.last, last)
