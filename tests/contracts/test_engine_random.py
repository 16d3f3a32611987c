"""Random graphs of every kind of node: each instruction set computes what they mean, as they are and optimized."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budwood.engine import native
from budwood.engine.graph import Graph
from budwood.engine.lower import lower
from budwood.engine.passes import optimize
from budwood.testing.engine import FLOOR, draw_inputs, meaning
from budwood.testing.graphs import graphs, random_graph

ISAS = native.instruction_sets()


def check(graph: Graph, images: int, seed: int, isa: str) -> None:
    """The plan agrees with the graph's meaning, for any number of threads and after a call full of NaN.

    The graphs' numbers may cancel out to nearly nothing, so the bound is that of the largest value underway: thirty
    roundings of it (PyTorch needs three in the worst of 400 graphs, and so do the plans).
    """
    inputs = [x[:images] for x in draw_inputs(graph, images, seed)]
    everything = graph.with_nodes(graph.nodes, list(graph.shapes))
    largest = max(float(np.abs(y).max()) for y in meaning(everything, inputs))
    plan = lower(graph, images, isa)

    def run(inputs: list[np.ndarray], threads: int) -> list[np.ndarray]:
        outputs = [np.full((images, *graph.shapes[name]), np.nan, np.float32) for name in graph.outputs]
        plan.run(inputs, outputs, threads)
        return outputs

    first = run(inputs, 1)
    run([np.full_like(x, np.nan) for x in inputs], 1)
    again = run(inputs, 2)
    for y, repeated, wanted in zip(first, again, meaning(graph, inputs), strict=True):
        far = np.abs(y - wanted).max()
        assert far <= 30 * FLOOR * max(largest, 1), f"{far:.3g} of {largest:.3g}"
        assert np.array_equal(y, repeated), "other bits from a call after one of NaN, on two threads"


examples = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@pytest.mark.parametrize("isa", ISAS)
@given(graph=graphs(), images=st.sampled_from((1, 3, 4, 16)), seed=st.integers(0, 99))
@settings(max_examples=200, **examples)
def test_plans_agree_with_their_graphs(isa: str, graph: Graph, images: int, seed: int) -> None:
    check(graph, images, seed, isa)
    check(optimize(graph), images, seed, isa)


@pytest.mark.parametrize("isa", ISAS)
@given(seed=st.integers(0, 2**31), images=st.sampled_from((1, 3, 4, 16)))
@settings(max_examples=100, **examples)
def test_plans_of_longer_graphs(isa: str, seed: int, images: int) -> None:
    """Hypothesis draws short graphs; these have a dozen motifs."""
    graph = random_graph(seed, 12)
    check(graph, images, seed % 100, isa)
    check(optimize(graph), images, seed % 100, isa)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_plans_of_a_thousand_graphs(isa: str) -> None:
    for seed in range(1000):
        graph = random_graph(seed, 12)
        check(graph, (1, 3, 4, 8, 16)[seed % 5], seed, isa)
        check(optimize(graph), (1, 3, 4, 8, 16)[seed % 5], seed, isa)
