"""`budwood compile` and `budwood predict` as a user calls them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import budwood as library
from budwood.models.network import open_network
from budwood.tasks.images import read_rgb, transforms

Verb = Callable[..., Any]


@pytest.fixture
def compiled(budwood: Verb, place: Path, tmp_path: Path) -> Path:
    said = budwood("compile", "py:toynet.small", "-o", "shapes.budwood")
    assert (said.code, said.out) == (0, "") and "shapes.budwood: 0.0 MB, py:toynet.small, input 3 x 32 x 32" in said.err
    return tmp_path / "shapes.budwood"


def expected(path: Path) -> list[float]:
    """Probabilities by PyTorch."""
    network = open_network("py:toynet.small")
    x = transforms(network.lineage.preprocessing, train=False)(read_rgb(path))
    with torch.inference_mode():
        found: list[float] = network.module.eval()(x[None]).softmax(1)[0].tolist()
    return found


def test_predict_names_every_photo_in_order(budwood: Verb, place: Path, compiled: Path) -> None:
    said = budwood("predict", compiled, place / "few" / "red" / "03.png", place / "few", "--json")
    assert (said.code, said.err) == (0, "")
    rows = json.loads(said.out)
    photos = [place / "few" / "red" / "03.png", *sorted((place / "few").rglob("*.png"))]
    assert [row["path"] for row in rows] == [str(path) for path in photos] and len(rows) == 19
    for row, path in zip(rows, photos, strict=True):
        found = {p["index"]: p["probability"] for p in row["predictions"]}
        assert [found[k] for k in range(3)] == pytest.approx(expected(path), abs=1e-5)
        shown = [p["probability"] for p in row["predictions"]]
        assert shown == sorted(shown, reverse=True) and sum(shown) == pytest.approx(1)
        assert [p["label"] for p in row["predictions"]] == [f"class {p['index']}" for p in row["predictions"]]


def test_predict_on_the_screen_and_as_a_table(budwood: Verb, place: Path, compiled: Path, tmp_path: Path) -> None:
    photo = place / "few" / "blue" / "00.png"
    said = budwood("predict", "py:toynet.small", photo, "--top", "2", "--threads", "1")
    best = sorted(enumerate(expected(photo)), key=lambda item: -item[1])
    assert said.code == 0
    assert said.out == f"{photo}: class {best[0][0]} {best[0][1]:.1%}, class {best[1][0]} {best[1][1]:.1%}\n"
    said = budwood("predict", compiled, place / "few", "-o", "found.csv", "--top", "1")
    assert (said.code, said.out) == (0, "") and "18 photos" in said.err
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert len(rows) == 18 and rows[0].keys() == {"path", "rank", "label", "index", "probability"}


def test_predict_goes_on_past_photos_that_cannot_be_read(budwood: Verb, shapes: Path, compiled: Path) -> None:
    good = shapes / "blue" / "00.png"
    (shapes / "blue" / "01.png").write_text("hello")
    (shapes / "blue" / "02.png").write_bytes(good.read_bytes()[:-30])
    said = budwood("predict", compiled, shapes / "blue")
    assert said.code == 1 and len(said.out.splitlines()) == 18
    assert "01.png is unreadable" in said.lines[0] and "02.png is truncated" in said.lines[1]
    assert said.lines[2] == "budwood: 2 of 20 photos could not be read"
    said = budwood("predict", compiled, shapes / "blue" / "01.png", "--json")
    assert said.code == 1 and json.loads(said.out) == []


def test_the_same_from_a_checkpoint_an_onnx_file_and_a_program(budwood: Verb, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    made = budwood("prune", "py:toynet.small", "--method", "magnitude", "--sparsity", "0.6", "--out", "pruned")
    checkpoint = made.out.strip()
    assert budwood("export", checkpoint, "net.onnx").code == 0
    assert budwood("compile", checkpoint, "--out", "net.budwood").code == 0
    answers = []
    for model in (checkpoint, "net.onnx", "net.budwood"):
        said = budwood("predict", model, place / "few", "--json")
        assert (said.code, said.err) == (0, ""), said
        answers.append([[p["probability"] for p in row["predictions"]] for row in json.loads(said.out)])
    for other in answers[1:]:
        for a, b in zip(answers[0], other, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    program = library.load_program(tmp_path / "net.budwood")
    assert program.preprocessing is not None and program.preprocessing.size == 32


def test_an_onnx_file_that_does_not_say_how_photos_are_prepared(budwood: Verb, place: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    assert budwood("export", "py:toynet.small", "net.onnx").code == 0
    model = onnx.load(tmp_path / "net.onnx")
    del model.metadata_props[:]
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    said = budwood("predict", "net.onnx", place / "few" / "red")
    assert said.code == 0 and "ImageNet's mean and deviation are taken" in said.err
    assert len(said.out.splitlines()) == 6


def test_a_network_that_ends_in_a_softmax_gets_no_second_one(budwood: Verb, place: Path, tmp_path: Path) -> None:
    (tmp_path / "softnet.py").write_text(
        "import toynet\nfrom torch import nn\n\n\ndef soft(num_classes=3):\n"
        "    net = nn.Sequential(toynet.small(num_classes), nn.Softmax(1))\n"
        "    net.preprocessing = {'size': 32, 'resize': 32}\n    return net\n"
    )
    photo = place / "few" / "red" / "00.png"
    (row,) = json.loads(budwood("predict", "py:softnet.soft", photo, "--json").out)
    assert {p["index"]: p["probability"] for p in row["predictions"]} == pytest.approx(
        dict(enumerate(expected(photo))), abs=1e-5
    )


def test_compile_explains(budwood: Verb, place: Path) -> None:
    said = budwood("compile", "py:toynet.small", "--explain", "--batch", "4", "--threads", "1", "--size", "48")
    assert said.code == 0 and "py:toynet.small: batch 4, 1 threads" in said.out
    assert "GFLOP/s" in said.out and said.out.splitlines()[-1].startswith("all")


def test_wrong_requests_are_one_line(budwood: Verb, place: Path, compiled: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.budwood").write_text("hello")
    shutil.copy(compiled, tmp_path / "cut.budwood")
    (tmp_path / "cut.budwood").write_bytes(compiled.read_bytes()[:-9])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for arguments, wanted in [
        (("predict", compiled), "no photos"),
        (("predict", compiled, "nothing.png"), "no file at nothing.png"),
        (("predict", compiled, "empty"), "empty holds no images"),
        (("predict", "nothing.budwood", "a.png"), "no file at nothing.budwood"),
        (("predict", "text.budwood", "a.png"), "text.budwood is not a readable"),
        (("predict", "cut.budwood", "a.png"), "cut.budwood"),
        (("predict", compiled, "a.png", "--out", "x.txt"), "end its name in .csv"),
        (("predict", compiled, "a.png", "--size", "64"), "compiled already"),
        (("predict", compiled, "a.png", "--top", "0"), "--top"),
        (("compile", "py:toynet.small"), "nothing to do"),
        (("compile", "py:toynet.small", "--explain", "--batch", "3"), "choose from [1, 4, 16]"),
    ]:
        said = budwood(*arguments)
        assert said.code == 2 and len(said.lines) == 1 and wanted in said.err, (arguments, said)
