"""The same study on a Ray cluster of several workers: the same results, though one of them is killed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from budwood.core.result import Result
from budwood.study.executors import ray as executor
from budwood.study.file import read
from budwood.study.grid import expand
from budwood.study.jobs import Context, jobs_of, work

from .conftest import Said, surroundings
from .test_study import accuracies, done_in, rows, wait_for, written

ray = pytest.importorskip("ray", reason="Ray is not installed")
if not Path("/proc/self").exists():
    pytest.skip("needs /proc", allow_module_level=True)


MARK = "BUDWOOD_TEST_CLUSTER"
"""In the environment of every process of the cluster, so that no other Ray on the machine is touched."""


@pytest.fixture
def cluster(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head with three CPUs, started as a user would; its address in RAY_ADDRESS."""
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--num-cpus=3", "--port=0"]
    command += ["--include-dashboard=false", "--disable-usage-stats"]
    own = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, for the names of sockets; "auto" looks here alone
    monkeypatch.setenv("RAY_TMPDIR", own)
    environment = surroundings(place) | {"RAY_DISABLE_IMPORT_WARNING": "1", MARK: str(tmp_path)}
    started = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=180)
    if started.returncode:
        pytest.skip(f"Ray does not start here: {started.stderr[-300:]}")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    yield "auto"
    if ray.is_initialized():
        ray.shutdown()
    for pid in processes(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(own, ignore_errors=True)


def processes(mark: Path) -> dict[int, bytes]:
    """The command lines of the cluster's processes by their number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").strip()
    return found


def ray_workers(mark: Path) -> list[int]:
    """Processes that do a job at this moment: Ray writes so into their names."""
    return [pid for pid, name in processes(mark).items() if (name + b" ").startswith(b"ray::_do ")]


def test_same_results_though_a_worker_is_killed(
    cluster: str, budwood: Callable[..., Said], place: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, place)
    command = [sys.executable, "-m", "budwood", "study", "run", str(path), "--executor", "ray", "--threads", "1"]
    driver = subprocess.Popen(command, cwd=tmp_path, env=surroundings(place) | {"RAY_ADDRESS": cluster})
    wait_for(lambda: len(done_in(tmp_path)) >= 2 and bool(ray_workers(tmp_path)))
    os.kill(ray_workers(tmp_path)[0], signal.SIGKILL)
    assert driver.wait(timeout=300) == 0
    on_ray = rows(budwood("study", "run", path, "--threads", 1, "--json"))
    assert len(on_ray) == 19
    (tmp_path / "here").mkdir()
    here = budwood("study", "run", written(tmp_path / "here", place), "--threads", 1, "--json")
    assert accuracies(rows(here)) == accuracies(on_ray)


def test_a_worker_that_does_not_see_the_folder_sends_what_it_made(
    cluster: str, budwood: Callable[..., Said], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(place))
    path = written(tmp_path, place, sparsities=[0.8], keep_checkpoints=True)
    grid = expand(read(path))
    sources = {parent: origin.source for parent, origin in grid.origins.items() if origin.source}
    keep = frozenset(spec.run_id for spec in grid.specs)
    context = Context(tmp_path / "runs", sources, grid.tasks, grid.calibration, keep)
    monkeypatch.setattr(executor, "_sees", None)  # the driver never asks; workers are told by the file, which is gone
    real = executor.write_atomic
    monkeypatch.setattr(executor, "write_atomic", lambda p, data: None if p.name == executor.TOKEN else real(p, data))
    found: dict[str, Result] = {}
    for specs in (grid.upstream, grid.transfers):
        for results in executor.run(jobs_of(specs), context):
            found |= {result.run_id: result for result in results}
    assert {result.status for result in found.values()} == {"done"}
    for run_id in found:
        assert json.loads((tmp_path / "runs" / run_id / "result.json").read_text())["run_id"] == run_id
        assert budwood("verify", tmp_path / "runs" / run_id).code == 0
    elsewhere = replace(context, root=tmp_path / "here")
    for specs in (grid.upstream, grid.transfers):
        for job in jobs_of(specs):
            for result in work(job, elsewhere):
                assert result.metrics == found[result.run_id].metrics


def test_no_cluster_is_one_line(
    budwood: Callable[..., Said], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    said = budwood("study", "run", written(tmp_path, place), "--executor", "ray")
    assert said.code == 2 and "RAY_ADDRESS" in said.lines[-1]
