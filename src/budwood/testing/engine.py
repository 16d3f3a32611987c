"""What a graph's plan computes, beside what the graph means: for tests of the engine."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..engine.graph import Array, Graph
from ..engine.interpret import interpret
from ..engine.lower import lower

FLOOR = 2.0**-24
"""Half a unit in the last place of float32: the part of a result's size that any rounding of it costs."""


SAMPLES = 100
"""Numbers that an error is judged by at least: of a few, PyTorch's may all happen to be exact."""


def draw_inputs(graph: Graph, images: int, seed: int = 0) -> list[Array]:
    """Normal random numbers for every input of the graph, [N, *shape].

    N is `images`, or the multiple of it that makes every output SAMPLES numbers.
    """
    random = np.random.default_rng(seed)
    least = min(math.prod(graph.shapes[name]) for name in graph.outputs) * images
    count = images * max(-(-SAMPLES // least), 1)
    return [random.standard_normal((count, *shape), np.float32) for shape in graph.inputs.values()]


def run_plan(graph: Graph, inputs: list[Array], isa: str, images: int | None = None, threads: int = 1) -> list[Array]:
    """The outputs of a plan for `images` images, run as often as the inputs need. What it leaves out is NaN."""
    count = len(inputs[0])
    images = count if images is None else images
    plan = lower(graph, images, isa)
    outputs = [np.full((count, *graph.shapes[name]), np.nan, np.float32) for name in graph.outputs]
    for start in range(0, count, images):
        part = slice(start, start + images)
        plan.run([x[part] for x in inputs], [y[part] for y in outputs], threads)
    return outputs


def meaning(graph: Graph, inputs: list[Array], dtype: torch.dtype = torch.float64) -> list[np.ndarray]:
    """The graph's outputs in plain PyTorch."""
    tensors = [torch.from_numpy(x).to(dtype) for x in inputs]
    with torch.no_grad():
        return [y.numpy() for y in interpret(graph, dict(zip(graph.inputs, tensors, strict=True)))]


def rms(x: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(x, dtype=np.float64).mean())) if x.size else 0.0


def excess(found: np.ndarray, exact: np.ndarray, float32: np.ndarray) -> float:
    """The error of `found`, as a share of what it may be: twice that of PyTorch in float32, and FLOOR.

    All three against `exact`, in root mean square. Infinite where not the same numbers are finite.
    """
    finite = np.isfinite(exact)
    if not np.array_equal(found[~finite], exact[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return math.inf
    found, exact, float32 = found[finite], exact[finite], float32[finite]
    return rms(found - exact) / (2 * rms(float32 - exact) + FLOOR * rms(exact) + 1e-30)


def assert_agrees(graph: Graph, inputs: list[Array], outputs: list[Array], note: str = "") -> None:
    """Every output at most twice as far from the float64 result as PyTorch's own in float32, see `excess`."""
    exact, single = meaning(graph, inputs), meaning(graph, inputs, torch.float32)
    for name, y, wanted, float32 in zip(graph.outputs, outputs, exact, single, strict=True):
        assert y.shape == wanted.shape, f"{note} {name}: {y.shape} instead of {wanted.shape}"
        share = excess(y, wanted, float32)
        assert share <= 1, f"{note} {name}: {share:.3g} times the error allowed"
