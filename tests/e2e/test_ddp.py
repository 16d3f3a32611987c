"""Two processes under torchrun (gloo): one mask, one result, one writer, and an end if one of them fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from budwood.core.checkpoint import Checkpoint

DRIVER = '''
"""The command, with a log of every file this process writes, and what it holds at the end, in rank{N}.json."""
import json, os, sys
from pathlib import Path

rank, (fail, *arguments) = os.environ["RANK"], json.loads(sys.argv[1])
written = set()


def hook(event, args):
    if event == "open" and isinstance(args[0], str) and isinstance(args[2], int):
        changes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        path = args[0] if changes else None
    elif event in ("os.mkdir", "os.remove", "os.rename"):
        path = args[0]
    else:
        return
    if path and "runs" in Path(os.path.abspath(path)).parts:
        written.add(f"{event} {path}")


sys.addaudithook(hook)
import torch
from budwood.cli import main
from budwood.train.fit import Fit

ends = []
run = Fit.run


def recorded(self):
    fitted = run(self)
    ends.append([fitted.mask.digest(), {n: t.tolist() for n, t in self.model.state_dict().items()}])
    return fitted


Fit.run = recorded
if fail and rank == "1":
    step, calls = torch.optim.SGD.step, []

    def failing(self, *a, **k):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return step(self, *a, **k)

    torch.optim.SGD.step = failing
try:
    main(arguments)
finally:
    Path(f"rank{rank}.json").write_text(json.dumps({"ends": ends, "written": sorted(written)}))
'''


def arguments(place: Path) -> list[str]:
    """42 images, 6 a step: every process has 3 of them."""
    return [
        "transfer", str(place / "shapes"), "--model", "py:toynet.plain", "--prune", "gmp", "--sparsity", "0.7",
        "--mode", "linear", "full", "--epochs", "2", "--batch-size", "6", "--ema", "0.5", "--distill", "0.3",
        "--no-measure-latency", "--workers", "0", "--json",
    ]  # fmt: skip


@pytest.fixture
def torchrun(process: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "driver.py").write_text(DRIVER)

    def call(words: list[str], fail: bool = False) -> Any:
        how = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        return process(*how, "driver.py", json.dumps([fail, *words]))

    return call


def test_two_processes_are_as_one(torchrun: Callable[..., Any], budwood: Any, place: Path, tmp_path: Path) -> None:
    said = torchrun(arguments(place))
    assert said.code == 0, said
    rows = json.loads(said.out)  # printed once
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert len(first["ends"]) == 2 and first["ends"] == second["ends"]  # mask and weights of both full transfers
    assert second["written"] == [] and len(first["written"]) > 10

    alone = budwood(*arguments(place), "--out", "alone")
    assert alone.code == 0, alone
    assert [row["run_id"] for row in json.loads(alone.out)] == [row["run_id"] for row in rows]
    for row in rows:
        files = [tmp_path / where / row["run_id"] / "checkpoint.safetensors" for where in ("runs", "alone")]
        together, single = (Checkpoint.load(file) for file in files)
        assert together.mask.digest() == row["mask_digest"] and together.mask.holds(together.state)
        assert together.mask == single.mask
        for name, value in single.state.items():
            torch.testing.assert_close(together.state[name], value, rtol=1e-3, atol=1e-4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")}
    assert budwood(*arguments(place)).code == 0  # and one process takes what two have done
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")} == before


def test_one_failing_process_ends_the_run(
    torchrun: Callable[..., Any], budwood: Any, place: Path, tmp_path: Path
) -> None:
    """It must not hang (the call has a time limit), and nothing that looks finished may be left."""
    words = [word for word in arguments(place) if word != "linear"]
    said = torchrun(words, fail=True)
    assert said.code != 0
    assert "budwood: the system: No space left on device" in said.err
    assert not list(tmp_path.glob("runs/*/result.json"))
    assert budwood(*words).code == 0


@pytest.mark.slow
def test_bad_input_ends_both(torchrun: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    said = torchrun([*arguments(place), "--option", "nothing=1"])
    assert said.code != 0 and "gmp has no option nothing" in said.err and said.out == ""
    said = torchrun(
        ["prune", "py:toynet.small", "--method", "dense", "--data", str(place / "shapes"), "--batch-size", "3"]
    )
    assert said.code != 0 and "2 processes cannot share a batch of 3: change --batch-size" in said.err
    assert not list(tmp_path.glob("runs/*/result.json"))
