"""Random graphs of every kind of node: each instruction set computes what they mean, as they are and optimized."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budwood.engine import native
from budwood.engine.graph import AdaptivePool, Conv, Graph, Node, Pad, Pool
from budwood.engine.lower import _ordered, _turns, lower
from budwood.engine.passes import optimize
from budwood.engine.storage import Storage
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


WEIGHT = np.random.default_rng(0).standard_normal((5, 5, 1, 1)).astype(np.float32)
GROWING: dict[str, Node] = {
    "adaptive": AdaptivePool("y", ("x",), (12, 11)),
    "wide": AdaptivePool("y", ("x",), (32, 32)),
    "pad": Pad("y", ("x",), (5, 6, 7, 4), 0.5),
    "conv": Conv("y", ("x",), WEIGHT, padding=(5, 6, 7, 4)),
    "depthwise": Conv("y", ("x",), WEIGHT[:, :1].repeat(9, 1).reshape(5, 1, 3, 3), padding=(6, 6, 6, 6), groups=5),
    "pool": Pool("y", ("x",), "average", (16, 16), (1, 1), (13, 13, 13, 13)),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("images", [1, 4, 16])
@pytest.mark.parametrize("kind", GROWING)
def test_a_single_pixel_that_becomes_a_plane(isa: str, kind: str, images: int) -> None:
    """More images share a vector of a single pixel's value than of a large plane."""
    check(Graph({"x": (5, 1, 1)}, (GROWING[kind],), ("y",)), images, 0, isa)
    check(Graph({"w": (5, 9, 9)}, (AdaptivePool("x", ("w",)), GROWING[kind]), ("y",)), images, 0, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("images", [1, 4, 16])
@pytest.mark.parametrize(
    ("stride", "padding", "groups"), [(9, (0, 0, 0, 0), 1), (9, (1, 0, 2, 0), 5), (40, (9, 1, 0, 0), 1)]
)
def test_one_pixel_of_a_plane(isa: str, images: int, stride: int, padding: tuple[int, ...], groups: int) -> None:
    """A convolution that comes to one pixel looks at few of the plane's, or at none."""
    weight = np.random.default_rng(1).standard_normal((5, 5 // groups, 2, 3)).astype(np.float32)
    conv = Conv("y", ("x",), weight, np.ones(5, np.float32), (stride, stride), padding, (2, 1), groups)
    check(Graph({"x": (5, 9, 8)}, (conv,), ("y",)), images, 0, isa)


@given(graph=graphs(), images=st.sampled_from((1, 4, 16)))
@settings(max_examples=100, **examples)
def test_nodes_of_one_size_follow_each_other(graph: Graph, images: int) -> None:
    """The order is that of always taking the first node that is possible and goes with the one before, if any does."""
    storage = Storage(graph, images, 16)
    waiting, ready, current, expected = list(graph.nodes), set(graph.inputs), -1, []
    while waiting:
        possible = [node for node in waiting if ready.issuperset(node.inputs)]
        node = next((n for n in possible if storage.images_of(n.name) in (0, current)), possible[0])
        current = storage.images_of(node.name) or current
        waiting.remove(node)
        ready.add(node.name)
        expected.append(node.name)
    assert [node.name for node in _ordered(graph, images, 16)] == expected


@given(sizes=st.lists(st.sampled_from((1, 2, 4, 8, 16)), min_size=1, max_size=12))
def test_every_group_has_its_turn_once_its_images_are_there(sizes: list[int]) -> None:
    turns = _turns([(size, []) for size in sizes], 16)
    assert sorted(turns) == [(n, g) for n, size in enumerate(sizes) for g in range(16 // size)]
    done = [0] * len(sizes)
    for number, group in turns:
        assert done[number] == group * sizes[number], "in order"
        done[number] += sizes[number]
        if number:
            assert done[number - 1] >= done[number], "its images are there"
            assert done[number - 1] < done[number] + sizes[number - 1], "and no more than it waited for"


def test_turns_of_more_segments_than_calls_may_nest() -> None:
    assert len(_turns([(16 if n % 2 else 1, []) for n in range(5000)], 16)) == 2500 * 17


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_plans_of_a_thousand_graphs(isa: str) -> None:
    for seed in range(1000):
        graph = random_graph(seed, 12)
        check(graph, (1, 3, 4, 8, 16)[seed % 5], seed, isa)
        check(optimize(graph), (1, 3, 4, 8, 16)[seed % 5], seed, isa)
