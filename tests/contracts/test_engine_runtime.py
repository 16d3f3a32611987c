"""Programs at work: the same bits from any number of threads and callers, after a fork, and in steady memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from budwood.engine import native
from budwood.engine.from_export import graph_from_module
from budwood.engine.graph import Graph
from budwood.engine.lower import lower
from budwood.engine.passes import optimize
from budwood.engine.program import CHUNKS, Program
from budwood.testing.engine import draw_inputs, meaning, rms
from budwood.testing.graphs import random_graph
from budwood.testing.networks import randomize

ISAS = native.instruction_sets()
COUNTS = (1, 3, 4, 16, 21)


class Net(torch.nn.Module):
    """Stem and pooling, sparse and dense convolutions, depthwise, squeeze-excite, residual, classifier."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, 2, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.a = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.SiLU())
        self.b = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.BatchNorm2d(32), nn.Hardswish())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1))
        self.c = nn.Sequential(nn.Conv2d(32, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.GELU(), nn.Conv2d(48, 48, 1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 77), nn.Softmax(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.b(self.a(x))
        return self.head(self.c(x + y * self.gate(y).sigmoid()))


@pytest.fixture(scope="module")
def graph() -> Graph:
    model = randomize(Net(), 0).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in (model.a[0], model.c[0]):
            module.weight *= torch.rand(module.weight.shape, generator=random) < 0.1  # type: ignore[operator]
    return optimize(graph_from_module(model, torch.zeros(2, 3, 65, 77)))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 65, 77), np.float32)


@pytest.mark.parametrize("isa", ISAS)
def test_any_number_of_threads_gives_the_same_bits(isa: str, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("budwood.engine.program.instruction_set", lambda: isa)
    programs = [Program(graph, threads=threads) for threads in (1, 2, 3, 4)]
    for count in COUNTS:
        x = images(count)
        expected = programs[0](x)
        assert rms(expected - meaning(graph, [x])[0]) < 1e-5 * rms(expected)
        for program in programs:
            for _ in range(3):
                assert np.array_equal(program(x), expected), f"{isa}: {program.threads} threads, {count} images"


@pytest.mark.parametrize("isa", ISAS)
def test_any_number_of_threads_on_random_graphs(isa: str) -> None:
    for seed in range(20):
        graph = optimize(random_graph(seed, 12))
        count = (1, 4, 16)[seed % 3]
        inputs = [x[:count] for x in draw_inputs(graph, count, seed)]
        plan = lower(graph, count, isa)
        found: list[list[np.ndarray]] = []
        for threads in (1, 2, 3, 4):
            found.append([np.full((count, *graph.shapes[name]), np.nan, np.float32) for name in graph.outputs])
            plan.run(inputs, found[-1], threads)
        for outputs in found[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(outputs, found[0], strict=True)), f"{isa} {seed}"


MANY_THREADS = """
import numpy as np
from budwood.engine.program import Program
from budwood.testing.engine import draw_inputs
from budwood.testing.graphs import random_graph
graph = random_graph(0, 8)
inputs = [x[:16] for x in draw_inputs(graph, 16)]
one, *more = (Program(graph, threads=threads).run(inputs) for threads in (1, 64, 1000, 2))
print(all(np.array_equal(a, b) for outputs in more for a, b in zip(outputs, one)))
"""


def test_far_more_threads_than_there_are_cores() -> None:
    """In a process of its own, as the pool keeps its workers."""
    done = subprocess.run([sys.executable, "-c", MANY_THREADS], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "True", done.stderr


STARTED = """
import os
from budwood.engine.program import Program
from budwood.testing.engine import draw_inputs
from budwood.testing.graphs import random_graph
graph = random_graph(0, 8)
inputs = [x[:16] for x in draw_inputs(graph, 16)]
program = Program(graph, threads=2)
program.plan(16)
counts = []
for _ in range(3):
    counts.append(len(os.listdir("/proc/self/task")))
    program.run(inputs)
print(*(count - counts[0] for count in counts))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_the_pool_starts_with_the_first_run() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=100)
    assert done.stdout == "0 1 1\n", done.stderr


def test_callers_side_by_side_get_what_they_get_alone(graph: Graph) -> None:
    for threads in (1, 2):
        program = Program(graph, threads=threads)
        given = [images(count) for count in COUNTS] * 4
        alone = Program(graph, threads=threads)
        expected = [alone(x) for x in given[: len(COUNTS)]] * 4
        with ThreadPoolExecutor(4) as pool:  # the plans are made side by side too
            found = list(pool.map(program, given))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_image_does_not_depend_on_its_neighbours(graph: Graph) -> None:
    """Its bits are the same wherever it stands in a piece of the same size, and whatever the others are.

    Pieces of different sizes lay their pixels out differently and add in another order: they agree within rounding.
    """
    program = Program(graph, threads=1)
    x = images(16)
    together = program(x)
    assert np.array_equal(program(x[::-1].copy())[::-1], together)
    others = images(17)[:16]
    others[5] = x[5]
    assert np.array_equal(program(others)[5], together[5])
    exact = meaning(graph, [x])[0]
    for size in CHUNKS:
        pieces = np.full_like(together, np.nan)
        program.plan(size).run_each([x], [pieces], 16 // size, 1)
        assert rms(pieces - exact) <= 2 * rms(together - exact) + 2**-24 * rms(exact)
        np.testing.assert_allclose(pieces, together, rtol=1e-4, atol=1e-7)


# -- forks ------------------------------------------------------------------------------------------------------

LONGEST = 20
"""Seconds that a child may take; it needs a fraction of one."""


def in_child(work: Callable[[], bool]) -> None:
    """Runs `work` in a forked child, which must answer True in time."""
    child = os.fork()
    if child == 0:
        answer = 1
        try:
            answer = 0 if work() else 2
        finally:
            os._exit(answer)
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status}"
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_goes_on_and_so_does_the_parent(graph: Graph) -> None:
    program = Program(graph, threads=3)
    x = images(5)
    expected = program(x)  # the pool is started

    def grandchild() -> bool:
        right = np.array_equal(program(x), expected)
        in_child(lambda: np.array_equal(program(x), expected))
        return right and np.array_equal(program(images(1)), Program(graph, threads=1)(images(1)))

    for _ in range(3):
        in_child(grandchild)
        assert np.array_equal(program(x), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_run(graph: Graph) -> None:
    """Another thread's loop is underway in the pool when the child is made."""
    program, other = Program(graph, threads=2), Program(graph, threads=2)
    x = images(16)
    expected = program(x)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(lambda: [np.array_equal(other(x), expected) for _ in range(30)])
        while not busy.done():
            in_child(lambda: np.array_equal(program(x), expected))
        assert all(busy.result())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_a_plan_is_made(graph: Graph) -> None:
    """Another thread is at work on the very plan that the child needs."""
    x = images(16)
    expected = Program(graph, threads=2)(x)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            program = Program(graph, threads=2)
            making = pool.submit(program, x)
            time.sleep(0.01)
            in_child(lambda program=program: np.array_equal(program(x), expected))  # type: ignore[misc]
            assert np.array_equal(making.result(), expected)


NO_MORE_THREADS = """
import resource, sys
import numpy as np
from budwood.engine.saved import load_program

alone, shared = load_program(sys.argv[1], threads=1), load_program(sys.argv[1], threads=3)
x = np.random.default_rng(0).standard_normal((4, *alone.input_shape)).astype(np.float32)
expected = alone(x)
shared.plan(4)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (4 << 20)  # less than a thread's stack
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
for _ in range(3):
    assert np.array_equal(shared(x), expected)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert np.array_equal(shared(x), expected), "with threads after all"
print("right")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_system_that_gives_no_threads(tmp_path: Path) -> None:
    path = tmp_path / "small.budwood"
    Program(optimize(graph_from_module(torch.nn.Conv2d(3, 40, 3).eval(), torch.zeros(2, 3, 9, 9)))).save(path)
    made = subprocess.run(
        [sys.executable, "-c", NO_MORE_THREADS, str(path)], capture_output=True, text=True, timeout=LONGEST
    )
    assert made.stdout == "right\n", made.stderr


class Predicted(torch.utils.data.Dataset[torch.Tensor]):
    """A data set that runs the program for each of its items."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.program(torch.from_numpy(images(index + 1)))[0]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_data_loaders_workers_may_use_it(graph: Graph) -> None:
    program = Program(graph, threads=2)
    data = Predicted(program)
    expected = torch.stack([data[i] for i in range(8)])
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=LONGEST
    )
    for _ in range(2):
        assert torch.equal(torch.cat(list(loader)), expected)
    assert torch.equal(data[7], expected[7])


# -- memory -----------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow(graph: Graph) -> None:
    program = Program(graph, threads=2)
    x = images(5)
    for _ in range(10):
        program(x)
    before = resident()
    for _ in range(200):
        program(x)
    assert resident() - before < 2 << 20
    x = images(21)
    # Callers side by side have an arena each, in whole pages of 2 MB, and no more however often they call.
    arenas = sum(program.plan(size).arena_bytes + (2 << 20) for size in program.chunks)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(program, [x] * 40))
    # Three callers, of which one has the pool, and with it a second thread.
    assert resident() - before < 4 * arenas + (4 << 20)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_programs_give_their_memory_back(graph: Graph) -> None:
    x = images(16)

    def use() -> None:
        Program(graph, threads=2)(x)

    for _ in range(3):
        use()
    before = resident()
    for _ in range(20):
        use()
    arena = Program(graph).plan(16).arena_bytes
    assert arena > 1 << 20
    assert resident() - before < max(4 << 20, 5 * arena)


# -- the choice of instructions ---------------------------------------------------------------------------------

END_TO_END = """
import numpy as np, torch
from budwood.engine import native
from budwood.engine.program import Program
from budwood.testing.engine import draw_inputs, meaning, rms
from budwood.testing.graphs import random_graph
for seed in range(20):
    graph = random_graph(seed, 8)
    inputs = [x[:21] for x in draw_inputs(graph, 21, seed)]
    for y, wanted in zip(Program(graph, threads=2).run(inputs), meaning(graph, inputs)):
        assert rms(y - wanted) <= 1e-5 * max(rms(wanted), 1), seed
print(native.instruction_set())
"""


@pytest.mark.parametrize("isa", ISAS)
def test_a_program_on_instructions_that_are_forced(isa: str) -> None:
    environment = {**os.environ, "BUDWOOD_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", END_TO_END], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa
