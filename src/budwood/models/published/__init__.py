"""Checkpoints as the pruning papers publish them. One file = one layout, described at its head.

A layout is undone by `plain`: what comes out has the names of an architecture that Budwood builds, plain weights, and
the mask if the file carries one. Layouts may lie in one another, the outer ones first in `LAYOUTS`. Deep Compression's
file holds no tensors by name and is read by deep_compression.py itself.
"""

from . import conv_head, mobilenet, nets, rigl_converted, rigl_variables, sparseml, thresholds, wrapped
from .contents import Contents, Layout

__all__ = ["LAYOUTS", "Contents", "Layout", "nets", "plain"]

LAYOUTS: tuple[Layout, ...] = (
    wrapped.LAYOUT,
    thresholds.LAYOUT,
    rigl_variables.LAYOUT,
    rigl_converted.LAYOUT,
    sparseml.LAYOUT,
    conv_head.LAYOUT,
    mobilenet.LAYOUT,
)


def plain(found: Contents) -> Contents:
    """The contents with every layout undone that they have; as they are where they have none."""
    for layout in LAYOUTS:
        if layout.fits(found):
            found = layout.convert(found).noted(f"read as {layout.name}")
    return found
