"""One file = the lowering of one kind of operator: which steps it becomes, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graph import (
    Activate,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    LayerNorm,
    Linear,
    Mul,
    Node,
    Pad,
    Pool,
    Select,
    Softmax,
)
from ..lower import Context
from .channels import lower_concat, lower_flatten, lower_pad, lower_select
from .channelwise import lower_pool
from .conv import lower_conv
from .elementwise import lower_activate, lower_affine, lower_combine
from .linear import lower_linear
from .normalize import lower_layer_norm, lower_softmax
from .operand import phased_convolutions, window_of
from .pool import lower_adaptive

__all__ = ["LOWER", "halos", "phased_convolutions"]

LOWER: dict[type[Node], Callable[[Context, Any], None]] = {
    Conv: lower_conv,
    Linear: lower_linear,
    Affine: lower_affine,
    Activate: lower_activate,
    Add: lower_combine,
    Mul: lower_combine,
    Concat: lower_concat,
    Select: lower_select,
    Pool: lower_pool,
    AdaptivePool: lower_adaptive,
    Pad: lower_pad,
    Flatten: lower_flatten,
    LayerNorm: lower_layer_norm,
    Softmax: lower_softmax,
}


def halos(context: Context) -> None:
    """Gives every buffer the halo that the operators reading it in place want."""
    for node in context.graph:
        t = window_of(context, node)
        if t is not None:
            buffer = context.storage.view(node.inputs[0]).buffer
            buffer.halo = (max(buffer.halo[0], t.halo[0]), max(buffer.halo[1], t.halo[1]))
