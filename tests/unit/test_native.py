"""The native floor: every kernel, on every instruction set of this machine. Needs no PyTorch."""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood.core.errors import UserError
from budwood.engine import native

LANES = {"avx512": 16, "avx2": 8, "neon": 4, "plain": 4}
TILE = 6
"""Vectors a pass, as in the kernel."""

ISAS = native.instruction_sets()


def csr(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense [M, K] -> values, columns, row_pointer."""
    rows, columns = np.nonzero(weights)
    pointer = np.concatenate([[0], np.cumsum(np.count_nonzero(weights, axis=1))])
    return weights[rows, columns], columns.astype(np.int32), pointer.astype(np.int32)


def problem(rows: int, depth: int, width: int, density: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Weights [rows, depth], panel [depth, width], bias [rows]."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((rows, depth), np.float32) * (random.random((rows, depth)) < density)
    panel = random.standard_normal((depth, width), np.float32)
    return weights.astype(np.float32), panel, random.standard_normal(rows, np.float32)


def errors(out: np.ndarray, weights: np.ndarray, panel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Distance of every output to the float64 product."""
    exact = weights.astype(np.float64) @ panel.astype(np.float64) + bias.astype(np.float64)[:, None]
    assert out.dtype == np.float32 and out.shape == exact.shape
    return np.abs(out - exact)


def assert_close(out: np.ndarray, weights: np.ndarray, panel: np.ndarray, bias: np.ndarray) -> None:
    """Every output within the standard bound of its sum: one rounding (2^-24) of the sum of magnitudes for each of
    n products, the bias and the total. Another float32 product is no yardstick at small sizes, where its error may
    happen to be nothing; see test_as_exact_as_numpy for large ones."""
    magnitude = np.abs(weights).astype(np.float64) @ np.abs(panel) + np.abs(bias)[:, None]
    roundings = np.count_nonzero(weights, axis=1)[:, None] + 2
    assert (errors(out, weights, panel, bias) <= roundings * 2.0**-24 * magnitude).all()


def widths(isa: str) -> list[int]:
    """Below, at and above one vector and one tile, and several tiles."""
    vector, tile = LANES[isa], LANES[isa] * TILE
    edges = {near + d for near in (vector, 2 * vector, tile, tile + vector, 3 * tile) for d in (-1, 0, 1)}
    return sorted({0, 1, 2, *edges})


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("isa", ISAS)
def test_product_at_every_width(isa: str, density: float) -> None:
    for width in widths(isa):
        for rows, depth in [(1, 1), (3, 17), (16, 256)]:
            weights, panel, bias = problem(rows, depth, width, density, seed=width)
            assert_close(native.spmm(*csr(weights), panel, bias, isa=isa), weights, panel, bias)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("isa", ISAS)
def test_as_exact_as_numpy(isa: str, density: float) -> None:
    weights, panel, bias = problem(64, 1152, 784, density)
    out = native.spmm(*csr(weights), panel, bias, isa=isa)
    dense = weights @ panel + bias[:, None]
    assert errors(out, weights, panel, bias).max() <= 2 * errors(dense, weights, panel, bias).max()


@given(
    rows=st.integers(0, 9),
    depth=st.integers(0, 40),
    width=st.integers(0, 230),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    isa=st.sampled_from(ISAS),
)
@settings(max_examples=200, deadline=None)
def test_product_of_any_size(rows: int, depth: int, width: int, density: float, seed: int, isa: str) -> None:
    weights, panel, bias = problem(rows, depth, width, density, seed)
    assert_close(native.spmm(*csr(weights), panel, bias, isa=isa), weights, panel, bias)


@pytest.mark.parametrize("isa", ISAS)
def test_empty_rows_are_the_bias(isa: str) -> None:
    weights, panel, bias = problem(8, 30, 101, 0.5)
    weights[[0, 3, 4, 7]] = 0
    out = native.spmm(*csr(weights), panel, bias, isa=isa)
    assert_close(out, weights, panel, bias)
    assert (out[[0, 3, 4, 7]] == bias[[0, 3, 4, 7], None]).all()
    assert (native.spmm(*csr(np.zeros_like(weights)), panel, isa=isa) == 0).all()


def test_repeated_and_unsorted_columns_add_up() -> None:
    panel = np.arange(6, dtype=np.float32).reshape(2, 3)
    columns = np.array([1, 0, 1], np.int32)
    out = native.spmm(np.array([2, 1, 3], np.float32), columns, np.array([0, 3], np.int32), panel)
    assert out.tolist() == [[15, 21, 27]]


@pytest.mark.parametrize("isa", ISAS)
def test_an_output_does_not_depend_on_its_place_in_the_panel(isa: str) -> None:
    weights, panel, bias = problem(4, 50, 1, 0.5)
    out = native.spmm(*csr(weights), np.repeat(panel, 211, axis=1), bias, isa=isa)
    assert (out == out[:, :1]).all()


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_nothing_is_written_outside_the_output(isa: str, offset: int) -> None:
    for width in widths(isa):
        weights, panel, bias = problem(3, 9, width, 0.5)
        memory = np.full(64 + 3 * width + 64, 12345, np.float32)
        inside = slice(32 + offset, 32 + offset + 3 * width)
        answer = native.spmm(*csr(weights), panel, bias, out=memory[inside].reshape(3, width), isa=isa)
        assert_close(answer, weights, panel, bias)
        assert np.shares_memory(answer, memory) or width == 0
        memory[inside] = 12345
        assert (memory == 12345).all()


def before_a_locked_page(array: np.ndarray) -> tuple[np.ndarray, mmap.mmap]:
    """A copy of `array` whose end is the end of the readable memory: one byte further is a crash."""
    page = mmap.PAGESIZE
    pages = (array.nbytes + page - 1) // page
    memory = mmap.mmap(-1, (pages + 1) * page)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + pages * page), ctypes.c_size_t(page), 0) == 0
    copy = whole[pages * page - array.nbytes : pages * page].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy, memory


@pytest.mark.skipif(sys.platform != "linux", reason="locks a page of memory")
@pytest.mark.parametrize("isa", ISAS)
def test_nothing_is_read_past_the_end_of_an_input(isa: str) -> None:
    for width in widths(isa)[1:]:
        weights, panel, bias = problem(3, 9, width, 1.0)
        inputs = [*csr(weights), panel, bias]
        locked = [before_a_locked_page(array)[0] for array in inputs]
        assert_close(native.spmm(*locked, isa=isa), weights, panel, bias)


def good() -> dict[str, Any]:
    weights, panel, bias = problem(3, 5, 7, 1.0)
    values, columns, pointer = csr(weights)
    return {"values": values, "columns": columns, "row_pointer": pointer, "panel": panel, "bias": bias}


BAD: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("values", lambda g: g["values"].astype(np.float64), "values must be float32"),
    ("columns", lambda g: g["columns"].astype(np.int64), "columns must be int32"),
    ("row_pointer", lambda g: g["row_pointer"].astype(np.uint32), "row_pointer must be int32"),
    ("panel", lambda g: g["panel"].astype(np.float16), "panel must be float32"),
    ("panel", lambda g: g["panel"].reshape(-1), r"panel must have 2 dimension\(s\), not 1"),
    ("panel", lambda g: np.asfortranarray(g["panel"]), "panel must be C-contiguous"),
    ("panel", lambda g: np.zeros((5, 14), np.float32)[:, ::2], "panel must be C-contiguous"),
    ("values", lambda g: np.zeros(30, np.float32)[::2], "values must be C-contiguous"),
    ("values", lambda g: np.zeros(61, np.uint8)[1:].view(np.float32), "values must be aligned"),
    ("bias", lambda g: g["bias"][:2], "bias has 2 entries for 3 rows"),
    ("columns", lambda g: g["columns"][:-1], "columns has 14 entries, values has 15"),
    ("columns", lambda g: np.where(g["columns"] == 4, 5, g["columns"]), r"columns\[4\] is 5, the panel has 5 rows"),
    ("columns", lambda g: g["columns"] - 1, r"columns\[0\] is -1"),
    ("row_pointer", lambda g: np.zeros(0, np.int32), "one entry more than there are rows"),
    ("row_pointer", lambda g: np.array([1, 5, 10, 15], np.int32), "row_pointer must begin with 0"),
    ("row_pointer", lambda g: np.array([0, 10, 5, 15], np.int32), "row_pointer falls after row 1"),
    ("row_pointer", lambda g: np.array([0, 5, 10, 99], np.int32), "row_pointer ends with 99, values has 15"),
    ("out", lambda g: np.zeros((3, 6), np.float32), "out must be 3 x 7"),
    ("out", lambda g: np.zeros((3, 7)), "out must be float32"),
    ("out", lambda g: g["panel"][:3], "out must not overlap an input"),
    ("isa", lambda g: "avx9", f"no instruction set 'avx9' here; available: {', '.join(ISAS)}"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD, ids=[f"{i}-{b[0]}" for i, b in enumerate(BAD)])
def test_bad_input_is_refused(name: str, spoil: Callable[[dict[str, Any]], Any], message: str) -> None:
    arguments = good()
    with pytest.raises(ValueError, match=message):
        native.spmm(**{**arguments, name: spoil(arguments)})


def test_a_read_only_input_is_taken_and_a_read_only_output_refused() -> None:
    arguments = good()
    for array in arguments.values():
        array.flags.writeable = False
    out = native.spmm(**arguments)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        native.spmm(**arguments, out=out)


def test_other_threads_run_meanwhile() -> None:
    weights, panel, bias = problem(256, 512, 4096, 1.0)
    entries = csr(weights)
    ticks: list[int] = []
    done = threading.Event()
    thread = threading.Thread(target=lambda: [ticks.append(native.spmm(*entries, panel, bias).size), done.set()])
    thread.start()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    thread.join()
    assert ticks == [256 * 4096] and turns > 1


def chosen(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from budwood.engine import native; print(native.instruction_set())"
    environment = {**os.environ, "BUDWOOD_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_forces_a_set(isa: str) -> None:
    assert chosen(isa).stdout.strip() == isa


def test_the_best_set_is_the_default() -> None:
    assert chosen("").stdout.strip() == ISAS[0]
    assert ISAS[-1] == "plain"


def test_an_unavailable_set_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDWOOD_ISA", "avx9")
    with pytest.raises(UserError, match=f"^BUDWOOD_ISA=avx9 is not available .* {', '.join(ISAS)}$"):
        native.instruction_set.__wrapped__()
    finished = chosen("avx9")
    assert finished.returncode != 0 and "available" in finished.stderr.splitlines()[-1]


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, budwood.engine.native; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
