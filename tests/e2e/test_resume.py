"""A run that is killed at any moment and called again comes to the same bits as one that was not."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budwood.core.checkpoint import Checkpoint

DRIVER = '''
"""Calls the command in a child process again and again until it ends; every call but the last is killed.

The moment is what a plan of "WHERE COUNT" words says: at the COUNT-th step of the optimizer, or before or after the
COUNT-th rename of a temporary file (which is how the state, and everything else, gets its name). "seconds X" kills X
seconds after the state is there. Without epochs in between, the state is saved after every step.
"""
import functools, importlib, json, os, random, signal, sys, threading, time
from pathlib import Path

plan, every_step, signal_name, *arguments = json.loads(sys.argv[1])
fatal = getattr(signal, signal_name)
import torch
from budwood.cli import main
full = importlib.import_module("budwood.transfer.full")
importlib.import_module("budwood.cli.transfer")
if every_step:
    full.Fit = functools.partial(full.Fit, save_seconds=-1.0)


def counted(owner, name, count, before):
    original, calls = getattr(owner, name), 0

    def wrapped(*a, **k):
        nonlocal calls
        calls += 1
        if calls == count and before:
            os.kill(os.getpid(), fatal)
        result = original(*a, **k)
        if calls == count and not before:
            os.kill(os.getpid(), fatal)
        return result

    setattr(owner, name, wrapped)


def later(seconds):
    while not list(Path().glob("*/*/state.safetensors")):
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(os.getpid(), fatal)


for moment in [*plan, ""]:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what it runs behind
        where, _, count = moment.partition(" ")
        if where == "step":
            counted(torch.optim.SGD, "step", int(count), True)
        elif where in ("before", "after"):
            counted(os, "replace", int(count), where == "before")
        elif where == "seconds":
            threading.Thread(target=later, args=[float(count)], daemon=True).start()
        code = 0
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    states = [str(path) for path in Path().glob("*/*/state.safetensors")]
    print(json.dumps([os.waitstatus_to_exitcode(status), len(states)]))
    if os.waitstatus_to_exitcode(status) == 0:
        break
'''
EPOCHS, STEPS_PER_EPOCH = 4, 6  # 42 training images in batches of 8, the last with 2


def arguments(place: Path, workers: int, out: str) -> list[str]:
    return [
        "transfer", str(place / "shapes"), "--model", "py:toynet.small", "--prune", "gmp", "--sparsity", "0.8",
        "--no-dense", "--epochs", str(EPOCHS), "--batch-size", "8", "--ema", "0.9", "--no-measure-latency",
        "--workers", str(workers), "--out", out, "--json",
    ]  # fmt: skip


@pytest.fixture
def driver(process: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "driver.py").write_text(DRIVER)

    def call(words: list[str], plan: list[str], every_step: bool = True, fatal: str = "SIGKILL") -> Any:
        return process("driver.py", json.dumps([plan, every_step, fatal, *words]))

    return call


def essence(folder: Path) -> dict[str, Any]:
    """All that came of the one run below, but for clocks."""
    (result,) = folder.glob("*/result.json")
    facts: dict[str, Any] = json.loads(result.read_text())
    checkpoint = Checkpoint.load(result.parent / "checkpoint.safetensors")
    assert checkpoint.mask.holds(checkpoint.state) and facts["sparsity"] == pytest.approx(0.8, abs=1e-3)
    kept = ("run_id", "metrics", "history", "mask_digest", "sparsity", "checkpoint_bytes")
    return {name: facts[name] for name in kept} | {
        "digest": checkpoint.digest(),
        "rows": (result.parent / "metrics.jsonl").read_text(),
        "files": sorted(path.name for path in result.parent.iterdir()),
    }


@pytest.fixture(scope="module")
def uninterrupted(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run comes to that nothing happens to."""
    import subprocess

    folder = tmp_path_factory.mktemp("whole")
    environment = dict(os.environ) | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "budwood", *arguments(place, 0, "whole")]
    subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, timeout=240)
    found = essence(folder / "whole")
    assert found["files"] == ["checkpoint.safetensors", "metrics.jsonl", "result.json", "spec.json"]
    assert len(found["history"]) == EPOCHS
    return found


# Each call of a plan goes on where the one before was killed, so its counts are from there on.
PLANS = {
    "within steps": (0, ["step 1", "step 5", "step 4", "step 9"]),
    "around renames": (0, ["after 3", "before 5", "after 8", "before 4", "before 1", "after 2"]),
    "loader process": (1, ["step 4", "before 7", "after 9"]),
}


@pytest.mark.parametrize("name", PLANS)
def test_killed_and_called_again(
    name: str, driver: Callable[..., Any], place: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    workers, plan = PLANS[name]
    said = driver(arguments(place, workers, "killed"), plan)
    assert said.code == 0, said
    ends = [json.loads(line) for line in said.out.splitlines() if re_end(line)]
    assert [code for code, _ in ends] == [-signal.SIGKILL] * len(plan) + [0]
    assert sum(states for _, states in ends) >= len(plan) - 1  # it did go on from a state, and not from the start
    assert ends[-1][1] == 0
    assert essence(tmp_path / "killed") == uninterrupted


def re_end(line: str) -> bool:
    return line.startswith("[") and line.endswith("]") and line.count(",") == 1


@pytest.mark.slow
def test_saved_at_the_end_of_an_epoch_only(
    driver: Callable[..., Any], place: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """As it is with the usual minute between two saves: what the killed epoch had done is done again."""
    said = driver(arguments(place, 0, "killed"), [f"step {STEPS_PER_EPOCH + 3}", "step 2"], every_step=False)
    assert said.code == 0, said
    assert essence(tmp_path / "killed") == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(
    seed: int, workers: int, driver: Callable[..., Any], place: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    import random

    chance = random.Random(seed)
    plan = [f"seconds {chance.uniform(0, 0.3):.4f}" for _ in range(6)]
    said = driver(arguments(place, workers, "killed"), plan)
    assert said.code == 0, said
    assert f"[{-signal.SIGKILL}, 1]" in said.out  # at least one was killed with a state to go on from
    assert essence(tmp_path / "killed") == uninterrupted


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_says_how_to_go_on(
    workers: int, driver: Callable[..., Any], place: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    said = driver(arguments(place, workers, "stopped"), ["step 9", "after 3"], fatal="SIGINT")
    assert said.code == 0, said
    ends = [json.loads(line) for line in said.out.splitlines() if re_end(line)]
    assert ends == [[130, 1], [130, 1], [0, 0]]
    assert said.lines == ["budwood: stopped; run the same command again to go on where it was"] * 2
    assert essence(tmp_path / "stopped") == uninterrupted


def test_started_over_where_that_is_asked_for(budwood: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """--no-resume does all steps again: the state that is there is not looked at, even where it is damaged."""
    words = ["transfer", place / "few", "--model", "py:toynet.small", "--epochs", "1", "--no-measure-latency"]
    assert budwood(*words, "--workers", "0").code == 0
    (result,) = (tmp_path / "runs").glob("*/result.json")
    before, metrics = result.read_text(), (result.parent / "metrics.jsonl").read_text()
    result.unlink()
    (result.parent / "state.safetensors").write_bytes(b"damaged")
    refused = budwood(*words, "--workers", "0", "--json")
    assert refused.code == 2 and len(refused.lines) == 1 and "is damaged; delete it" in refused.err
    assert not result.exists()
    assert budwood(*words, "--workers", "0", "--no-resume").code == 0
    assert json.loads(result.read_text())["metrics"] == json.loads(before)["metrics"]
    assert (result.parent / "metrics.jsonl").read_text() == metrics
    assert not (result.parent / "state.safetensors").exists()
