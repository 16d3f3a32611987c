"""Operators that work on each pixel alone."""

from __future__ import annotations

from .. import _native
from ..graph import Activate, Add, Affine, Mul
from ..lower import Context, StepInfo, activation_arguments
from ..storage import View, is_vector


def _images(context: Context, name: str, out: View) -> int:
    """Images that a step on vectors handles at a time; on feature maps 1, as a vector holds several images."""
    return 1 if out.buffer.layout else context.group_of(name, out)


def lower_affine(context: Context, node: Affine) -> None:
    source, out = context.view(node.inputs[0]), context.storage.view(node.name)
    images = _images(context, node.name, out)

    def emit(plan: _native.Plan) -> None:
        f = activation_arguments(node.activation)
        plan.affine(source.numbers(), out.numbers(), images, node.scale, node.offset, *f)

    context.add(StepInfo(node.name, "Affine", "elementwise", "", context.shape(node.name)), out, [source], emit)


def lower_activate(context: Context, node: Activate) -> None:
    source, out = context.view(node.inputs[0]), context.storage.view(node.name)
    images = _images(context, node.name, out)

    def emit(plan: _native.Plan) -> None:
        plan.activate(source.numbers(), out.numbers(), images, *activation_arguments(node.activation))

    info = StepInfo(node.name, "Activate", "elementwise", node.activation.kind, context.shape(node.name))
    context.add(info, out, [source], emit)


def lower_combine(context: Context, node: Add | Mul) -> None:
    a, b = context.view(node.inputs[0]), context.view(node.inputs[1])
    out = context.storage.view(node.name)
    images = _images(context, node.name, out)
    gate = out.buffer.layout is not None and is_vector(context.shape(node.inputs[1]))
    gate_images = out.buffer.layout.images if out.buffer.layout and gate else 0

    def emit(plan: _native.Plan) -> None:
        step = plan.add if isinstance(node, Add) else plan.mul
        f = activation_arguments(node.activation)
        step(a.numbers(), b.numbers(), out.numbers(), images, gate_images, *f)

    context.add(StepInfo(node.name, node.op, "elementwise", "", context.shape(node.name)), out, [a, b], emit)
