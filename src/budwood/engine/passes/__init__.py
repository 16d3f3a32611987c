"""Passes: each turns a graph into one that computes the same in fewer, larger steps. See `optimize`."""

from __future__ import annotations

from collections.abc import Callable

from ..graph import Graph
from .fold_affine import fold_affine
from .fold_constants import fold_constants
from .fold_pad import fold_pad
from .fold_select import fold_select
from .fuse_activation import fuse_activation
from .fuse_residual import fuse_residual
from .plain_zeros import plain_zeros
from .pool_early import pool_early
from .remove_dead_channels import remove_dead_channels
from .remove_unused import remove_unused
from .split_pool import split_pool
from .split_wide import split_wide

PASSES: tuple[Callable[[Graph], Graph], ...] = (
    remove_unused,
    fold_select,
    fold_pad,
    fold_affine,
    pool_early,
    fuse_activation,
    fold_constants,
    remove_dead_channels,
)
"""In this order, again and again until none finds anything. Each gives back the very graph where it found nothing,
and takes away nodes, channels or weights where it did, so this ends."""


def optimize(graph: Graph) -> Graph:
    """The same function of the inputs, up to one rounding of each weight, ready for the planner.

    The names of the outputs may change, not their order. Where a channel's weights are all zero, infinity and NaN in
    what it would have read no longer reach it.
    """
    before = None
    while before is not graph:
        before = graph
        for one in PASSES:
            graph = one(graph)
    graph = plain_zeros(graph)
    # Last, since a convolution with a residual can no longer take in a scale.
    return split_pool(split_wide(fuse_residual(graph)))
