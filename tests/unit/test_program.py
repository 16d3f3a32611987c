"""A compiled network as a user calls it: kinds of arrays, numbers of images, threads, mistakes, and its table."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budwood.core.errors import UserError
from budwood.engine import explain
from budwood.engine import program as program_module
from budwood.engine.graph import Activation, AdaptivePool, Conv, Flatten, Graph, Linear, Mul, Node, Pool, Softmax
from budwood.engine.interpret import interpret
from budwood.engine.lower import StepInfo
from budwood.engine.passes import optimize
from budwood.engine.program import CHUNKS, Program, default_threads, pieces


def small(outputs: tuple[str, ...] = ("fc",)) -> Graph:
    """Convolutions (plain, sparse, strided), a pool and a classifier of five classes, for [N, 3, 17, 19]."""
    random = np.random.default_rng(0)

    def weight(*shape: int, zeros: float = 0.0) -> np.ndarray:
        values = random.standard_normal(shape).astype(np.float32) * 0.3
        values[random.random(shape) < zeros] = 0
        return values

    relu = Activation("relu")
    nodes: tuple[Node, ...] = (
        Conv("a", ("x",), weight(8, 3, 3, 3), weight(8), stride=(2, 2), padding=(1, 1, 1, 1), activation=relu),
        Conv("b", ("a",), weight(24, 8, 1, 1, zeros=0.8), weight(24), activation=relu),
        Conv("c", ("b",), weight(8, 24, 3, 3, zeros=0.9), padding=(1, 1, 1, 1)),
        Pool("p", ("c",), "max", (2, 2), (2, 2)),
        AdaptivePool("g", ("p",)),
        Flatten("f", ("g",)),
        Linear("fc", ("f",), weight(5, 8), weight(5)),
    )
    return Graph({"x": (3, 17, 19)}, nodes, outputs)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 17, 19), np.float32)


def expected(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    return [y.float().numpy() for y in interpret(graph, torch.from_numpy(x).double())]


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(small(), classes=["a", "b", "c", "d", "e"], threads=2)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 16, 17, 39])
def test_any_number_of_images(program: Program, count: int) -> None:
    x = images(count)
    y = program(x)
    assert y.shape == (count, 5) and y.dtype == np.float32
    np.testing.assert_allclose(y, expected(program.graph, x)[0], rtol=1e-4, atol=1e-5)


def test_no_images_is_an_empty_answer(program: Program) -> None:
    assert program(images(0)).shape == (0, 5)
    assert program(torch.zeros(0, 3, 17, 19)).shape == (0, 5)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(0, []), (1, [1]), (3, [1, 1, 1]), (4, [4]), (15, [4, 4, 4, 1, 1, 1]), (37, [16, 16, 4, 1])],
)
def test_pieces_are_taken_greedily(count: int, sizes: list[int]) -> None:
    found = list(pieces(count))
    assert [size for _, size, number in found for _ in range(number)] == sizes
    assert [start + size * n for start, size, number in found for n in range(number)] == list(
        np.cumsum([0, *sizes])[:-1]
    )
    assert all(number == 1 for *_, number in found)


@given(st.integers(0, 200), st.integers(1, 70), st.sampled_from([(16, 4, 1), (4, 1)]))
def test_pieces_side_by_side_are_the_same_ones(count: int, most: int, chunks: tuple[int, ...]) -> None:
    """Up to so many of a size together; how many does not change what they are."""
    together = list(pieces(count, chunks, most))
    assert all(1 <= number <= most for *_, number in together)
    each = [(start + size * n, size) for start, size, number in together for n in range(number)]
    assert each == [(start, size) for start, size, _ in pieces(count, chunks)]
    assert sum(size for _, size in each) == count


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_four_images_at_a_time(threads: int) -> None:
    program, x = Program(small(), threads=threads), images(23)
    alone = [program.run([x[i : i + 4]])[0] for i in range(0, 20, 4)] + [
        program.run([x[i : i + 1]])[0] for i in (20, 21, 22)
    ]
    assert np.array_equal(program.run([x])[0], np.concatenate(alone))


@pytest.mark.parametrize("zeros", [0, 0.2, 0.5])
def test_sixteen_where_linear_layers_are_large(zeros: float) -> None:
    """5.2 million weights stay in no cache from one piece to the next; without a fifth of them they do."""
    weight = np.ones((2600, 2000), np.float32)
    weight[: round(2600 * zeros)] = 0
    graph = Graph({"x": (2000, 1, 1)}, (Flatten("f", ("x",)), Linear("fc", ("f",), weight)), ("fc",))
    assert Program(graph).chunks == ((4, 1) if zeros else (16, 4, 1))
    nodes = (Conv("c", ("x",), weight[..., None, None]), Flatten("f", ("c",)))
    assert Program(Graph(graph.inputs, nodes, ("f",))).chunks == ((4, 1) if zeros else (16, 4, 1))
    assert Program(Graph({"x": (2000, 2, 2)}, nodes[:1], ("c",))).chunks == (4, 1)


@pytest.mark.parametrize("size", [(2, 2), (3, 5)])
def test_names_of_the_plan_are_not_those_of_the_graph(size: tuple[int, int]) -> None:
    """A map of one pixel is laid out anew, and cells before they are: under names that somebody may have given."""
    inputs = {"x": (3, 1, 1), "x (map)": (3, 2, 2), "y (cells)": (3,)}
    nodes = (AdaptivePool("y", ("x",), size), AdaptivePool("x (map)'", ("x (map)",), size))
    graph = Graph(inputs, nodes, ("y", "x (map)'", "y (cells)"))
    x = [np.random.default_rng(k).standard_normal((5, *s), np.float32) for k, s in enumerate(inputs.values())]
    found = Program(graph).run(x)
    means = torch.nn.functional.adaptive_avg_pool2d
    for got, source in zip(found[:2], x[:2], strict=True):
        np.testing.assert_allclose(got, means(torch.from_numpy(source), size), rtol=1e-6)
    assert np.array_equal(found[2], x[2])


@pytest.mark.parametrize("stride", [1, 300])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_a_window_of_the_whole_map(kind: str, stride: int) -> None:
    """Of 90,000 pixels: its plan is made of as many steps as it has rows and columns."""
    graph = Graph({"x": (2, 300, 300)}, (Pool("p", ("x",), kind, (300, 300), (stride, stride)),), ("p",))
    x = np.random.default_rng(0).standard_normal((3, 2, 300, 300), np.float32)
    (found,) = Program(optimize(graph)).run([x])
    np.testing.assert_allclose(found, expected(graph, x)[0], rtol=1e-5, atol=1e-6)


def test_gates_are_no_linear_layers() -> None:
    """What a feature map waits for is made for its group of images in any case."""
    weight = np.ones((2200, 2200, 1, 1), np.float32)
    gate = (AdaptivePool("p", ("x",)), Conv("c", ("p",), weight), Conv("d", ("c",), weight))
    graph = Graph({"x": (2200, 3, 3)}, (*gate, Mul("y", ("x", "d"))), ("y",))
    assert Program(graph).chunks == (4, 1) and Program(graph.with_nodes(gate, ("d",))).chunks == (16, 4, 1)


def test_pieces_of_sixteen() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 600_000), np.float32)
    nodes = (Conv("c", ("x",), np.ones((600, 1, 1, 1), np.float32)), Flatten("f", ("c",)), Linear("fc", ("f",), weight))
    graph, x = (
        Graph({"x": (1, 25, 40)}, nodes, ("fc",)),
        np.random.default_rng(1).standard_normal((37, 1, 25, 40), np.float32),
    )
    assert Program(graph).chunks == (16, 4, 1)
    made = [Program(graph, threads=threads).run([x])[0] for threads in (1, 2, 3)]
    assert all(np.array_equal(made[0], other) for other in made[1:])
    wanted = np.einsum(
        "np,ocp->no", x.reshape(37, -1).astype(np.float64), weight.reshape(7, 600, 1000).astype(np.float64)
    )
    np.testing.assert_allclose(made[0], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_the_same_kind_comes_out(program: Program) -> None:
    x = images(3)
    for layout in (torch.contiguous_format, torch.channels_last):
        tensor = torch.from_numpy(x).contiguous(memory_format=layout).requires_grad_()
        y = program(tensor)
        assert isinstance(y, torch.Tensor) and not y.requires_grad
        assert np.array_equal(y.numpy(), program(x))
    turned = np.ascontiguousarray(x.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    assert not turned.flags.c_contiguous and np.array_equal(program(turned), program(x))
    read_only = x.copy()
    read_only.flags.writeable = False
    assert np.array_equal(program(read_only), program(x))
    odd = np.ndarray(x.shape, np.float32, bytes(1) + x.tobytes(), offset=1)
    assert not odd.flags.aligned and np.array_equal(program(odd), program(x))


def test_several_outputs_are_a_list() -> None:
    graph = small(("fc", "p", "x"))
    program = Program(graph)
    x = images(5)
    found = program(x)
    assert [y.shape for y in found] == [(5, 5), (5, 8, 4, 5), (5, 3, 17, 19)]
    for y, wanted in zip(found, expected(graph, x), strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    assert program.output_shapes == [(5,), (8, 4, 5), (3, 17, 19)]
    assert all(isinstance(y, torch.Tensor) for y in program(torch.from_numpy(x)))


def test_mistakes_are_one_clear_line(program: Program) -> None:
    x = images(2)
    wrong: list[tuple[tuple[object, ...], str]] = [
        ((x.astype(np.float64),), "must be float32, not float64"),
        ((x.astype(">f4"),), "must be float32, not >f4"),
        ((torch.from_numpy(x).half(),), "must be float32, not float16"),
        ((torch.empty(2, 3, 17, 19, device="meta"),), "the tensor is on meta"),
        ((x[:, :2],), r"shape \[N, 3, 17, 19\], not \[2, 2, 17, 19\]"),
        ((x[0],), r"shape \[N, 3, 17, 19\], not \[3, 17, 19\]"),
        ((np.float32(3) * np.ones((), np.float32),), "must be a NumPy array|must be of shape"),
        ((x.tolist(),), "must be a NumPy array or a PyTorch tensor, not list"),
        ((x, x), "takes 1 inputs, 2 were given"),
        ((), "takes 1 inputs, 0 were given"),
    ]
    for arguments, message in wrong:
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            program(*arguments)
        assert "\n" not in str(caught.value)


def test_two_inputs() -> None:
    from budwood.engine.graph import Add

    graph = Graph({"x": (3, 4, 4), "y": (3, 4, 4)}, (Add("s", ("x", "y")),), ("s",))
    program = Program(graph)
    x, y = (np.random.default_rng(k).standard_normal((5, 3, 4, 4), np.float32) for k in (0, 1))
    np.testing.assert_array_equal(program(x, y), x + y)
    with pytest.raises(ValueError, match=r"different numbers of images: \[5, 4\]"):
        program(x, y[:4])


def test_plans_are_made_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = program_module.lower

    def counted(graph: Graph, count: int, isa: str) -> object:
        made.append(count)
        return real(graph, count, isa)

    monkeypatch.setattr(program_module, "lower", counted)
    program = Program(small(), threads=1)
    assert made == []
    program(images(21))
    assert made == [4, 1]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: program(images(4)), range(16)))
    assert made == [4, 1]
    with pytest.raises(UserError, match=r"choose from \[1, 4, 16\]"):
        program.plan(3)


def test_calls_from_many_threads_give_the_same_bits(program: Program) -> None:
    batches = [images(count) for count in (1, 7, 16, 21)]
    alone = [program(x) for x in batches]
    failed = threading.Event()

    def call(k: int) -> None:
        for _ in range(5):
            if not np.array_equal(program(batches[k % 4]), alone[k % 4]):
                failed.set()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(16)))
    assert not failed.is_set()


def test_results_do_not_depend_on_threads() -> None:
    x = images(21)
    answers = [Program(small(), threads=threads)(x) for threads in (1, 2, 3)]
    assert all(np.array_equal(y, answers[0]) for y in answers)


def test_threads_from_the_argument_the_environment_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUDWOOD_THREADS", raising=False)
    if hasattr(os, "sched_getaffinity"):
        assert default_threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("BUDWOOD_THREADS", "3")
    assert Program(small()).threads == 3
    assert Program(small(), threads=2).threads == 2
    for value in ("0", "-1", "many"):
        monkeypatch.setenv("BUDWOOD_THREADS", value)
        with pytest.raises(UserError, match=f"BUDWOOD_THREADS={value}"):
            Program(small())
    with pytest.raises(ValueError, match="threads must be 1 or more"):
        Program(small(), threads=0)


def test_what_it_says_of_itself(program: Program) -> None:
    assert program.classes == ("a", "b", "c", "d", "e") and program.preprocessing is None
    assert (program.input_shape, program.output_shape) == ((3, 17, 19), (5,))
    assert not program.gives_probabilities
    graph = program.graph
    assert Program(graph.with_nodes([*graph, Softmax("s", ("fc",))], ["s"])).gives_probabilities
    for classes, outputs in ((["a", "b"], ("fc",)), (["a"] * 5, ("fc", "p"))):
        with pytest.raises(ValueError, match="class names"):
            Program(small(outputs), classes=classes)


def test_it_needs_no_pytorch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from budwood.engine.graph import Graph, Activate, Activation\n"
        "from budwood.engine.program import Program\n"
        "p = Program(Graph({'x': (2, 4, 4)}, (Activate('y', ('x',), Activation('relu')),), ('y',)))\n"
        "x = np.random.randn(3, 2, 4, 4).astype(np.float32)\n"
        "assert np.array_equal(p(x), np.maximum(x, 0))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- explain --------------------------------------------------------------------------------------------------


def test_explain_measures_every_step(program: Program) -> None:
    found = program.profile(batch=4, rounds=3)
    assert [row.name for row in found.rows] == [step.node for step in program.plan(4).steps]
    assert found.ms > 0 and found.rounds == 3 and all(row.ms >= 0 for row in found.rows)
    conv = next(row for row in found.rows if row.name == "c" and row.flops)
    weight = program.graph.node("c").weight  # type: ignore[union-attr]
    assert conv.sparsity == pytest.approx(np.mean(weight == 0))
    assert conv.flops == pytest.approx(2 * np.count_nonzero(weight) * 9 * 10)
    text = program.explain(batch=1, rounds=1)
    for word in ("layer", "zeros", "GFLOP/s", "ceiling", "kernel", "why", "fc", conv.kernel):
        assert word in text


def test_the_table_is_exact(program: Program) -> None:
    steps = [
        StepInfo("conv\x1b[31m", "Conv", "sparse", "90 % zeros", (8, 4, 4), 0.9, 2e6),
        StepInfo("pool", "Pool", "pool", "", (8, 2, 2)),
    ]
    named = replace_name(program, "net")
    found = explain.from_times(named, steps, 4, [0.02, 0.01], 0.035, 7, 200.0, "avx2")
    assert explain.text(found).splitlines() == [
        "net: batch 4, 2 threads, avx2; medians of 7 rounds, ms an image; GFLOP/s of non-zero weights; "
        "ceiling 200 GFLOP/s, the rate of multiply-adds alone",
        "layer      op    output     zeros     ms  GFLOP/s  ceiling  kernel  why",
        "-" * 78,
        "conv?[31m  Conv  8 x 4 x 4  90.0%  0.020    100.0      50%  sparse  90 % zeros",
        "pool       Pool  8 x 2 x 2         0.010                    pool",
        "-" * 78,
        "all                                0.035     57.1      29%",
    ]
    assert found.rows[0].share == pytest.approx(0.5) and found.rate == pytest.approx(2e6 / 0.035 / 1e6)


def replace_name(program: Program, name: str) -> Program:
    return Program(program.graph, name=name, threads=2)


def test_explain_only_for_plans_there_are(program: Program) -> None:
    assert CHUNKS == (16, 4, 1)
    with pytest.raises(UserError, match="no plan for 3 images"):
        program.explain(batch=3)
