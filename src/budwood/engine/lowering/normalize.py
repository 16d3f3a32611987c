"""Layer norm and softmax."""

from __future__ import annotations

from .. import _native
from ..graph import LayerNorm, Softmax
from ..lower import Context, StepInfo


def lower_layer_norm(context: Context, node: LayerNorm) -> None:
    source, out = context.view(node.inputs[0]), context.storage.view(node.name)
    images = 1 if out.buffer.layout else context.group_of(node.name, out)

    def emit(plan: _native.Plan) -> None:
        plan.layer_norm(source.numbers(), out.numbers(), images, node.scale, node.offset, node.eps)

    context.add(StepInfo(node.name, "LayerNorm", "layer norm", "", context.shape(node.name)), out, [source], emit)


def lower_softmax(context: Context, node: Softmax) -> None:
    source, out = context.view(node.inputs[0]), context.storage.view(node.name)
    images = context.group_of(node.name, out)

    def emit(plan: _native.Plan) -> None:
        plan.softmax(source.numbers(), out.numbers(), images)

    context.add(StepInfo(node.name, "Softmax", "softmax", "", context.shape(node.name)), out, [source], emit)
