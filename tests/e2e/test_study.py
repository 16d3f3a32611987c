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
from torch import nn

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.core.registry import methods
from budwood.prune.magnitude import Magnitude

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


def statuses(said: Said) -> list[str]:
    return sorted(row["status"] for row in rows(said))


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
    assert statuses(budwood("study", "status", path, "--json")) == ["done"] * 3


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
    assert statuses(budwood("study", "status", path, "--json")) == ["done", "failed", "skipped"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["acdc"]}, "prunes while it trains"),
        ({"methods": ["gmp"]}, "prunes while it trains"),
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


LBFGS: dict[str, Any] = {"methods": [], "sparsities": [], "upstream": {}, "transfers": {"linear": {}}}
"""The quickest study: one head a network and task."""


def test_studies_in_one_folder(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    """Each has the plan of its file, and their report is one; the store may be deleted."""
    shutil.copytree(place / "shapes", tmp_path / "more")
    first = written(tmp_path, place, **LBFGS).rename(tmp_path / "first.yaml")
    both = LBFGS | {"name": "two", "tasks": ["shapes", "more"], "methods": ["magnitude"], "sparsities": [0.5]}
    shutil.copytree(place / "shapes", tmp_path / "shapes")
    second = written(tmp_path, place, **both).rename(tmp_path / "second.yaml")

    def run() -> None:
        assert len(rows(budwood("study", "run", first, "--json"))) == 1
        assert len(rows(budwood("study", "run", second, "--json"))) == 5  # upstream, two networks on two tasks
        assert (len(rows(budwood("study", "status", first, "--json"))), done_in(tmp_path)) == (1, done)
        assert budwood("study", "report", first, "-o", "all.csv").code == 0
        with (tmp_path / "all.csv").open() as file:
            assert len({row["run_id"] for row in csv.DictReader(file)}) == 5  # the first study's is among them

    assert budwood("study", "run", first).code == budwood("study", "run", second).code == 0
    done = done_in(tmp_path)
    run()
    (tmp_path / "runs" / "study.sqlite").unlink()
    run()
    other = written(tmp_path, place, **LBFGS, name="third")
    said = budwood("study", "status", other)
    assert said.code == 2 and len(said.lines) == 1 and "has not run" in said.err


def test_report_follows_the_file(budwood: Callable[..., Said], place: Path, shapes: Path, tmp_path: Path) -> None:
    """Other images, another network of the same name, failures of what is wanted no more: none of the old is shown."""
    network = tmp_path / "sparse.safetensors"
    prune = ("prune", "py:toynet.small", "--method", "random", "--sparsity", 0.8, "--out", tmp_path / "pruned")

    def report() -> list[dict[str, str]]:
        assert budwood("study", "report", path, "-o", "page.html").code == 0
        with (tmp_path / "page-runs.csv").open() as file:
            return list(csv.DictReader(file))

    def pruned(seed: int) -> None:
        shutil.copy(budwood(*prune, "--seed", seed).out.strip(), network)

    pruned(0)
    changes = LBFGS | {"models": ["py:toynet.small", str(network)], "tasks": ["shapes"]}
    failing = {"linear": {}, "full": {"seeds": 1, "recipe": {"epochs": 1, "lr": 1e20}}}
    path = written(tmp_path, place, **changes | {"transfers": failing})
    assert budwood("study", "run", path).code == 1
    assert [row["status"] for row in report()].count("failed") == 2
    path = written(tmp_path, place, **changes)
    for change in (
        lambda: None,
        lambda: shutil.copy(shapes / "red" / "00.png", shapes / "red" / "new.png"),
        lambda: pruned(1),
    ):
        change()
        new = rows(budwood("study", "run", path, "--json"))
        assert {row["run_id"] for row in report()} == {row["run_id"] for row in new} and len(new) == 2


def test_running_is_what_is_locked(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    path = written(tmp_path, place, **LBFGS)
    (row,) = rows(budwood("study", "run", path, "--json"))
    lock = tmp_path / "runs" / row["run_id"] / ".lock"
    lock.touch()  # as a killed process leaves it
    assert statuses(budwood("study", "status", path, "--json")) == ["done"]
    hold = """if True:
        import pathlib, sys
        from budwood.core.files import locked
        with locked(pathlib.Path(sys.argv[1])):
            print(flush=True)
            input()
    """
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline()
        assert statuses(budwood("study", "status", path, "--json")) == ["running"]
        holder.communicate(b"\n")
    assert statuses(budwood("study", "status", path, "--json")) == ["done"]


def test_names_are_printed_as_they_are(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "shapes", tmp_path / "[red]")
    path = written(
        tmp_path, place, **LBFGS | {"tasks": ["[red]"], "models": [{"model": "py:toynet.small", "label": "[b]"}]}
    )
    for verb in ("run", "status"):
        said = budwood("study", verb, path)
        assert said.code == 0 and "│ [red] │" in said.err
    assert budwood("study", "report", path).code == 0
    text = (tmp_path / "runs" / "report-cells.csv").read_text()
    assert "[red]" in text and "[b]" in text


def test_a_folder_that_cannot_be_written(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    path = written(tmp_path, place, **LBFGS)
    assert budwood("study", "run", path).code == 0
    plain = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    if plain and shutil.which("setpriv") is None:
        pytest.skip("root writes anywhere, and setpriv is not there to stop it")
    calls = """if True:
        import sys
        from budwood.cli import main
        for arguments in ("status", "report -o page.html", "report", "run"):
            try:
                main(["study", *arguments.split(), "study.yaml"])
                print(0)
            except SystemExit as end:
                print(end.code)
    """
    (tmp_path / "runs").chmod(0o555)
    try:
        command = [*plain, sys.executable, "-c", calls]
        said = subprocess.run(command, cwd=tmp_path, env=surroundings(place), capture_output=True, text=True)
    finally:
        (tmp_path / "runs").chmod(0o755)
    assert said.stdout.split() == ["0", "0", "2", "2"] and "Traceback" not in said.stderr
    assert "│ shapes │" in said.stderr and (tmp_path / "page.html").exists()
    assert said.stderr.count("\nbudwood: cannot write") + said.stderr.count("study.sqlite cannot be used") == 2


@pytest.mark.parametrize("harm", ["deleted", "cut", "changed"])
def test_a_pruned_network_that_is_lost(harm: str, budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    """It is made again for the runs that need it, and to the same bits."""
    changes = LBFGS | {"methods": ["wanda"], "sparsities": [0.5], "upstream": {"calibration": str(place / "few")}}
    path = written(tmp_path, place, **changes)
    before = accuracies(rows(budwood("study", "run", path, "--json")))
    (network,), (shared,) = tmp_path.glob("runs/*/checkpoint.safetensors"), tmp_path.glob("runs/pruned/*.safetensors")
    whole = network.read_bytes()
    for file in (network, shared):
        data = file.read_bytes()
        if harm == "deleted":
            file.unlink()
        else:
            file.write_bytes(data[:1000] if harm == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    assert budwood("study", "run", path).code == 0  # nothing needs it
    assert not network.exists() or network.read_bytes() != whole
    written(tmp_path, place, **changes | {"transfers": {"linear": {}, "full": {"seeds": 1, "recipe": {"epochs": 1}}}})
    said = budwood("study", "run", path, "--json")
    assert said.code == 0 and before.items() <= accuracies(rows(said)).items()
    assert budwood("verify", network).code == 0 and len(network.read_bytes()) == len(whole)


def test_a_job_prunes_once(
    budwood: Callable[..., Said], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of several seeds on a network that is pruned in the transfer."""
    monkeypatch.setattr(methods, "_members", {name: methods.get(name) for name in methods})
    begun = []

    @methods.register("counted")
    class Counted(Magnitude):
        def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
            begun.append(plan)
            return super().start(model, mask, plan)

    transfers = {"linear": {"seeds": 2, "recipe": {"head": "sgd"}}}
    path = written(
        tmp_path,
        place,
        **LBFGS | {"methods": ["counted"], "sparsities": [0.5], "transfers": transfers},
        when="downstream",
    )
    found = rows(budwood("study", "run", path, "--json"))
    assert len(found) == 4 and len(begun) == 1


def test_report_of_nothing_but_failures(budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    full = {"full": {"seeds": 2, "recipe": {"epochs": 1, "lr": 1e20}}}
    path = written(tmp_path, place, **LBFGS | {"transfers": full})
    said = budwood("study", "run", path, "--json")
    assert said.code == 1 and statuses(said) == ["failed", "failed"]
    assert all("lower the learning rate" in row["reason"] for row in rows(said))
    assert rows(budwood("study", "status", path, "--json")) == rows(said)
    said = budwood("study", "report", path)
    assert said.code == 2 and len(said.lines) == 1
    assert "2 runs failed" in said.err and "lower the learning rate" in said.err and "--retry" in said.err


# -- killed --------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(place: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`budwood study run` in a process of its own, in a session of its own."""
    children = []

    def start(*arguments: object, study: str = "study.yaml") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "budwood", "study", "run", tmp_path / study, *arguments]
        child = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env=surroundings(place), start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell has it ignored in its background
        )  # fmt: skip
        children.append(child)
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
        wait_for(lambda: len(done_in(tmp_path)) >= count and bool(workers_of(driver.pid)))  # noqa: B023
        os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
    assert driver.wait(timeout=300) == 0
    assert statuses(budwood("study", "status", path, "--json")) == ["done"] * 19


def test_ctrl_c_and_on(begun: Callable[..., Any], budwood: Callable[..., Said], place: Path, tmp_path: Path) -> None:
    path = written(tmp_path, place)
    driver = begun("--threads", 1, "--workers", 2)
    wait_for(lambda: len(done_in(tmp_path)) >= 2)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=60) == 130
    assert len(rows(budwood("study", "run", path, "--threads", 1, "--json"))) == 19


def test_two_studies_at_once(
    begun: Callable[..., Any], budwood: Callable[..., Said], place: Path, tmp_path: Path
) -> None:
    """In one folder, with most runs in common: each is done once, and each study has all of its own."""
    linear = {"linear": {"seeds": 2, "recipe": {"head": "sgd"}}}
    wanted = {"one": (linear, 14), "two": (SMALL["transfers"], 19)}
    for name, (transfers, _) in wanted.items():
        written(tmp_path, place, name=name, transfers=transfers).rename(tmp_path / f"{name}.yaml")
    drivers = [begun("--threads", 1, study=f"{name}.yaml") for name in wanted]
    assert [driver.wait(timeout=300) for driver in drivers] == [0, 0]
    for name, (_, count) in wanted.items():
        assert statuses(budwood("study", "status", f"{name}.yaml", "--json")) == ["done"] * count
    assert len(done_in(tmp_path)) == 19
