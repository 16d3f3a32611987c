"""The forward pass: the steps of each node, in the order of the graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _native
from ..graph import AdaptivePool, Node, Pool
from ..lower import StepInfo, fill_halo
from ..lowering.channelwise import Scratch, lower_pool
from ..lowering.operand import Taps, operand, reads_in_place, taps
from ..lowering.pool import average
from ..storage import View
from .context import Training, forward_matrix, mask
from .nodes import Convolve, Norm


def forward(t: Training, node: Node) -> None:
    if isinstance(node, Convolve):
        _depthwise(t, node) if node.pattern.is_depthwise else _convolve(t, node)
    elif isinstance(node, Norm):
        _norm(t, node)
    elif isinstance(node, Pool):
        _pool(t, node)
    else:
        assert isinstance(node, AdaptivePool)
        info = StepInfo(node.name, "AdaptivePool", "average", "", t.context.shape(node.name))
        average(t.context, t.context.view(node.inputs[0]), t.context.storage.view(node.name), info)


def taps_of(t: Training, node: Convolve) -> Taps:
    kernel = (node.pattern.shape[2], node.pattern.shape[3])
    return taps(kernel, node.stride, node.edges(t.context.shape(node.inputs[0])), node.dilation)


def widen(view: View, halo: tuple[int, int]) -> None:
    """Gives a view's buffer a halo at least so wide."""
    buffer = view.buffer
    buffer.halo = (max(buffer.halo[0], halo[0]), max(buffer.halo[1], halo[1]))


def clean(t: Training, name: str) -> None:
    """Zeros where lanes hold no pixel, for who multiplies what stands there."""
    layout = t.context.view(name).buffer.layout
    assert layout is not None
    if mask(layout).size:
        fill_halo(t.context, name)


def _convolve(t: Training, node: Convolve) -> None:
    context, name = t.context, node.inputs[0]
    out, window = context.storage.view(node.name), taps_of(t, node)
    if reads_in_place(context, name, node.name, window):
        widen(context.storage.view(name), window.halo)
    source = t.operands[node.name] = operand(context, node.name, name, out, window)
    m = t.matrices[node.name] = forward_matrix(node.pattern, len(source.taps))
    t.multiply(node, m, source, out, None, "forward")


def window_of(t: Training, node: Convolve, name: str) -> tuple[View, Scratch]:
    """What a depthwise convolution reads, by its name, and how a channel of it lies in the scratch memory."""
    layout = t.context.storage.view(node.name).buffer.layout
    assert layout is not None
    return t.context.view(name), Scratch(layout, taps_of(t, node))


def _depthwise(t: Training, node: Convolve) -> None:
    out, pattern = t.context.storage.view(node.name), node.pattern
    source, scratch = window_of(t, node, node.inputs[0])
    dense = np.full(pattern.size, -1)
    dense[np.arange(pattern.size) if pattern.index is None else pattern.index] = np.arange(pattern.count)
    weights = t.weights[node.name] = t.pack(node.name, "weight", pattern.size, dense).view

    def emit(plan: _native.Plan) -> None:
        where = scratch.arguments(t.context, node.inputs[0], source, 0.0)
        at = weights.buffer.offset
        plan.depthwise_packed(**where, out=out.numbers(), residual=None, taps=scratch.offsets(), weights_at=at)

    shape = t.context.shape(node.name)
    info = StepInfo(node.name, "forward", "depthwise", "", shape, 1 - pattern.density)
    t.context.add(info, out, [source, weights], emit)


def normalisation(t: Training, node: Norm, name: str) -> dict[str, Any]:
    """The arguments that both passes of a norm have; its output goes by `name`."""
    mean, var = t.statistics[node.name]
    layout = t.context.view(node.inputs[0]).buffer.layout
    assert layout is not None
    return {
        "source": t.context.view(node.inputs[0]).numbers(),
        "out": t.context.view(name).numbers(),
        "mask": mask(layout),
        "mean_at": mean.buffer.offset,
        "var_at": var.buffer.offset,
        "weight": t.input(node.name, "weight"),
        "eps": node.eps,
        "low": node.low,
        "high": node.high,
    }


def count(t: Training, node: Norm) -> int:
    _, height, width = t.context.shape(node.name)
    return t.images * height * width


def _norm(t: Training, node: Norm) -> None:
    _statistics(t, node, t.context.view(node.inputs[0]))
    normalise(t, node, node.name, "forward")


def normalise(t: Training, node: Norm, name: str, what: str) -> None:
    """The step that makes the norm's output as the value `name`."""
    source, out = t.context.view(node.inputs[0]), t.context.storage.view(name)
    residual = t.context.view(node.inputs[1]) if len(node.inputs) > 1 else None

    def emit(plan: _native.Plan) -> None:
        beside = None if residual is None else residual.numbers()
        plan.batch_norm(**normalisation(t, node, name), bias=t.input(node.name, "bias"), residual=beside)

    reads = [source, *t.statistics[node.name]] + ([] if residual is None else [residual])
    t.add(StepInfo(node.name, what, "norm", "", t.context.shape(node.name)), reads, [out], emit)


def _statistics(t: Training, node: Norm, source: View) -> None:
    shape, layout = t.context.shape(node.name), source.buffer.layout
    assert layout is not None
    if not t.modes[node.name]:
        mean, var = (t.pack(node.name, what, shape[0]).view for what in ("running_mean", "running_var"))
    else:
        mean, var = t.vector(shape[0]), t.vector(shape[0])

        def measure(plan: _native.Plan) -> None:
            at = mean.buffer.offset, var.buffer.offset
            plan.batch_statistics(source.numbers(), mask(layout), count(t, node), *at)
            plan.statistics_out(*at, t.output(node.name, "statistics"))

        t.add(StepInfo(node.name, "forward", "statistics", "", shape), [source], [mean, var], measure)
    t.statistics[node.name] = mean, var


def _pool(t: Training, node: Pool) -> None:
    lower_pool(t.context, node)
    clean(t, node.name)
