"""Every pass leaves what the graph computes as it was, and does what it is there for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood.engine.graph import (
    ACTIVATIONS,
    Activate,
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Array,
    Concat,
    Conv,
    Flatten,
    Graph,
    LayerNorm,
    Linear,
    Mul,
    Node,
    Pad,
    Pool,
    Select,
    Softmax,
)
from budwood.engine.interpret import activate, interpret
from budwood.engine.passes import (
    PASSES,
    channels,
    fold_affine,
    fold_constants,
    fold_pad,
    fold_select,
    fuse_activation,
    fuse_residual,
    optimize,
    pool_early,
    remove_dead_channels,
    remove_unused,
    split_pool,
    split_wide,
)
from budwood.engine.passes.constants import activated, constants
from budwood.testing.graphs import graphs, random_graph

RELU = Activation("relu")
BORDER = (1, 1, 1, 1)


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def with_zeros(array: Array, *where: Any) -> Array:
    array = array.copy()
    for place in where:
        array[place] = 0
    return array


def graph(*nodes: Node, x: Sequence[int] = (4, 5, 6), outputs: Sequence[str] = ()) -> Graph:
    """Of the input x; the last node's value comes out."""
    return Graph({"x": tuple(x)}, nodes, tuple(outputs) or (nodes[-1].name,))


def ops(of: Graph) -> list[str]:
    return [node.op for node in of]


def feed(of: Graph) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {n: torch.randn(2, *shape, generator=random, dtype=torch.float64) for n, shape in of.inputs.items()}


def assert_same(after: Graph, before: Graph) -> None:
    """The outputs agree to float32 rounding of the weights; the arithmetic is in float64."""
    x = feed(before)
    for got, want in zip(interpret(after, x), interpret(before, x), strict=True):
        assert got.shape == want.shape
        # Values inside are of the order of 1; an output may be a small difference of them.
        assert float((got - want).abs().max()) <= 1e-5 * (float(want.square().mean().sqrt()) + 0.1)


def one(of: Graph) -> Node:
    assert len(of.nodes) == 1, ops(of)
    return of.nodes[0]


def conv(name: str, source: str, out: int = 4, channels: int = 4, size: int = 3, **more: object) -> Conv:
    weight = numbers(out, channels, size, size, seed=sum(map(ord, name)))
    return replace(Conv(name, (source,), weight, padding=(size // 2,) * 4), **more)  # type: ignore[arg-type]


def affine(name: str, source: str, count: int = 4, **more: object) -> Affine:
    return replace(Affine(name, (source,), numbers(count, seed=1), numbers(count, seed=2)), **more)  # type: ignore[arg-type]


# -- all of them ----------------------------------------------------------------------------------------------


def split_small(before: Graph) -> Graph:
    return split_wide(before, 8)


def pool_in_halves(before: Graph) -> Graph:
    return split_pool(before, 3)


@pytest.mark.parametrize(
    "one_pass", [*PASSES, fuse_residual, split_small, pool_in_halves, optimize], ids=lambda p: p.__name__
)
@settings(deadline=None)
@given(before=graphs())
def test_a_pass_changes_nothing_that_comes_out(one_pass: Callable[[Graph], Graph], before: Graph) -> None:
    assert_same(one_pass(before), before)


@pytest.mark.parametrize("seed", range(300))
def test_optimize_on_larger_graphs(seed: int) -> None:
    before = random_graph(seed, 24)
    after = optimize(before)
    assert_same(after, before)
    assert optimize(after) is after


@pytest.mark.parametrize("seed", range(50))
def test_in_float64_only_its_own_rounding_is_left(seed: int) -> None:
    def exact(node: Node) -> Node:
        arrays: dict[str, Any] = {
            key: value.astype(np.float64) for key, value in vars(node).items() if isinstance(value, np.ndarray)
        }
        return replace(node, **arrays)

    before = random_graph(seed)
    before = before.with_nodes(exact(node) for node in before)
    after, x = optimize(before), feed(before)
    for got, want in zip(interpret(after, x), interpret(before, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(before=graphs())
def test_weights_are_not_gained(before: Graph) -> None:
    def kept(of: Graph) -> int:
        return sum(int(np.count_nonzero(node.weight)) for node in of if isinstance(node, Conv | Linear))

    after = before
    for one_pass in (remove_unused, fold_select, fold_pad, fold_constants, remove_dead_channels):
        after, bound = one_pass(after), kept(after)
        assert kept(after) <= bound


@settings(deadline=None)
@given(before=graphs())
def test_names_keep_their_values(before: Graph) -> None:
    """But for channels taken away: what is called the same holds the same numbers."""
    after = before
    for one_pass in (remove_unused, fold_select, fold_pad, fold_affine, fuse_activation, fuse_residual):
        after = one_pass(after)
    names = [node.name for node in after if node.name in before.shapes]
    if names:
        assert_same(after.with_nodes(after.nodes, names), before.with_nodes(before.nodes, names))


def test_random_graphs_have_every_kind_of_node() -> None:
    found = Counter(node.op for seed in range(100) for node in random_graph(seed))
    kinds = {Activate, AdaptivePool, Add, Affine, Concat, Conv, Flatten, LayerNorm, Linear, Mul, Pad, Pool, Select}
    assert found.keys() == {kind.__name__ for kind in kinds | {Softmax}} and min(found.values()) > 5


# -- remove_unused --------------------------------------------------------------------------------------------


def test_nodes_that_do_nothing_go() -> None:
    before = graph(
        Activate("a", ("x",)),
        Select("b", ("a",), (0, 1, 2, 3)),
        Pad("c", ("b",), (0, 0, 0, 0), 3.0),
        Concat("d", ("c",)),
        AdaptivePool("e", ("d",), (5, 6)),
        Affine("f", ("e",), np.ones(4, np.float32), np.zeros(4, np.float32)),
        conv("g", "f"),
        Flatten("h", ("g",)),
        Flatten("i", ("h",)),
        conv("unused", "x"),
        outputs=["i"],
    )
    after = remove_unused(before)
    assert [node.name for node in after] == ["g", "h"] and after.outputs == ("h",)
    assert_same(after, before)


def test_an_input_can_be_what_is_left() -> None:
    assert remove_unused(graph(Activate("a", ("x",)))).outputs == ("x",)


# -- fold_affine ----------------------------------------------------------------------------------------------


def test_a_norm_and_its_activation_go_into_the_convolution() -> None:
    before = graph(conv("c", "x", 6), affine("n", "c", 6, activation=RELU))
    node = one(fold_affine(before))
    assert isinstance(node, Conv) and node.name == "n" and node.activation == RELU and node.bias is not None
    assert_same(fold_affine(before), before)


def test_no_bias_is_made_of_nothing() -> None:
    node = one(fold_affine(graph(conv("c", "x"), affine("n", "c", offset=np.zeros(4, np.float32)))))
    assert isinstance(node, Conv) and node.bias is None


@pytest.mark.parametrize("blocked", ["activation", "read twice", "output", "residual"])
def test_where_an_affine_stays(blocked: str) -> None:
    first = conv("c", "x", activation=RELU if blocked == "activation" else Activation())
    if blocked == "residual":
        first = replace(first, inputs=("x", "x"))
    after = [Add("s", ("c", "n"))] if blocked == "read twice" else []
    before = graph(first, affine("n", "c"), *after, outputs=["c", "n"] if blocked == "output" else [])
    assert fold_affine(before) is before


def test_affines_in_a_row_become_one() -> None:
    before = graph(affine("a", "x"), affine("b", "a", activation=RELU))
    assert isinstance(one(fold_affine(before)), Affine)
    assert_same(fold_affine(before), before)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_forward_into_every_reader_or_none(groups: int) -> None:
    readers = [conv(n, "a", 8, 4 // groups, groups=groups, padding=(0, 0, 0, 0)) for n in ("b", "c")]
    before = graph(affine("a", "x"), *readers, outputs=["b", "c"])
    assert ops(fold_affine(before)) == ["Conv", "Conv"]
    assert_same(fold_affine(before), before)
    kept = graph(*before.nodes, Activate("d", ("a",), RELU), outputs=["b", "c", "d"])
    assert fold_affine(kept) is kept


def test_forward_through_padding_only_without_an_offset() -> None:
    before = graph(affine("a", "x"), conv("b", "a"))
    assert fold_affine(before) is before
    exact = graph(affine("a", "x", offset=np.zeros(4, np.float32)), conv("b", "a"))
    one(fold_affine(exact))
    assert_same(fold_affine(exact), exact)


def test_a_mask_is_kept_to_the_letter() -> None:
    weight = np.array([[1e-30, 0, -1e-30, 3e38], [1, 0, -0.0, 2], [5, 6, 0, 7], [0, 0, 0, 0]], np.float32)
    scale = np.array([1e-30, -2, 0, 5], np.float32)
    first = Conv("c", ("x",), weight.reshape(4, 4, 1, 1))
    node = one(fold_affine(graph(first, affine("n", "c", scale=scale))))
    assert isinstance(node, Conv)
    made = node.weight.reshape(4, 4)
    assert ((made != 0) == ((weight != 0) & (scale != 0)[:, None])).all()
    assert (np.sign(made) == np.sign(weight) * np.sign(scale)[:, None]).all()


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_broken_statistics_stay_where_they_are(broken: float) -> None:
    scale = np.array([1, broken, 1, 1], np.float32)
    for nodes in (
        [conv("c", "x", 4), affine("n", "c", scale=scale)],
        [affine("n", "x", scale=scale, offset=np.zeros(4, np.float32)), conv("c", "n", 4)],
        [affine("n", "x", scale=scale), affine("m", "n")],
    ):
        before = graph(*nodes)
        assert fold_affine(before) is before


def test_an_offset_that_is_not_finite_goes_into_the_bias_but_not_through_weights() -> None:
    offset = np.array([0, math.nan, 0, 0], np.float32)
    node = one(fold_affine(graph(conv("c", "x"), affine("n", "c", offset=offset))))
    assert isinstance(node, Conv) and np.isfinite(node.weight).all() and np.isnan(node.bias[1])  # type: ignore[index]
    before = graph(affine("n", "x", offset=offset), conv("c", "n", size=1))
    assert fold_affine(before) is before


def test_what_would_overflow_stays() -> None:
    huge = np.full(4, 1e30, np.float32)
    before = graph(conv("c", "x", weight=np.full((4, 4, 1, 1), 1e10, np.float32)), affine("n", "c", scale=huge))
    assert fold_affine(before) is before


# -- fold_pad -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reader",
    [
        conv("b", "p"),
        Pad("b", ("p",), (0, 1, 0, 2)),
        Pool("b", ("p",), "average", (3, 3), (2, 2)),
        Pool("b", ("p",), "average", (3, 3), (2, 2), count_padding=False),
    ],
    ids=lambda node: node.op,
)
def test_zeros_around_go_into_the_reader(reader: Node) -> None:
    before = graph(Pad("p", ("x",), (1, 0, 1, 2)), reader)
    assert one(fold_pad(before)).name == "b"
    assert_same(fold_pad(before), before)


@pytest.mark.parametrize(
    ("value", "reader"),
    [
        (1.0, conv("b", "p")),
        (0.0, Pool("b", ("p",), "max", (3, 3), (2, 2))),
        (0.0, Pool("b", ("p",), "average", (3, 3), (2, 2), ceil=True)),
        (0.0, Pool("b", ("p",), "average", (3, 3), (2, 2), BORDER, count_padding=False)),
        (0.0, Pool("b", ("p",), "average", (2, 2), (2, 2), BORDER)),
    ],
    ids=["value", "max", "ceil", "uncounted", "larger than the window"],
)
def test_where_a_pad_stays(value: float, reader: Node) -> None:
    before = graph(Pad("p", ("x",), BORDER, value), reader)
    assert fold_pad(before) is before


def test_minus_infinity_is_the_padding_of_a_max_pool() -> None:
    before = graph(Pad("p", ("x",), BORDER, -math.inf), Pool("b", ("p",), "max", (3, 3), (2, 2)))
    one(fold_pad(before))
    assert_same(fold_pad(before), before)


# -- fold_select ----------------------------------------------------------------------------------------------


def folded_select(before: Graph) -> list[str]:
    after = remove_unused(fold_select(before))
    assert_same(after, before)
    return ops(after)


def test_a_shuffle_vanishes_between_convolutions() -> None:
    assert folded_select(graph(conv("a", "x"), Select("s", ("a",), (2, 0, 3, 1)), conv("b", "s"))) == ["Conv", "Conv"]


def test_a_slice_of_an_input_becomes_columns() -> None:
    before = graph(Select("s", ("x",), (3, 1)), conv("a", "s", channels=2), conv("b", "s", channels=2), x=(4, 5, 5))
    before = graph(*before.nodes, Concat("c", ("a", "b")))
    assert folded_select(before) == ["Conv", "Conv", "Concat"]
    kept = sum(int(np.count_nonzero(node.weight)) for node in before if isinstance(node, Conv))
    after = fold_select(before)
    assert kept == sum(int(np.count_nonzero(node.weight)) for node in after if isinstance(node, Conv))


def test_a_narrow_slice_stays() -> None:
    before = graph(Select("s", ("x",), (3,)), conv("a", "s", channels=1), x=(5, 5, 5))
    assert fold_select(before) is before


def test_repeated_channels_stay() -> None:
    before = graph(conv("a", "x"), Select("s", ("a",), (0, 0, 1, 2)), conv("b", "s"))
    assert fold_select(before) is before


def test_shuffle_then_halves() -> None:
    """ShuffleNet: one half goes through a convolution, the other on to the next Concat."""
    before = graph(
        Concat("c", ("x", "x")),
        Select("s", ("c",), (0, 4, 1, 5, 2, 6, 3, 7)),
        Select("l", ("s",), (0, 1, 2, 3)),
        Select("r", ("s",), (4, 5, 6, 7)),
        conv("a", "r"),
        Concat("d", ("l", "a")),
    )
    assert folded_select(before) == ["Concat", "Select", "Conv", "Concat"]


def test_an_order_passes_what_works_by_channel() -> None:
    before = graph(
        Select("s", ("x",), (2, 0, 3, 1)),
        conv("d", "s", channels=1, groups=4, bias=numbers(4)),
        affine("n", "d", activation=RELU),
        Pool("p", ("n",), "max", (2, 2), (2, 2)),
        conv("a", "p", size=1),
        conv("b", "s", size=1, stride=(2, 2)),
        outputs=["a", "b"],
    )
    assert "Select" not in folded_select(before)


def test_an_order_that_would_come_out_stays() -> None:
    before = graph(Select("s", ("x",), (2, 0, 3, 1)), conv("d", "s", channels=1, groups=4))
    assert fold_select(before) is before


def test_select_of_one_part_of_a_concat() -> None:
    before = graph(
        Activate("a", ("x",), RELU), Concat("c", ("x", "a")), Select("s", ("c",), (5, 7)), Activate("b", ("s",), RELU)
    )
    assert folded_select(before) == ["Activate", "Select", "Activate"]
    whole = graph(*before.nodes[:2], Select("s", ("c",), (4, 5, 6, 7)))
    assert folded_select(whole) == ["Activate"]


def test_split_and_joined_again_is_an_order() -> None:
    parts = [Select("a", ("x",), (2, 3)), Select("b", ("x",), (0, 1))]
    assert folded_select(graph(*parts, Concat("c", ("a", "b")), conv("d", "c"))) == ["Conv"]
    assert folded_select(graph(*parts, Concat("c", ("b", "a")), Activate("d", ("c",), RELU))) == ["Activate"]


# -- pool_early -----------------------------------------------------------------------------------------------


def test_the_average_comes_before_a_pointwise_convolution() -> None:
    before = graph(conv("c", "x", 8, size=1, bias=numbers(8)), Pool("p", ("c",), "average", (2, 2), (2, 2), ceil=True))
    after = pool_early(before)
    assert ops(after) == ["Pool", "Conv"] and after.outputs == ("p",)
    assert_same(after, before)


@pytest.mark.parametrize(
    "convolution",
    [
        conv("c", "x", 8),
        conv("c", "x", 8, size=1, activation=RELU),
        conv("c", "x", 8, size=1, stride=(2, 2)),
        conv("c", "x", 4, channels=1, size=1, groups=4),
    ],
    ids=["3x3", "activation", "stride", "cheap"],
)
def test_where_the_average_stays_behind(convolution: Conv) -> None:
    before = graph(convolution, Pool("p", ("c",), "average", (2, 2), (2, 2)))
    assert pool_early(before) is before


# -- split_wide -----------------------------------------------------------------------------------------------


def expanded(**reader: object) -> tuple[Conv, Conv]:
    """A convolution to 7 x 5 x 6 numbers, and a depthwise one of them."""
    first = conv("a", "x", 7, bias=numbers(7), activation=RELU)
    return first, conv("b", "a", 7, channels=1, groups=7, bias=numbers(7, seed=3), **reader)


@pytest.mark.parametrize(("most", "parts"), [(210, 1), (209, 2), (70, 3), (30, 7), (1, 7)])
def test_a_wide_value_is_made_and_read_in_parts(most: int, parts: int) -> None:
    before = graph(*expanded(stride=(2, 2)))
    after = split_wide(before, most)
    assert ops(after) == (["Conv", "Conv"] * parts + ["Concat"] if parts > 1 else ["Conv", "Conv"])
    assert (after is before) == (parts == 1) and after.outputs == ("b",)
    assert_same(after, before)


def test_where_a_wide_value_stays_whole() -> None:
    first, second = expanded()
    for nodes, outputs in (
        ((first, second), ("a", "b")),
        ((first, second, Activate("c", ("a",), RELU)), ("b", "c")),
        ((first, replace(second, inputs=("a", "a"))), ("b",)),
        ((first, conv("b", "a", 14, channels=1, groups=7)), ("b",)),
        ((replace(first, inputs=("x", "r")), second), ("b",)),
    ):
        before = Graph({"x": (4, 5, 6), "r": (7, 5, 6)}, nodes, outputs)
        assert split_wide(before, 1) is before


# -- split_pool -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("kind", "count_padding"), [("max", True), ("average", True), ("average", False)], ids=lambda v: str(v)
)
def test_a_large_window_is_looked_at_in_two_directions(kind: str, count_padding: bool, ceil: bool) -> None:
    pool = Pool(
        "p", ("x",), kind, (3, 2), stride=(2, 3), padding=(1, 2, 1, 0), dilation=(2, 1), ceil=ceil,
        count_padding=count_padding,
    )  # fmt: skip
    before = graph(pool, x=(4, 11, 12))
    after = split_pool(before, 5)
    assert [node.kernel for node in after if isinstance(node, Pool)] == [(3, 1), (1, 2)] and after.outputs == ("p",)
    assert_same(after, before)
    assert split_pool(before, 6) is before and split_pool(after, 1) is after


# -- fuse_activation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "maker",
    [
        conv("a", "x"),
        affine("a", "x"),
        Add("a", ("x", "x")),
        Mul("a", ("x", "x")),
        Conv("a", ("x", "x"), numbers(4, 4, 1, 1)),
    ],
    ids=lambda node: node.op,
)
def test_an_activation_goes_into_what_makes_its_argument(maker: Node) -> None:
    before = graph(maker, Activate("b", ("a",), RELU))
    node = one(fuse_activation(before))
    assert type(node) is type(maker) and node.name == "b"
    assert_same(fuse_activation(before), before)


def test_where_an_activation_stays() -> None:
    twice = graph(conv("a", "x"), Activate("b", ("a",), RELU), outputs=["a", "b"])
    active = graph(conv("a", "x", activation=RELU), Activate("b", ("a",), Activation("tanh")))
    assert fuse_activation(twice) is twice and fuse_activation(active) is active


@pytest.mark.parametrize(("gate", "name"), [("sigmoid", "silu"), ("hardsigmoid", "hardswish")])
@pytest.mark.parametrize("order", [("a", "g"), ("g", "a")])
def test_gated_by_itself(gate: str, name: str, order: tuple[str, str]) -> None:
    before = graph(conv("a", "x"), Activate("g", ("a",), Activation(gate)), Mul("m", order))
    node = one(fuse_activation(before))
    assert isinstance(node, Conv) and node.activation.kind == name
    assert_same(fuse_activation(before), before)


# -- fuse_residual --------------------------------------------------------------------------------------------


def test_the_later_convolution_takes_the_sum() -> None:
    before = graph(conv("a", "x"), conv("b", "x"), Add("s", ("b", "a"), RELU))
    after = fuse_residual(before)
    first, second = after.nodes
    assert first.name == "a" and second.inputs == ("x", "a") and isinstance(second, Conv) and second.activation == RELU
    assert_same(after, before)


def test_an_earlier_convolution_if_it_alone_can() -> None:
    before = graph(conv("a", "x"), conv("b", "x", activation=RELU), Add("s", ("a", "b")))
    assert [node.name for node in fuse_residual(before)] == ["b", "s"]
    assert_same(fuse_residual(before), before)


def test_where_a_sum_stays() -> None:
    active = graph(conv("a", "x", activation=RELU), Add("s", ("a", "x")))
    twice = graph(conv("a", "x"), Add("s", ("a", "a")))
    spread = graph(AdaptivePool("p", ("x",)), conv("a", "p", size=1), Add("s", ("x", "a")))
    for before in (active, twice, spread):
        assert fuse_residual(before) is before


# -- fold_constants -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_those_of_the_engine(kind: str) -> None:
    x = np.concatenate([np.linspace(-7, 7, 57), [math.nan]])
    activation = Activation(kind, slope=0.3, low=-0.5, high=1.25)
    np.testing.assert_allclose(activated(x, activation), activate(torch.tensor(x), activation), rtol=1e-12, atol=1e-15)


@settings(deadline=None)
@given(before=graphs())
def test_constants_are(before: Graph) -> None:
    known = constants(before)
    names = list(before.shapes)
    for name, value in zip(names, interpret(before.with_nodes(before.nodes, names), feed(before)), strict=True):
        flat = value.flatten(2) if value.ndim == 4 else value[:, :, None]
        for channel in np.flatnonzero(~np.isnan(known[name])):
            torch.testing.assert_close(flat[:, channel], torch.full_like(flat[:, channel], known[name][channel]))


def test_a_constant_goes_into_the_bias_where_there_is_no_border() -> None:
    first = Conv("a", ("x",), with_zeros(numbers(4, 4, 1, 1), 1, 3), numbers(4), activation=Activation("sigmoid"))
    before = graph(first, conv("b", "a", padding=(0, 0, 0, 0)))
    node = fold_constants(before).nodes[1]
    assert isinstance(node, Conv) and not node.weight[:, [1, 3]].any() and node.bias is not None
    assert_same(fold_constants(before), before)


def test_through_a_border_goes_only_a_zero() -> None:
    bias = np.array([0.5, -0.5, 0.5, 0.25], np.float32)
    first = Conv("a", ("x",), with_zeros(numbers(4, 4, 1, 1), 1, 3), bias, activation=RELU)
    before = graph(first, conv("b", "a"))
    node = fold_constants(before).nodes[1]
    assert isinstance(node, Conv) and not node.weight[:, 1].any() and node.weight[:, 3].all() and node.bias is None
    assert_same(fold_constants(before), before)


def test_a_gate_without_weights_is_a_scale() -> None:
    before = graph(
        conv("a", "x"),
        AdaptivePool("p", ("a",)),
        Conv("g", ("p",), np.zeros((4, 4, 1, 1), np.float32), numbers(4), activation=Activation("sigmoid")),
        Mul("m", ("a", "g")),
    )
    one(optimize(before))
    assert_same(optimize(before), before)


@pytest.mark.parametrize("bias", [None, numbers(4)], ids=["no bias", "bias"])
def test_a_residual_block_without_weights_is_its_short_cut(bias: Array | None) -> None:
    block = [conv("a", "x"), Conv("b", ("a",), np.zeros((4, 4, 3, 3), np.float32), bias, padding=BORDER)]
    for nodes in ([*block, Add("s", ("b", "x"), RELU)], [block[0], replace(block[1], inputs=("a", "x"))]):
        before = graph(*nodes, conv("c", nodes[-1].name))
        assert len(optimize(before).nodes) <= 2
        assert_same(optimize(before), before)


# -- remove_dead_channels -------------------------------------------------------------------------------------


def weights_of(of: Graph, name: str) -> Array:
    node = of.node(name)
    assert isinstance(node, Conv | Linear)
    return node.weight


def test_channels_that_nobody_reads_are_not_made() -> None:
    """Back through a norm, a depthwise convolution, a pool and an activation."""
    last = conv("b", "p", weight=with_zeros(numbers(4, 6, 1, 1), np.s_[:, 2], np.s_[:, 5]), padding=(0, 0, 0, 0))
    before = graph(
        conv("a", "x", 6),
        affine("n", "a", 6),
        Activate("r", ("n",), RELU),
        conv("d", "r", 6, 1, groups=6),
        Pool("p", ("d",), "max", (2, 2), (2, 2)),
        last,
    )
    after = remove_dead_channels(before)
    assert {after.shapes[name][0] for name in ("a", "n", "r", "d", "p")} == {4} and after.shapes["b"][0] == 4
    assert_same(after, before)


def test_what_is_kept_is_found_in_few_looks_along_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that is needed for another's sake tells all nodes after it, one by one: each is looked at again, but
    not all of them each time."""
    length, looks = 500, 0
    pools = [Pool(f"p{i}", (f"p{i - 1}" if i else "x",), "max", (1, 1), (1, 1)) for i in range(length)]
    weight = np.zeros((1, 4, 1, 1), np.float32)
    weight[0, 1] = 1
    plain = channels.tie

    def counted(node: Node, flags: dict[str, channels.Flags], back: bool = False) -> None:
        nonlocal looks
        looks += 1
        plain(node, flags, back)

    monkeypatch.setattr(channels, "tie", counted)
    before = Graph({"x": (4, 6, 6)}, (*pools, Conv("c", (pools[-1].name,), weight)), ("c",))
    after = remove_dead_channels(before)
    assert looks < 10 * length
    assert after.shapes["c"] == (1, 6, 6) and len(after.nodes) == length + 1


def test_groups_go_whole() -> None:
    last = conv("b", "g", weight=with_zeros(numbers(4, 6, 1, 1), np.s_[:, :2], np.s_[:, 3]), padding=(0, 0, 0, 0))
    before = graph(conv("a", "x", 6), conv("g", "a", 6, 2, groups=3), last)
    after = remove_dead_channels(before)
    assert after.shapes["a"] == (4, 5, 6) and weights_of(after, "g").shape == (4, 2, 3, 3)
    assert not weights_of(after, "g")[1].any(), "it is there for its group's sake only"
    assert_same(after, before)


def test_a_sum_keeps_what_either_side_is_read_for() -> None:
    reads_0_1 = conv("r", "s", weight=with_zeros(numbers(2, 4, 1, 1), np.s_[:, 2:]), padding=(0, 0, 0, 0))
    reads_1_2 = conv("q", "b", weight=with_zeros(numbers(2, 4, 1, 1), np.s_[:, 0], np.s_[:, 3]), padding=(0, 0, 0, 0))
    before = graph(conv("a", "x"), conv("b", "x"), Add("s", ("a", "b")), reads_0_1, reads_1_2, outputs=["r", "q"])
    after = remove_dead_channels(before)
    assert {after.shapes[name][0] for name in ("a", "b", "s")} == {3}
    assert not weights_of(after, "a")[2].any() and weights_of(after, "b")[2].any()
    assert_same(after, before)


def test_through_concat_select_and_flatten() -> None:
    last = Linear("l", ("f",), with_zeros(numbers(3, 24), np.s_[:, 4:8], np.s_[:, 12:]))
    before = graph(
        conv("a", "x"),
        conv("b", "x"),
        Concat("c", ("a", "b")),
        Select("s", ("c",), (7, 1, 5, 0, 2, 4)),
        AdaptivePool("p", ("s",), (2, 2)),
        Flatten("f", ("p",)),
        last,
    )
    after = remove_dead_channels(before)
    assert after.shapes["s"][0] == 2 and after.shapes["c"][0] == 2 and after.node("a") is None
    assert_same(after, before)


def test_a_norm_over_channels_needs_all_of_them() -> None:
    last = conv("b", "n", weight=with_zeros(numbers(4, 4, 1, 1), np.s_[:, 1:]), padding=(0, 0, 0, 0))
    before = graph(conv("a", "x"), LayerNorm("n", ("a",), numbers(4), numbers(4)), last)
    assert remove_dead_channels(before) is before


def test_a_convolution_without_weights_still_reads_something() -> None:
    before = graph(conv("a", "x"), Conv("b", ("a",), np.zeros((2, 4, 1, 1), np.float32), numbers(2)))
    after = remove_dead_channels(before)
    assert weights_of(after, "a").shape == (1, 4, 3, 3) and not weights_of(after, "a").any()
    assert_same(after, before)


def test_weights_of_a_pruned_row_and_column_are_gone() -> None:
    """A zero row makes a constant, folded forward; then nobody reads it, and nobody what it alone read."""
    a = Conv("a", ("x",), numbers(4, 4, 1, 1))
    b = Conv("b", ("a",), with_zeros(numbers(4, 4, 1, 1), np.s_[2], np.s_[:2, 1], np.s_[3, 1]), numbers(4))
    before = graph(a, b, conv("c", "b", size=1))
    after = optimize(before)
    assert [weights_of(after, name).shape[:2] for name in "abc"] == [(3, 4), (3, 3), (4, 3)]
    assert_same(after, before)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_the_graph_given_is_not_written_to(seed: int) -> None:
    before = random_graph(seed)
    arrays = [value for node in before for value in vars(node).values() if isinstance(value, np.ndarray)]
    copies = [array.copy() for array in arrays]
    optimize(before)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))


def test_a_negative_zero_is_a_zero() -> None:
    weight = np.ones((2, 3, 1, 1), np.float32)
    weight[0, 1] = -0.0
    node = optimize(Graph({"x": (3, 2, 2)}, (Conv("c", ("x",), weight),), ("c",))).nodes[0]
    assert isinstance(node, Conv) and not np.signbit(node.weight).any() and np.count_nonzero(node.weight) == 5
