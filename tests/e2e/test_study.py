"""A study: the same results as run by run, on any executor, whatever is killed on the way."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from .conftest import Said, surroundings

SMALL: dict[str, Any] = {
    "name": "toy",
    "out": "runs",
    "models": ["py:toynet.small"],
    "methods": ["magnitude", {"method": "random", "options": {"allocation": "erk"}}],
    "sparsities": [0.5, 0.8],
    "transfers": {"linear": {"seeds": 2, "recipe": {"head": "sgd"}}, "full": {"seeds": 1, "recipe": {"epochs": 2}}},
}


def written(folder: Path, place: Path, **changes: Any) -> Path:
    study = SMALL | {"tasks": [str(place / "shapes")], "upstream": {"calibration": str(place / "few")}} | changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def rows(said: Said) -> list[dict[str, Any]]:
    return json.loads(said.out)  # type: ignore[no-any-return]


def done_in(folder: Path) -> dict[str, int]:
    """run_id -> when its result was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}


def accuracies(found: list[dict[str, Any]]) -> dict[str, tuple[float, ...]]:
    return {row["run_id"]: tuple(row.get(f"test_{name}", 0) for name in ("top1", "loss", "ece")) for row in found}


def test_every_run_once_and_as_run_by_run(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    path = written(tmp_path, place, keep_checkpoints=True)
    said = budwood("study", "run", path, "--threads", torch.get_num_threads(), "--json")
    assert said.code == 0
    study = rows(said)
    assert len(study) == 4 + 5 * 3  # upstream, and each of five networks with two linear and one full transfer
    before = done_in(tmp_path)
    again = budwood("study", "run", path, "--threads", torch.get_num_threads(), "--json")
    assert accuracies(rows(again)) == accuracies(study) and done_in(tmp_path) == before

    # The dense transfers are those of `budwood transfer`, and have the same names.
    common = ("--model", "py:toynet.small", "--out", tmp_path / "alone", "--no-measure-latency", "--json")
    linear = budwood("transfer", place / "shapes", *common, "--mode", "linear", "--head", "sgd", "--seeds", 0, 1)
    full = budwood("transfer", place / "shapes", *common, "--epochs", 2)
    dense = {row["run_id"]: row for row in study if row["method"] == "dense"}
    assert accuracies(rows(linear) + rows(full)) == accuracies(list(dense.values()))

    # A network that the study pruned is what `budwood prune` makes, and its transfer what comes of that.
    pruned = budwood(
        "prune", "py:toynet.small", "--method", "magnitude", "--sparsity", 0.8, "--calibration", place / "few",
        "--out", tmp_path / "alone", "--json",
    )  # fmt: skip
    upstream = json.loads(pruned.out)
    assert upstream["run_id"] in {row["run_id"] for row in study}
    common = ("--model", tmp_path / "alone" / upstream["run_id"], *common[2:])
    alone = rows(budwood("transfer", place / "shapes", *common, "--epochs", 2))
    (mine,) = [r for r in study if (r["method"], r["sparsity"], r["transfer"]) == ("magnitude", 0.8, "full")]
    assert list(accuracies(alone).values()) == [accuracies([mine])[mine["run_id"]]]
    assert mine["mask_digest"] == alone[0]["mask_digest"] and mine["parent"] == f"run:{upstream['run_id']}"
    assert budwood("verify", tmp_path / "runs" / mine["run_id"]).code == 0


def test_the_same_images_by_two_metrics(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    """One digest, two tasks: each run is of the task, and by the metric, that its spec names."""
    for name in "ab":
        shutil.copytree(place / "shapes", tmp_path / name)
    tasks = [{"data": "a", "metric": "mean_per_class"}, {"data": "b"}]
    transfers = {"linear": {"seeds": 1, "recipe": {"head": "sgd"}}}
    path = written(tmp_path, place, tasks=tasks, methods=[], sparsities=[], upstream={}, transfers=transfers)
    found = {row["task"]: row for row in rows(budwood("study", "run", path, "--json"))}
    assert found["a"]["data"] == found["b"]["data"] and found["a"]["run_id"] != found["b"]["run_id"]
    for name, metric in (("a", "mean_per_class"), ("b", "top1")):
        stored = json.loads((tmp_path / "runs" / found[name]["run_id"] / "result.json").read_text())
        assert (stored["task"]["name"], stored["task"]["metric"], found[name]["metric"]) == (name, metric, metric)


def test_status_needs_neither_network_nor_image(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    path = written(tmp_path, place, methods=[], sparsities=[], upstream={})
    said = budwood("study", "status", path)
    assert said.code == 2 and "no study has run" in said.err
    assert budwood("study", "run", path).code == 0
    path.write_text(path.read_text().replace("py:toynet.small", "py:nowhere.net"))
    said = budwood("study", "status", path)
    assert said.code == 0 and "shapes" in said.err
    statuses = json.loads(budwood("study", "status", path, "--json").out)
    assert list(statuses.values()) == ["done"] * 3


def test_a_run_that_fails_is_noted_and_tried_again_on_request(
    budwood: Callable[..., Said], place: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"methods": [], "sparsities": [], "upstream": {}}
    ways = {"linear": {}, "full": {"seeds": 2, "recipe": {"epochs": 2, "lr": 1e20}}}
    path = written(tmp_path, place, transfers=ways, **changes)
    said = budwood("study", "run", path)
    assert said.code == 1 and "2 failed" in said.err and "lower the learning rate" in said.err
    assert len(done_in(tmp_path)) == 1
    said = budwood("study", "run", path)
    assert said.code == 1 and "full, dense" not in said.err  # not tried again
    said = budwood("study", "run", path, "--retry")
    assert said.code == 1 and said.err.count("full, dense") == 2


def test_what_needs_a_failed_run_is_skipped(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    recipe = {"epochs": 1, "lr": 1e20}
    upstream = {"data": str(place / "few"), "recipe": recipe}
    transfers = {"linear": {"recipe": {"head": "sgd"}, "seeds": 1}}
    path = written(tmp_path, place, methods=["gmp"], sparsities=[0.5], upstream=upstream, transfers=transfers)
    said = budwood("study", "run", path)
    assert said.code == 1 and "1 failed" in said.err
    statuses = json.loads(budwood("study", "status", path, "--json").out)
    assert sorted(statuses.values()) == ["done", "failed", "skipped"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["acdc"]}, "prunes while it trains"),
        ({"methods": ["wanda"], "upstream": {}}, "looks at images"),
        ({"methods": ["magnitud"]}, "did you mean magnitude"),
        ({"models": ["py:toynet.small", "py:toynet.small"]}, "name it once"),
        ({"models": ["py:toynet.convolutional_head"]}, "convolution as its head"),
        ({"models": ["sparse/*.safetensors"]}, "no file is like"),
        ({"tasks": ["nowhere/"]}, "neither a folder"),
        ({"methods": ["magnitude", "magnitude"]}, "magnitude at 0.5 is there twice"),
        (
            {"when": "downstream", "upstream": {}, "methods": ["acdc"], "transfers": {"linear": {}}},
            "a linear head trains nothing else",
        ),
    ],
)
def test_what_cannot_be_done_is_said_first(
    changes: dict[str, Any], words: str, budwood: Callable[..., Said], place: Path, tmp_path: Path
) -> None:
    said = budwood("study", "run", written(tmp_path, place, **changes))
    assert said.code == 2 and len(said.lines) == 1 and words in said.err
    assert not done_in(tmp_path)


def test_pruned_downstream_and_distilled(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    full = {"full": {"seeds": 1, "recipe": {"epochs": 2, "distill": 0.5}}}
    path = written(tmp_path, place, methods=["gmp"], upstream={}, when="downstream", transfers=full)
    found = rows(budwood("study", "run", path, "--threads", 1, "--json"))
    dense = next(row for row in found if row["method"] == "dense")
    assert len(found) == 3 and {row["teacher"] for row in found} == {None, dense["run_id"]}
    assert sorted(round(row["measured_sparsity"], 2) for row in found) == [0.0, 0.5, 0.8]


def test_protocol_of_the_study(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    """No validation split, and the epoch that is best on test: what is reported is the best of the history."""
    transfers = {"full": {"seeds": 1, "recipe": {"epochs": 3}}, "linear": {"seeds": 1}}
    path = written(tmp_path, place, protocol="cvpr22", methods=[], sparsities=[], upstream={}, transfers=transfers)
    for row in rows(budwood("study", "run", path, "--json")):
        stored = json.loads((tmp_path / "runs" / row["run_id"] / "result.json").read_text())
        assert row["protocol"] == "cvpr22"
        assert row["test_top1"] == max(epoch["val_top1"] for epoch in stored["history"])
        assert len(stored["history"]) == (3 if row["transfer"] == "full" else 150)
        assert stored["task"]["sizes"]["train"] == 51 and stored["spec"]["preprocessing"]["resize"] == 256


def test_report_and_rows(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    path = written(tmp_path, place, sparsities=[0.8], methods=["magnitude"])
    said = budwood("study", "report", path)
    assert said.code == 2 and "no study has run" in said.err
    assert budwood("study", "run", path, "--threads", 1).code == 0
    assert budwood("study", "bench", path, "--seconds", 0.2, "--threads", 1).code == 0
    said = budwood("study", "report", path, "-o", "page.html", "--figures", "figures")
    assert said.code == 0 and "page.html" in said.err
    text = (tmp_path / "page.html").read_text()
    assert "Accuracy against speed" in text and "protocol budwood" in text
    assert len((tmp_path / "page-runs.csv").read_text().splitlines()) == 1 + 6
    assert len((tmp_path / "page-cells.csv").read_text().splitlines()) == 1 + 4
    assert all(file.read_bytes().startswith(b"%PDF") for file in (tmp_path / "figures").iterdir())
    parquet = pytest.importorskip("pyarrow.parquet")
    assert budwood("study", "report", path, "-o", "rows.parquet").code == 0
    assert budwood("study", "report", path, "-o", "rows.csv").code == 0
    with (tmp_path / "rows.csv").open() as file:
        rows_of_csv = list(csv.DictReader(file))
    stored = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["run_id"] for row in stored] == [row["run_id"] for row in rows_of_csv]
    assert [f"{row['seed']}" for row in stored] == [row["seed"] for row in rows_of_csv]
    said = budwood("study", "report", path, "-o", "page.pdf")
    assert said.code == 2 and len(said.lines) == 1 and "NAME.html" in said.err


def test_networks_that_are_wanted_later(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    """Not kept, then wanted: made again, and to the same bits. A pruned network that was deleted likewise."""
    transfers = {"full": {"seeds": 1, "recipe": {"epochs": 1}}}
    path = written(tmp_path, place, sparsities=[0.5], methods=["magnitude"], transfers=transfers)
    before = accuracies(rows(budwood("study", "run", path, "--threads", 1, "--json")))
    assert len(list(tmp_path.glob("runs/*/checkpoint.safetensors"))) == 1  # the pruned one
    written(tmp_path, place, sparsities=[0.5], methods=["magnitude"], transfers=transfers, keep_checkpoints=True)
    assert accuracies(rows(budwood("study", "run", path, "--threads", 1, "--json"))) == before
    kept = list(tmp_path.glob("runs/*/checkpoint.safetensors"))
    assert len(kept) == 3 and all(budwood("verify", file).code == 0 for file in kept)

    shutil.rmtree(
        next(file.parent for file in kept if json.loads((file.parent / "spec.json").read_text())["transfer"] == "none")
    )
    more = written(tmp_path, place, sparsities=[0.5], methods=["magnitude"], transfers=transfers | {"linear": {}})
    said = budwood("study", "run", more, "--threads", 1, "--json")
    assert said.code == 0 and before.items() <= accuracies(rows(said)).items()


# -- killed --------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(place: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`budwood study run` in a process of its own, in a session of its own."""
    children = []

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "budwood", "study", "run", tmp_path / "study.yaml", *arguments]
        children.append(
            subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=surroundings(place), start_new_session=True)
        )
        return children[-1]

    yield start
    for child in children:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        child.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def workers_of(pid: int) -> list[int]:
    """Children that are workers, and not multiprocessing's tracker of resources."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


needs_proc = pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs /proc")


@needs_proc
def test_kill_9_of_the_driver(
    begun: Callable[..., Any], budwood: Callable[..., Said], place: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, place)
    driver = begun("--workers", 2, "--threads", 1)
    wait_for(lambda: len(done_in(tmp_path)) >= 5)
    workers = workers_of(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers))
    before = done_in(tmp_path)
    assert workers and 5 <= len(before) < 19
    said = budwood("study", "run", path, "--threads", 1, "--json")
    assert said.code == 0 and len(rows(said)) == 19
    after = done_in(tmp_path)
    assert {run_id: after[run_id] for run_id in before} == before
    fresh = written(tmp_path / "..", place, out=str(tmp_path / "fresh" / "runs"))
    assert accuracies(rows(budwood("study", "run", fresh, "--threads", 1, "--json"))) == accuracies(rows(said))


@needs_proc
def test_kill_9_of_a_worker(
    begun: Callable[..., Any], budwood: Callable[..., Said], place: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, place)
    driver = begun("--workers", 2, "--threads", 1)
    for count in (2, 6):
        wait_for(lambda: len(done_in(tmp_path)) >= count and workers_of(driver.pid))  # noqa: B023
        os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
    assert driver.wait(timeout=300) == 0
    statuses = json.loads(budwood("study", "status", path, "--json").out)
    assert len(statuses) == 19 and set(statuses.values()) == {"done"}


def test_ctrl_c_and_on(begun: Callable[..., Any], budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    path = written(tmp_path, place)
    driver = begun("--threads", 1, "--workers", 2)
    wait_for(lambda: len(done_in(tmp_path)) >= 2)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=60) == 130
    assert len(rows(budwood("study", "run", path, "--threads", 1, "--json"))) == 19
