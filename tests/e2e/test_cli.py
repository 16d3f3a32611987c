"""Every verb as a user calls it."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from budwood.core.checkpoint import Checkpoint
from budwood.core.result import Result

MODEL = ("--model", "py:toynet.small")
QUICK = ("--workers", "0", "--no-measure-latency")
SHORT = ("--epochs", "2", "--batch-size", "8", *QUICK)
Verb = Callable[..., Any]


def rows_of(said: Any) -> list[dict[str, Any]]:
    """The JSON on stdout; nothing else may be there, and nothing on stderr."""
    assert (said.code, said.err) == (0, ""), said
    found: list[dict[str, Any]] = json.loads(said.out)
    return found


def runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/result.json"))


@pytest.fixture
def sparse(budwood: Verb, tmp_path: Path) -> Path:
    """A checkpoint of the toy network, 60 % of it pruned at once."""
    said = budwood("prune", "py:toynet.small", "--method", "magnitude", "--sparsity", "0.6", "--out", "pruned")
    assert said.code == 0, said
    return tmp_path / said.out.strip()


# ------------------------------------------------------------------------------------------------ transfer


def test_transfer_both_ways_with_two_methods(budwood: Verb, place: Path, tmp_path: Path) -> None:
    common = ("transfer", place / "shapes", *MODEL, "--mode", "linear", "full", *SHORT, "--json")
    magnitude = rows_of(budwood(*common, "--prune", "magnitude", "--sparsity", "0.5", "0.8", "--out", "runs"))
    gmp = rows_of(budwood(*common, "--prune", "gmp", "--sparsity", "0.8", "--out", "runs"))
    assert [(row["transfer"], row["method"], row["where"], row["sparsity"]) for row in magnitude] == [
        ("linear", "dense", "none", 0.0),
        ("linear", "magnitude", "one-shot", 0.5),
        ("linear", "magnitude", "one-shot", 0.8),
        ("full", "dense", "none", 0.0),
        ("full", "magnitude", "one-shot", 0.5),
        ("full", "magnitude", "one-shot", 0.8),
    ]
    assert [(row["transfer"], row["method"], row["where"]) for row in gmp] == [
        ("linear", "dense", "none"),
        ("linear", "gmp", "one-shot"),
        ("full", "dense", "none"),
        ("full", "gmp", "downstream"),
    ]
    assert len(runs_in(tmp_path / "runs")) == 8  # the dense ones are the same
    total = 3 * 8 * 9 + 8 * 16 * 9  # all weights but the head's
    for row in magnitude + gmp:
        checkpoint = Checkpoint.load(tmp_path / "runs" / row["run_id"] / "checkpoint.safetensors")
        zeros = sum(int((t == 0).sum()) for n, t in checkpoint.state.items() if n in ("0.weight", "3.weight"))
        assert zeros == round(row["sparsity"] * total)
        assert row["measured_sparsity"] == pytest.approx(zeros / total)
        assert row["mask_digest"] == checkpoint.mask.digest() and checkpoint.mask.holds(checkpoint.state)
        assert checkpoint.lineage.classes == ("blue", "green", "red")
        assert (tmp_path / "runs" / row["run_id"] / "checkpoint.safetensors").stat().st_size == row["bytes"]
    linear = [row for row in magnitude if row["transfer"] == "linear"]
    assert linear[0]["test_top1"] >= 0.8  # a disc's colour is in the features of any network


def test_a_linear_head_on_adapted_statistics_is_another_run(budwood: Verb, place: Path, tmp_path: Path) -> None:
    call = ("transfer", place / "shapes", *MODEL, "--mode", "linear", *QUICK, "--json")
    (kept,) = rows_of(budwood(*call))
    (adapted,) = rows_of(budwood(*call, "--adapt-bn"))
    (plain,) = rows_of(budwood(*call, "--adapt-bn", "--accelerate", "off", "--out", "plain"))
    assert adapted["run_id"] == plain["run_id"] != kept["run_id"]
    assert adapted["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-3) != pytest.approx(kept["test_loss"])
    assert len(list(tmp_path.glob("runs/features/*"))) == 2
    notes = {root: Result.load(tmp_path / root / plain["run_id"] / "result.json").notes for root in ("runs", "plain")}
    assert "features from the engine" in notes["runs"] and "features from PyTorch" in notes["plain"]


def test_transfer_learns_what_can_be_learnt(budwood: Verb, place: Path) -> None:
    (row,) = rows_of(
        budwood("transfer", place / "shapes", *MODEL, "--epochs", "12", "--batch-size", "8", "--lr", "0.05",
                "--workers", "0", "--no-measure-latency", "--prune", "gmp", "--sparsity", "0.5", "--no-dense", "--json")
    )  # fmt: skip
    assert row["test_top1"] >= 0.8 > 1 / 3


def test_a_second_call_does_nothing_again(budwood: Verb, place: Path, tmp_path: Path) -> None:
    call = ("transfer", place / "shapes", *MODEL, *SHORT, "--prune", "gmp", "--sparsity", "0.5", "--json")
    first = rows_of(budwood(*call))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")}
    assert len(before) == 2 * 4  # spec, metrics, checkpoint, result
    assert rows_of(budwood(*call)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")} == before
    more = rows_of(budwood(*call, "--seeds", "0", "1"))
    assert more[:2] == first and len(more) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_changed_photo_is_another_run(budwood: Verb, shapes: Path, tmp_path: Path) -> None:
    call = ("transfer", shapes, *MODEL, *SHORT, "--json")
    (first,) = rows_of(budwood(*call))
    with Image.open(shapes / "red" / "03.png") as photo:
        changed = photo.convert("RGB")
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(shapes / "red" / "03.png")
    (second,) = rows_of(budwood(*call))
    assert first["run_id"] != second["run_id"] and first["data"] != second["data"]
    assert len(runs_in(tmp_path / "runs")) == 2
    shapes.joinpath("red", "03.png").rename(shapes / "blue" / "99.png")  # another label, the same bytes
    (third,) = rows_of(budwood(*call))
    assert len({first["run_id"], second["run_id"], third["run_id"]}) == 3


def test_what_does_not_determine_a_run_is_not_in_its_name(budwood: Verb, place: Path) -> None:
    call = ("transfer", place / "few", *MODEL, "--epochs", "2", "--batch-size", "4", "--no-measure-latency", "--json")
    (first,) = rows_of(budwood(*call, "--out", "here", "--workers", "0"))
    (second,) = rows_of(budwood(*call, "--out", "there", "--workers", "1", "--no-resume"))
    assert first["run_id"] == second["run_id"]
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}


def test_the_metric_and_the_seed_count_where_they_make_a_difference(budwood: Verb, place: Path) -> None:
    call = ("transfer", place / "few", *MODEL, "--mode", "linear", *QUICK, "--json")
    (first,) = rows_of(budwood(*call, "--seeds", "0", "1", "2"))  # L-BFGS comes to the same for every seed
    (second,) = rows_of(budwood(*call, "--metric", "mean_per_class"))
    assert first["run_id"] != second["run_id"]
    sgd = rows_of(budwood(*call, "--head", "sgd", "--seeds", "0", "1"))
    assert [row["seed"] for row in sgd] == [0, 1] and len({row["mask_digest"] for row in sgd}) == 1
    # The head is the same for every seed, but not what a random mask prunes.
    random = rows_of(budwood(*call, "--prune", "random", "--sparsity", "0.5", "--no-dense", "--seeds", "0", "1"))
    assert [row["seed"] for row in random] == [0, 1] and len({row["mask_digest"] for row in random}) == 2


def test_words_go_to_stderr_and_the_report_is_there(budwood: Verb, place: Path, tmp_path: Path) -> None:
    said = budwood("transfer", place / "shapes", *MODEL, *SHORT, "--prune", "gmp", "--sparsity", "0.5")
    assert (said.code, said.out) == (0, "")
    assert re.search(r"shapes: 3 classes; 42 train, 9 val, 9 test; measured by top1", said.err)
    assert re.search(r"full, gmp 50%, seed 0: [\d.]+% top1 on test, the mask holds", said.err)
    assert "runs/report.html" in said.err and (tmp_path / "runs" / "report.html").stat().st_size > 1000


def test_latency_is_measured_once(budwood: Verb, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("budwood.cli.transfer.LATENCY_SECONDS", 0.5)
    call = ("transfer", place / "shapes", *MODEL, "--epochs", "0", "--workers", "0", "--json")
    rows_of(budwood(*call))
    file = tmp_path / "runs" / "latency.json"
    rows = json.loads(file.read_text())["rows"]
    assert {row["label"] for row in rows} == {"dense"} and any(row["ms_per_image"] for row in rows)
    before = file.stat().st_mtime_ns
    rows_of(budwood(*call))
    assert file.stat().st_mtime_ns == before


def test_a_sparse_network_keeps_its_zeros_in_both_ways(
    budwood: Verb, place: Path, sparse: Path, tmp_path: Path
) -> None:
    rows = rows_of(
        budwood("transfer", place / "shapes", "--model", sparse, "--mode", "linear", "full", *SHORT, "--json")
    )
    parent = Checkpoint.load(sparse)
    for row in rows:
        assert (row["method"], row["where"]) == ("magnitude", "upstream")
        file = tmp_path / "runs" / row["run_id"] / "checkpoint.safetensors"
        child = Checkpoint.load(file)
        for name in ("0.weight", "3.weight"):
            assert torch.equal(child.mask[name], parent.mask[name])
            moved = (child.state[name] != parent.state[name]).any()
            assert bool(moved) == (row["transfer"] == "full")
        assert budwood("verify", file, "--against", sparse).code == 0


# ------------------------------------------------------------------------------------------------ prune


def test_prune_at_once_with_calibration(budwood: Verb, place: Path, tmp_path: Path) -> None:
    call = ("prune", "py:toynet.small", "--method", "magnitude", "--sparsity", "0.5", "--workers", "0", "--out", "up")
    plain, calibrated = budwood(*call), budwood(*call, "--calibration", place / "shapes")
    assert plain.code == calibrated.code == 0
    assert "give --calibration IMAGES" in plain.err and "made anew on 60 images, without their labels" in calibrated.err
    first, second = (Checkpoint.load(tmp_path / said.out.strip()) for said in (plain, calibrated))
    assert first.mask == second.mask and first.mask.sparsity == pytest.approx(0.5, abs=1e-3)
    assert torch.equal(first.state["0.weight"], second.state["0.weight"])
    assert not torch.equal(first.state["1.running_mean"], second.state["1.running_mean"])
    assert torch.equal(first.state["1.running_mean"], torch.zeros(8))


def test_prune_says_what_it_trained_through(budwood: Verb, place: Path, tmp_path: Path) -> None:
    call = (
        "prune", "py:toynet.small", "--method", "gmp", "--sparsity", "0.8", "--data", place / "shapes", "--epochs", "4",
        "--batch-size", "4", "--option", "schedule.updates=1", "--option", "schedule.end=0.5", "--workers", "0",
        "--json",
    )  # fmt: skip
    fast, plain = (json.loads(budwood(*call, "--accelerate", how, "--out", how).out) for how in ("auto", "off"))
    assert fast["run_id"] == plain["run_id"]
    assert fast["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-3)
    notes = {how: Result.load(tmp_path / how / fast["run_id"] / "result.json").notes for how in ("auto", "off")}
    assert "trained through the engine at 21 of 44 steps; through PyTorch: few zeros (23)" in notes["auto"]
    assert not any("engine" in note for note in notes["off"])


def test_no_epochs_are_no_training(budwood: Verb, place: Path, tmp_path: Path) -> None:
    said = budwood("prune", "py:toynet.small", "--method", "gmp", "--sparsity", "0.5", "--data", place / "shapes",
                   "--epochs", "0", "--workers", "0")  # fmt: skip
    assert said.code == 0 and "pruned at once to 50" in said.err and "batch norm statistics made anew on 42" in said.err
    stored = Checkpoint.load(tmp_path / said.out.strip())
    assert (stored.lineage.where, stored.lineage.method) == ("one-shot", "gmp")


def test_trained_on_at_its_mask_a_network_says_still_how_it_was_pruned(
    budwood: Verb, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text('method = "magnitude"\nsparsity = 0.5\n[recipe]\ndistill = 0.5\n')
    # What a recipe says of a training is passed over where there is none.
    first = budwood("prune", "py:toynet.small", "--recipe", "r.toml", "--calibration", place / "few", "--workers", "0")
    assert first.code == 0
    pruned = Checkpoint.load(tmp_path / first.out.strip())
    assert pruned.lineage.task is None  # unlabelled photos are none
    again = budwood("prune", first.out.strip(), "--method", "fixed", "--data", place / "shapes", "--epochs", "1",
                    "--workers", "0", "--json")  # fmt: skip
    row = json.loads(again.out)
    trained = Checkpoint.load(tmp_path / "runs" / row["run_id"] / "checkpoint.safetensors")
    assert trained.mask == pruned.mask and (row["method"], row["sparsity"]) == ("fixed", pytest.approx(0.5, abs=1e-2))
    assert (trained.lineage.method, trained.lineage.where) == ("magnitude", "one-shot")


@pytest.mark.parametrize(("method", "epochs"), [("gmp", "2"), ("lth", "4")])  # lth: two trainings
def test_prune_tells_of_milestones_it_does_not_come_to(budwood: Verb, place: Path, method: str, epochs: str) -> None:
    said = budwood("prune", "py:toynet.small", "--method", method, "--sparsity", "0.5", "--data", place / "shapes",
                   "--epochs", epochs, "--milestones", "1", "--milestones", "2", "--milestones", "3", "--workers", "0",
                   *(["--option", "share=0.5"] if method == "lth" else []))  # fmt: skip
    assert said.code == 0
    assert "a training of 2 epochs does not come to the milestones from 2 on" in said.err


def test_prune_while_training_keeps_a_fitting_classifier(budwood: Verb, place: Path, tmp_path: Path) -> None:
    said = budwood("prune", "py:toynet.small", "--method", "gmp", "--sparsity", "0.7", "--data", place / "shapes",
                   "--epochs", "2", "--lr", "1e-9", "--workers", "0", "--json")  # fmt: skip
    assert (said.code, said.err) == (0, "")
    row = json.loads(said.out)
    checkpoint = Checkpoint.load(tmp_path / "runs" / row["run_id"] / "checkpoint.safetensors")
    assert checkpoint.mask.sparsity == pytest.approx(0.7, abs=1e-3) and checkpoint.lineage.where == "upstream"
    assert "9.weight" in checkpoint.mask  # upstream, the classifier is pruned with the rest
    import toynet

    kept = checkpoint.mask["9.weight"]
    torch.testing.assert_close(
        checkpoint.state["9.weight"][kept], toynet.small().state_dict()["9.weight"][kept], rtol=0, atol=1e-5
    )


# ------------------------------------------------------------------------------------- eval, verify, info, ls


def test_eval_matches_classes_by_name_or_order(budwood: Verb, place: Path, shapes: Path, tmp_path: Path) -> None:
    (row,) = rows_of(budwood("transfer", place / "shapes", *MODEL, "--mode", "linear", *QUICK, "--json"))
    run = tmp_path / "runs" / row["run_id"]
    said = budwood("eval", run, place / "shapes", "--split", "test", "--workers", "0", "--json")
    found = rows_of(said)
    assert found["top1"] == row["test_top1"] and found["loss"] == pytest.approx(row["test_loss"], abs=1e-6)
    assert (found["images"], found["matched_by"]) == (9, "name")
    whole = rows_of(budwood("eval", run, place / "shapes", "--workers", "0", "--json"))
    assert whole["images"] == 60
    (shapes / "green").rename(shapes / "verde")
    renamed = rows_of(budwood("eval", run, shapes, "--workers", "0", "--json"))
    assert renamed["matched_by"] == "order"
    words = budwood("eval", run, place / "shapes", "--workers", "0")
    assert words.code == 0 and words.out.splitlines()[0].startswith(f"top-1 {whole['top1']:.2%}")
    untrained = rows_of(budwood("eval", "py:toynet.small", place / "shapes", "--workers", "0", "--json"))
    assert untrained["matched_by"] == "order" and untrained["top1"] < found["top1"]


def test_verify_holds_fails_and_refuses(budwood: Verb, sparse: Path, tmp_path: Path) -> None:
    held = budwood("verify", sparse)
    assert (held.code, held.err) == (0, "") and held.out.startswith("the mask holds: ")
    share = json.loads(budwood("verify", sparse, "--json").out)["sparsity"]
    assert budwood("verify", sparse, "--sparsity", f"{share:.4f}").code == 0
    assert budwood("verify", sparse, "--sparsity", "0.7").code == 1
    assert budwood("export", sparse, "dense.safetensors").code == 0
    assert budwood("verify", "dense.safetensors", "--against", sparse).code == 0
    state = safetensors.torch.load_file(tmp_path / "dense.safetensors")
    index = (state["3.weight"] == 0).nonzero()[0]
    state["3.weight"][tuple(index)] = 1e-30
    safetensors.torch.save_file(state, tmp_path / "tampered.safetensors")
    lost = budwood("verify", "tampered.safetensors", "--against", sparse)
    assert lost.code == 1 and "3.weight: 1 pruned weights are not zero" in lost.out
    found = json.loads(budwood("verify", "tampered.safetensors", "--against", sparse, "--json").out)
    assert found["holds"] is False and len(found["wrong"]) == 1
    assert budwood("export", "py:toynet.wide", "wide.pth").code == 0
    other = budwood("verify", "wide.pth", "--against", sparse)
    assert other.code == 2 and len(other.lines) == 1 and "another network" in other.err
    maskless = budwood("verify", "dense.safetensors")
    assert maskless.code == 2 and "carries no mask" in maskless.err


def test_info_of_a_network_and_of_the_machine(budwood: Verb, sparse: Path) -> None:
    found = rows_of(budwood("info", sparse, "--json"))
    assert found["lineage"]["method"] == "magnitude" and found["lineage"]["architecture"] == "py:toynet.small"
    assert [(layer["name"], layer["total"]) for layer in found["layers"]] == [("0", 216), ("3", 1152), ("9", 48)]
    # 32 px, stride 2: 16 x 16 places of 216 multiply-adds, then 8 x 8 of 1152, then one of 48
    assert [layer["flops_dense"] for layer in found["layers"]] == [2 * 216 * 256, 2 * 1152 * 64, 2 * 48]
    words = budwood("info", sparse)
    assert words.code == 0 and "magnitude" in words.out and "1,152" in words.out
    machine = rows_of(budwood("info", "--json"))
    assert torch.__version__.startswith(machine["torch"])
    assert budwood("info").out.count("\n") == len(machine)


@pytest.mark.parametrize(
    ("kind", "member"),
    [("methods", "gmp"), ("tasks", "cifar10"), ("models", "torchvision"), ("backends", "eager")],
)
def test_ls(budwood: Verb, kind: str, member: str) -> None:
    rows = rows_of(budwood("ls", kind, "--json"))
    names = [row.get("name") or row["source"] for row in rows]
    assert member in names and len(set(names)) == len(names)
    words = budwood("ls", kind)
    assert (words.code, words.err) == (0, "") and member in words.out


# ------------------------------------------------------------------------------------------- export, report


def test_export_loads_where_budwood_is_not(budwood: Verb, sparse: Path, tmp_path: Path) -> None:
    import toynet

    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected_state = Checkpoint.load(sparse).to_dense()
    model = toynet.small(seed=99).eval()
    for name, load in (("x.pth", torch.load), ("x.safetensors", safetensors.torch.load_file)):
        said = budwood("export", sparse, name)
        assert (said.code, said.out) == (0, "") and len(said.lines) == 1
        state = load(tmp_path / name)
        model.load_state_dict(state, strict=True)
        assert all(torch.equal(state[key], value) for key, value in expected_state.items())
    with torch.no_grad():
        expected = model(images).numpy()
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    assert budwood("export", sparse, "x.onnx").code == 0
    session = runtime.InferenceSession(tmp_path / "x.onnx")
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])["size"] == 32


def test_report_as_page_table_and_json(budwood: Verb, place: Path, tmp_path: Path) -> None:
    call = ("transfer", place / "shapes", *MODEL, *SHORT, "--prune", "gmp", "--sparsity", "0.5", "--json")
    rows = rows_of(budwood(*call))
    ids = {row["run_id"] for row in rows}
    again = rows_of(budwood("report", "runs", "--json"))
    assert {row["run_id"] for row in again} == ids
    assert budwood("report", "runs", "-o", "rows.csv").code == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["run_id"] for row in table} == ids
    assert {float(row["test_top1"]) for row in table} == {row["test_top1"] for row in rows}
    (tmp_path / "runs" / "report.html").unlink()
    said = budwood("report", "runs")
    assert (said.code, said.out) == (0, "")
    page = (tmp_path / "runs" / "report.html").read_text()
    assert page.lstrip().startswith("<!") and "gmp" in page


def test_data_check(budwood: Verb, shapes: Path) -> None:
    good = budwood("data", "check", shapes)
    assert (good.code, good.err) == (0, "") and re.search(
        r"class +│ train +│ val +│ test|class +┃ train +┃ val +┃ test", good.out
    )
    assert re.search(r"all\W+42\W+9\W+9", good.out)
    (shapes / "red" / "00.png").write_bytes(b"")
    bad = budwood("data", "check", shapes, "--json")
    report = json.loads(bad.out)
    assert bad.code == 1 and bad.err == ""
    assert any(f["kind"] == "zero-byte" and f["examples"] == ["red/00.png (the file is empty)"]
               for f in report["findings"])  # fmt: skip


# ------------------------------------------------------------------------------------------- the command


def test_the_installed_command(process: Verb) -> None:
    for arguments in ((), ("--help",)):
        said = process("-m", "budwood", *arguments)
        assert (said.code, said.err) == (0, "")
        for verb in ("transfer", "prune", "eval", "verify", "info", "ls", "export", "report", "data"):
            assert re.search(rf"│ {verb} +[A-Z]", said.out), verb  # each with a word on what it does
    assert re.fullmatch(r"\d+\.\d+.*\n", process("-m", "budwood", "--version").out)


def test_help_imports_nothing_heavy(process: Verb) -> None:
    code = """
import contextlib, io, sys
from budwood.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
print(sorted({"torch", "torchvision", "timm", "sklearn", "matplotlib", "numpy", "pydantic"} & set(sys.modules)))
"""
    assert process("-c", code).out == "[]\n"


def test_json_alone_is_on_stdout_of_a_real_process(process: Verb, place: Path) -> None:
    said = process(
        "-m", "budwood", "transfer", place / "few", *MODEL, "--epochs", "1", "--no-measure-latency", "--json"
    )
    assert len(rows_of(said)) == 1
