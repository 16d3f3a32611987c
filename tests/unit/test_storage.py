"""Places in the arena: none that are needed together overlap, and each is the lowest that is free."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budwood.core.errors import UserError
from budwood.engine import _native
from budwood.engine.graph import Conv, Graph
from budwood.engine.lower import lower
from budwood.engine.storage import Buffer, arrange

LIFE = st.tuples(st.integers(1, 100), st.integers(0, 20), st.integers(0, 20))


def vector(floats: int, born: int, last: int) -> Buffer:
    return Buffer(None, floats, 1, born=born, last=last)


def meet(a: Buffer, b: Buffer) -> bool:
    return a.born <= b.last and b.born <= a.last


@given(st.lists(LIFE, max_size=30))
def test_no_two_that_are_needed_together_overlap_and_none_could_lie_lower(lives: list[tuple[int, int, int]]) -> None:
    buffers = [vector(floats, min(a, b), max(a, b)) for floats, a, b in lives]
    top = arrange(buffers)
    order = sorted(buffers, key=lambda b: -b.floats)
    for n, buffer in enumerate(order):
        assert buffer.offset % 16 == 0 and buffer.offset + buffer.floats <= top
        taken = [other for other in order[:n] if meet(buffer, other)]

        def free(at: int, buffer: Buffer = buffer, taken: list[Buffer] = taken) -> bool:
            return all(at + buffer.floats <= o.offset or o.offset + o.floats <= at for o in taken)

        assert free(buffer.offset)
        assert not any(free(at) for at in range(0, buffer.offset, 16))


def test_by_hand() -> None:
    """40 floats all along; 30 and 20 after each other behind it share the place from 48; 10 beside 20 comes after."""
    a, b, c, d = vector(40, 0, 9), vector(30, 0, 3), vector(20, 4, 9), vector(10, 5, 6)
    never = Buffer(None, 1000, 1)
    assert arrange([d, never, c, b, a]) == 96
    assert [x.offset for x in (a, b, c, d)] == [0, 48, 48, 80]


def test_none_take_nothing() -> None:
    assert arrange([]) == 0


def test_more_than_a_plan_counts_is_refused() -> None:
    """As damaged programs have it, with inputs of 2**31 - 1 channels."""
    assert arrange([vector(2**35, 0, 1)]) == 2**35
    with pytest.raises(UserError, match=r"^the network's values would take 275 GB; give smaller images$"):
        arrange([vector(2**35, 0, 1), vector(2**35, 1, 2)])


def test_a_depthwise_window_over_a_whole_map_takes_memory_for_its_weights_alone() -> None:
    """2,048 channels of 7 x 7: 0.4 MB. As a matrix, zeros and all, it would be 0.8 GB."""
    weight = np.ones((2048, 1, 7, 7), np.float32)
    graph = Graph({"x": (2048, 7, 7)}, (Conv("c", ("x",), weight, groups=2048),), ("c",))
    tracemalloc.start()
    try:
        lower(graph, 1, _native.instruction_sets()[0])
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
