"""The backward pass: from the gradient of a node's output to those of its inputs and of its numbers.

What a value's readers give it is added up where it stands: a convolution adds it in its own sums.

The outputs of most norms are not kept from the forward pass (`made_again`): the first step that reads one has it made
again, from the norm's input, which is kept in any case. So are convolutions' inputs dealt out for a stride.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import _native
from ..graph import AdaptivePool, Node, Pair, Pool
from ..lower import StepInfo, deliver, fill_halo
from ..lowering.channelwise import Scratch
from ..lowering.conv import tiling
from ..lowering.operand import Operand, PhaseView, Taps, fill_of, operand, pool_taps, reads_in_place
from ..storage import View
from .context import GRADIENT, IDENTITY, Training, backward_matrix, mask
from .forward import clean, count, normalisation, normalise, taps_of, widen, window_of
from .nodes import Convolve, Norm
from .region import INPUT
from .relay import relay


@dataclass
class Backward:
    t: Training
    again: dict[str, Norm]  # norms whose output is made again
    to_image: bool
    gradients: dict[str, View] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)  # what has been made again, under its new name

    def run(self, nodes: tuple[Node, ...]) -> None:
        self.gradients[nodes[-1].name] = self.t.context.view(GRADIENT)
        for node in reversed(nodes):
            gradient = self.gradients.pop(node.name)
            if isinstance(node, Norm):
                self._norm(node, gradient)
            elif isinstance(node, Convolve):
                if any(isinstance(user, Convolve) for user in self.t.context.users[node.name]):
                    # What a convolution gave, and no norm has passed on, holds sums where there are no pixels.
                    clean(self.t, self._named(node, gradient))
                self._depthwise(node, gradient) if node.pattern.is_depthwise else self._convolve(node, gradient)
            elif isinstance(node, Pool):
                self._pool(node, gradient)
            else:
                assert isinstance(node, AdaptivePool)
                self._average(node, gradient)
        if self.to_image:
            name = self.t.named("image (gradient)", INPUT, self.gradients[INPUT])
            deliver(self.t.context, name, self.t.output("", "image"))

    def _named(self, node: Node, gradient: View) -> str:
        return self.t.named(f"{node.name} (gradient)", node.name, gradient)

    def _wanted(self, name: str) -> bool:
        return name != INPUT or self.to_image

    def _value(self, name: str) -> str:
        """The name under which a value can be read now."""
        if name in self.again and name not in self.values:
            t, node = self.t, self.again[name]
            self.values[name] = t.named(f"{name} (again)", name, t.like(t.context.view(name)))
            normalise(t, node, self.values[name], "again")
        return self.values.get(name, name)

    def _info(self, node: Node, kernel: str, shape: tuple[int, ...]) -> StepInfo:
        return StepInfo(node.name, "backward", kernel, "", shape)

    def _give(self, name: str, view: View) -> None:
        """Adds what stands in a view to the value's gradient."""
        there = self.gradients.setdefault(name, view)
        if there is not view:
            info = StepInfo(name, "backward", "add", "", self.t.context.shape(name))

            def emit(plan: _native.Plan) -> None:
                plan.add(there.numbers(), view.numbers(), there.numbers(), 1, 0, *IDENTITY)

            self.t.context.add(info, there, [there, view], emit)

    def _average(self, node: AdaptivePool, gradient: View) -> None:
        t, name = self.t, node.inputs[0]
        to = t.like(t.context.view(name))
        layout = to.buffer.layout
        assert layout is not None

        def emit(plan: _native.Plan) -> None:
            factor = 1 / (layout.plane[0] * layout.plane[1])
            plan.spread(gradient.numbers(), to.numbers(), layout.images, mask(layout), factor)

        t.add(self._info(node, "spread", t.context.shape(name)), [gradient], [to], emit)
        self._give(name, to)

    def _norm(self, node: Norm, gradient: View) -> None:
        """The gradient to the residual takes the place of the one that came, or without any that to the source."""
        t, context = self.t, self.t.context
        name = self._value(node.name) if node.clamps else node.name
        source, out = context.view(node.inputs[0]), context.view(name)
        residual = len(node.inputs) > 1
        to = t.like(gradient) if residual else gradient
        mean, var = t.statistics[node.name]

        def emit(plan: _native.Plan) -> None:
            plan.batch_norm_gradient(
                **normalisation(t, node, name),
                gradient=gradient.numbers(),
                to=to.numbers(),
                residual_to=gradient.numbers() if residual else None,
                count=count(t, node),
                weight_out=t.output(node.name, "weight"),
                bias_out=t.output(node.name, "bias"),
                frozen=not t.modes[node.name],
            )

        read = [source, gradient, mean, var] + ([out] if node.clamps else [])
        t.add(self._info(node, "norm", context.shape(node.name)), read, [to, gradient], emit)
        self._give(node.inputs[0], to)
        if residual:
            self._give(node.inputs[1], gradient)

    def _pool(self, node: Pool, gradient: View) -> None:
        t, context, name = self.t, self.t.context, self._value(node.inputs[0])
        clean(t, self._named(node, gradient))
        source, out = context.view(name), context.view(node.name)
        to = t.like(source)
        assert out.buffer.layout is not None
        scratch = Scratch(out.buffer.layout, pool_taps(node))

        def emit(plan: _native.Plan) -> None:
            where = scratch.arguments(context, name, source, fill_of(node))
            taps = scratch.offsets()
            plan.max_pool_gradient(**where, out=out.numbers(), taps=taps, gradient=gradient.numbers(), to=to.numbers())

        t.add(self._info(node, "pool", context.shape(name)), [source, out, gradient], [to], emit)
        self._give(node.inputs[0], to)

    def _depthwise(self, node: Convolve, gradient: View) -> None:
        t, name = self.t, self._value(node.inputs[0])
        source, scratch = window_of(t, node, name)
        to = t.like(source) if self._wanted(name) else None
        weights = t.weights[node.name]

        def emit(plan: _native.Plan) -> None:
            plan.depthwise_gradient(
                **scratch.arguments(t.context, name, source, 0.0),
                taps=scratch.offsets(),
                gradient=gradient.numbers(),
                to=None if to is None else to.numbers(),
                weights_at=weights.buffer.offset,
                number=t.output(node.name, "weight"),
            )

        read = [source, gradient, weights]
        t.add(self._info(node, "depthwise", t.context.shape(name)), read, [] if to is None else [to], emit)
        if to is not None:
            self._give(node.inputs[0], to)

    def _operand(self, node: Convolve, gradient: View) -> Operand:
        """What the convolution read in the forward pass."""
        t, name, window = self.t, self._value(node.inputs[0]), taps_of(self.t, node)
        if name == INPUT:
            return t.operands[node.name]
        if reads_in_place(t.context, name, node.name, window):
            widen(t.context.view(name), window.halo)
        return operand(t.context, node.name, name, gradient, window)

    def _convolve(self, node: Convolve, gradient: View) -> None:
        t, source = self.t, self._operand(node, gradient)
        m = t.matrices[node.name]

        def emit(plan: _native.Plan) -> None:
            plan.conv_gradient(
                operand=source.view.numbers(),
                gradient=gradient.numbers(),
                **tiling(source, gradient, node.pattern.density, "sparse"),
                columns=m.columns,
                start=m.start,
                number=t.output(node.name, "weight"),
            )

        shape = t.context.shape(node.name)
        flops = 2.0 * node.pattern.count * shape[1] * shape[2]
        info = StepInfo(node.name, "weights", "gradient", "", shape, 1 - node.pattern.density, flops)
        t.add(info, [source.view, gradient], [], emit)
        if self._wanted(node.inputs[0]):
            self._to_input(node, gradient)

    def _to_input(self, node: Convolve, gradient: View) -> None:
        """A convolution of the gradient for each phase of the stride, then the phases are put together."""
        t, name, window = self.t, node.inputs[0], taps_of(self.t, node)
        channels, height, width = t.context.shape(name)
        plane = (-(-height // node.stride[0]), -(-width // node.stride[1]))
        operand = self._plane(node, gradient, window, plane)
        if node.stride == (1, 1):
            there = self.gradients.get(name)
            to = there or t.like(t.context.storage.view(name))
            m = backward_matrix(node.pattern, window, 0)
            t.multiply(node, m, _of_phase(operand, window, 0), to, there, "backward")
            self.gradients[name] = to
            return
        phases = len(window.phases)
        made = t.context.storage.new(t.context.storage.layout(plane), channels * phases)
        for p in range(phases):
            m = backward_matrix(node.pattern, window, p)
            out = PhaseView(made.buffer, p, channels, phases)
            t.multiply(node, m, _of_phase(operand, window, p), out, None, "backward")
        to = t.like(t.context.storage.view(name))
        info = StepInfo(node.name, "backward", "repack", f"{phases} phases", t.context.shape(name))
        relay(t.context, made, window.phases, node.stride, to, info)
        self._give(name, to)

    def _plane(self, node: Convolve, gradient: View, window: Taps, plane: Pair) -> View:
        """The gradient of a convolution's output, in a plane that has a pixel for each of a phase of the input."""
        context, halo = self.t.context, window.halo
        layout = gradient.buffer.layout
        assert layout is not None
        if layout.plane != plane:
            dealt = context.storage.new(context.storage.layout(plane), gradient.channels)
            widen(dealt, halo)
            info = self._info(node, "repack", context.shape(node.name))
            relay(context, gradient, ((0, 0),), (1, 1), dealt, info)
            return dealt
        widen(gradient, halo)
        if halo != (0, 0):
            fill_halo(context, self._named(node, gradient))
        return gradient


def made_again(nodes: tuple[Node, ...], overwritten: set[str]) -> dict[str, Norm]:
    """The norms whose output need not be kept: what it is made of is. Of a chain of residuals that is every second.

    What only the average at the end reads would be made again at once, and a norm's input has to be there in any case.
    """
    wanted = {node.inputs[0] for node in nodes if isinstance(node, AdaptivePool | Norm)}
    again: dict[str, Norm] = {}
    for node in nodes:
        if isinstance(node, Norm) and node.name not in wanted:
            kept = (name not in again and name not in overwritten for name in node.inputs[1:])
            if all(kept):
                again[node.name] = node
    return again


def _of_phase(gradient: View, window: Taps, phase: int) -> Operand:
    """The taps, seen from a pixel of a phase of the input: the outputs that read it."""
    return Operand(gradient, 1, tuple((0, -y, -x) for p, y, x in window.taps if p == phase))
