"""What memory and time a graph may want that came out of a file nobody vouches for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from . import graph as g
from .explain import printable

LONGEST_SIDE = 1 << 12
"""Pixels of a map, channels of a vector apart."""
LARGEST_WINDOW = 1 << 18
"""Pixels that a pooling may look at for one of its own."""
MOST_PHASES = 1 << 14
"""Remainders of the stride in the window of a convolution; its input is dealt out to as many planes."""
MOST_LISTED = 1 << 21
"""Pixels of all cells of an adaptive pooling (or an upsampling, which is one), which a plan lists for the images that
share a vector."""
LEAST_FLOATS, TIMES_INPUT, MOST_FLOATS = 1 << 22, 512, 1 << 28
"""A network may need 16 MB an image, or so many times what an image and the weights take, if that is more: 1 GB and the
weights at the most."""


def check_size(graph: g.Graph, weight_bytes: int) -> None:
    """Raise ValueError where running the graph would take more than its images and weights justify."""
    shapes = graph.shapes
    for name, shape in shapes.items():
        if len(shape) == 3 and max(shape[1:]) > LONGEST_SIDE:
            raise ValueError(f"{printable(name)} is a map of {shape[1]} x {shape[2]} pixels")
    for node in graph:
        if isinstance(node, g.Pool) and math.prod(node.kernel) > LARGEST_WINDOW:
            raise ValueError(f"{printable(node.name)} pools windows of {node.kernel[0]} x {node.kernel[1]} pixels")
        if isinstance(node, g.Conv) and math.prod(map(min, node.weight.shape[2:], node.stride)) > MOST_PHASES:
            raise ValueError(
                f"{printable(node.name)} has windows of {node.weight.shape[2]} x {node.weight.shape[3]} pixels"
            )
        if isinstance(node, g.AdaptivePool) and node.size != (1, 1) and _listed(node, shapes) > MOST_LISTED:
            raise ValueError(f"{printable(node.name)} pools into {node.size[0]} x {node.size[1]} cells of many pixels")
    given = sum(math.prod(shape) for shape in graph.inputs.values())
    limit = min(max(LEAST_FLOATS, TIMES_INPUT * given), MOST_FLOATS) + weight_bytes
    need = _most_alive(graph)
    if need > limit:
        raise ValueError(f"an image would take {need * 4 / 1e6:.0f} MB, more than {limit * 4 / 1e6:.0f} MB")


def _listed(node: g.AdaptivePool, shapes: Mapping[str, g.Shape]) -> int:
    """Pixels of all cells, which may overlap by one in each direction; many images share the vectors of a small map."""
    shape = shapes[node.inputs[0]]
    height, width = shape[1:] if len(shape) == 3 else (1, 1)
    return (height + node.size[0]) * (width + node.size[1]) * max(1, 16 // (height * width))


def _most_alive(graph: g.Graph) -> int:
    """Floats, for an image, of all values that are needed at one time, the most of it; padded maps included."""
    last = {name: number for number, node in enumerate(graph) for name in node.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))
    size = {name: math.prod(shape) for name, shape in graph.shapes.items()}
    leaving: dict[int, list[str]] = {}
    for name, number in last.items():
        leaving.setdefault(number, []).append(name)
    alive = sum(size[name] for name in graph.inputs)
    most = alive
    for number, node in enumerate(graph):
        alive += size[node.name]
        most = max(most, alive + _padded(node, graph.shapes))
        alive -= sum(size[name] for name in leaving.get(number, []))
        if node.name not in last:
            alive -= size[node.name]
    return most


def _padded(node: g.Node, shapes: Mapping[str, g.Shape]) -> int:
    """Floats of the input with its padding; 0 for a node without any."""
    if not isinstance(node, g.Conv | g.Pool) or not any(node.padding):
        return 0
    channels, height, width = shapes[node.inputs[0]]
    top, bottom, left, right = node.padding
    return channels * (height + top + bottom) * (width + left + right)
