"""Manifests: written, compared, read as one's own CSV; and the two verbs that do so."""

import csv
import hashlib
import os
import random
import shutil
import subprocess
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from budwood.cli import main
from budwood.core.errors import UserError
from budwood.core.registry import tasks
from budwood.core.task import SPLITS, Task
from budwood.tasks.folder import Folder
from budwood.tasks.manifest import check_manifest, compare, write
from budwood.tasks.samples import Pixels, SampleTask


def fill(root: Path, *classes: str, count: int = 10) -> Path:
    for k, label in enumerate(classes):
        for n in range(count):
            (root / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (k, n, 0)).save(root / label / f"{n}.png")
    return root


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fill(tmp_path / "data", "a", "b, with a comma", 'c "quoted"')


# ------------------------------------------------------------------------------------------ written and compared


def test_what_is_in_it(data: Path, tmp_path: Path) -> None:
    task, file = Folder(data), tmp_path / "m.csv"
    write(task, file)
    rows = table(file)
    assert list(rows[0]) == ["path", "label", "split", "sha256"]
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows) and len(rows) == 30
    for row in rows:
        assert row["sha256"] == hashlib.sha256((data / row["path"]).read_bytes()).hexdigest()
        assert row["label"] == row["path"].split("/")[0]
    splits = {row["path"]: row["split"] for row in rows}
    for split in SPLITS:
        named = {f"{path.parent.name}/{path.name}" for path, _ in task.samples[split]}
        assert named == {path for path, of in splits.items() if of == split}
    assert compare(task, file) == [] and check_manifest(task, file) is None


def test_sha256sum_agrees(data: Path, tmp_path: Path) -> None:
    write(Folder(data), tmp_path / "m.csv")
    lines = "".join(f"{row['sha256']}  {row['path']}\n" for row in table(tmp_path / "m.csv"))
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet"], input=lines.encode(), cwd=data, check=True)


def test_it_is_a_csv_of_ones_own(data: Path, tmp_path: Path) -> None:
    task = Folder(data, seed=3)
    write(task, data / "m.csv")
    again = Folder(data / "m.csv")
    assert again.classes == task.classes
    assert {s: sorted(again.samples[s]) for s in SPLITS} == {s: sorted(task.samples[s]) for s in SPLITS}
    assert compare(again, data / "m.csv") == []


def test_every_difference_in_words(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    write(Folder(data), file)
    rows = table(file)
    by_path = {row["path"]: row for row in rows}
    train = [row["path"] for row in rows if row["split"] == "train"]
    by_path[train[0]]["split"] = "test"
    by_path[train[1]]["label"] = "z"
    by_path[train[2]]["sha256"] = "0" * 64
    rows = [row for row in rows if row["path"] != train[3]]
    rows.append({"path": "gone.png", "label": "a", "split": "val", "sha256": "1" * 64})
    with open(file, "w", newline="") as stream:
        table_ = csv.DictWriter(stream, list(rows[0]))
        table_.writeheader()
        table_.writerows(rows)
    assert compare(Folder(data), file) == sorted(
        [
            f"{train[0]} is in train, the manifest says test",
            f"{train[1]} has the label 'a', the manifest says 'z'",
            f"{train[2]} has other content than the manifest says",
            f"{train[3]} is not in the manifest",
            "gone.png is missing",
        ],
        key=lambda line: line.split()[0],
    )
    with pytest.raises(UserError, match=r"is not the data of .* and 2 more") as caught:
        check_manifest(Folder(data), file)
    assert "\n" not in str(caught.value)


@settings(max_examples=15, deadline=None)
@given(victim=st.integers(0, 29), byte=st.integers(0, 10), seed=st.integers(1, 50))
def test_any_change_of_a_file_or_of_the_split_is_seen(
    tmp_path_factory: pytest.TempPathFactory, victim: int, byte: int, seed: int
) -> None:
    root = fill(tmp_path_factory.mktemp("m") / "data", "a", "b", "c")
    file = root.parent / "m.csv"
    task = Folder(root)
    write(task, file)
    other = Folder(root, seed=seed)
    assert bool(compare(other, file)) == (other.digest() != task.digest())
    path = sorted(root.rglob("*.png"))[victim]
    content = bytearray(path.read_bytes())
    content[-1 - byte] ^= 1
    path.write_bytes(content)
    # The same task: what is compared is what lies there now.
    assert compare(task, file) == [f"{path.relative_to(root)} has other content than the manifest says"]


class InMemory(SampleTask):
    name, classes = "memory", ("even", "odd")

    def __init__(self, shade: int = 0) -> None:
        pixels = [Pixels(f"train/{k:05}", np.full((2, 2, 3), k + shade, np.uint8)) for k in range(6)]
        self.samples = {"train": [(pixels[0], 0), (pixels[5], 1)], "val": [(pixels[3], 1)], "test": [(pixels[4], 0)]}
        self.notes = []

    def digest(self) -> str:
        return "0" * 64


def test_pixels_in_memory(tmp_path: Path) -> None:
    write(InMemory(), tmp_path / "m.csv")
    rows = table(tmp_path / "m.csv")
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        ("train/00000", "even", "train"),
        ("train/00003", "odd", "val"),
        ("train/00004", "even", "test"),
        ("train/00005", "odd", "train"),
    ]
    assert rows[1]["sha256"] == hashlib.sha256(bytes([3] * 12)).hexdigest()
    assert compare(InMemory(), tmp_path / "m.csv") == []
    assert len(compare(InMemory(shade=1), tmp_path / "m.csv")) == 4


def test_made_from_the_data_s_own_folder(tmp_path: Path) -> None:
    """A committed manifest names files from the data's folder, wherever that lies on another machine."""
    task: Any = Folder(fill(tmp_path / "deep/data", "a", "b"))
    write(task, tmp_path / "m.csv")
    assert table(tmp_path / "m.csv")[0]["path"] == "a/0.png"
    task.root, task.folder = tmp_path, tmp_path / "deep/data"  # as a published task has it that was opened from above
    assert compare(task, tmp_path / "m.csv") == []


def test_relative_and_absolute_roots_are_one(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Folder(data), data.parent / "m.csv")
    monkeypatch.chdir(data)
    assert compare(Folder(Path()), data.parent / "m.csv") == []
    assert compare(Folder(data), data.parent / "m.csv") == []


def test_bad_input(data: Path, tmp_path: Path) -> None:
    task = Folder(data)
    for text, words in (("path,label\n1,2\n", "is no manifest"), ("a,b\n", "must be path,label"), ("", "must be path")):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            compare(task, tmp_path / "m.csv")
    with pytest.raises(UserError, match="cannot be read"):
        compare(task, tmp_path / "absent.csv")
    write(task, tmp_path / "m.csv")
    (data / "a/0.png").unlink()
    with pytest.raises(UserError, match=r"a/0.png cannot be read"):
        compare(task, tmp_path / "m.csv")

    class Secretive(Task):
        name = "secretive"
        targets = load = digest = None  # type: ignore[assignment]

    with pytest.raises(UserError, match="no manifest"):
        write(Secretive(), tmp_path / "m.csv")  # type: ignore[abstract]


ODD = [
    " a.png",
    "b .png",
    "  .png",
    "c\nd.png",
    "e\rf.png",
    "g\r\nh.png",
    'i "j", k.png',
    "l\udcffm.png",
    "\ufeffn.png",
]


def oddly_named(root: Path) -> Path:
    """A folder of images whose names need care in a table, in classes whose names do too."""
    fill(root, " a", "b\nc")
    for name in ODD:
        shutil.copy(root / " a/0.png", root / " a" / name)
        with open(root / " a" / name, "ab") as stream:
            stream.write(os.fsencode(name))  # so that no two are alike
    return root


def test_file_names_need_not_be_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, file = oddly_named(tmp_path / "data"), tmp_path / "m.csv"
    task = Folder(data)
    write(task, file)
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as stream:
        rows = list(csv.DictReader(stream))
    there = {os.path.relpath(path, data) for path in map(str, data.rglob("*.png"))}
    assert {row["path"] for row in rows} == there and len(there) == 20 + len(ODD)
    assert {row["label"] for row in rows} == {" a", "b\nc"}
    assert compare(task, file) == []
    for name in ODD:
        (data / " a" / name).unlink()
    missing = compare(Folder(data), file)
    assert sum(line.endswith(" is missing") for line in missing) == len(ODD)
    assert all(line.isprintable() for line in missing)
    assert run("data", "manifest", data, "--check", file) == 1
    assert len(capfd.readouterr().out.splitlines()) == len(missing)


@settings(max_examples=30, deadline=None)
@given(
    names=st.sets(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5
    )
)
def test_every_name_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    class Named(InMemory):
        def __init__(self) -> None:
            pixels = [Pixels(name, np.full((2, 2, 3), k, np.uint8)) for k, name in enumerate(sorted(names))]
            self.samples, self.notes = {"train": [(each, 0) for each in pixels], "val": [], "test": []}, []

    file = tmp_path_factory.mktemp("m") / "m.csv"
    write(Named(), file)
    assert compare(Named(), file) == []


def test_a_line_that_is_there_twice(data: Path, tmp_path: Path) -> None:
    write(Folder(data), tmp_path / "m.csv")
    lines = (tmp_path / "m.csv").read_text().splitlines(keepends=True)
    for again in (lines[3], lines[3].replace("train", "val")):
        (tmp_path / "m.csv").write_text("".join([*lines, again]))
        with pytest.raises(UserError, match=r"m.csv line 32 has .*\.png again; leave one of them"):
            compare(Folder(data), tmp_path / "m.csv")


# ------------------------------------------------------------------------------------------------- the verbs


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_manifest_verb(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.csv"
    assert run("data", "manifest", data, "-o", file) == 0
    assert file.read_text().startswith("path,label,split,sha256\n") and len(table(file)) == 30
    assert run("data", "manifest", data, "--check", file) == 0 and capsys.readouterr().out == ""
    (data / "a/0.png").unlink()
    assert run("data", "manifest", data, "--check", file) == 1
    assert "a/0.png is missing" in capsys.readouterr().out.splitlines()
    for arguments in ([], ["-o", file, "--check", file]):
        assert run("data", "manifest", data, *arguments) == 2
        assert "--check FILE" in capsys.readouterr().err


def pets(root: Path) -> None:
    """The prepared folders, each image a different one of a few hundred bytes."""
    place = root / "pets"
    chance = random.Random(0)
    for split, total in (("train", 3680), ("test", 3669)):
        for k in range(total):
            folder = place / split / f"breed {k % 37:02}"
            folder.mkdir(parents=True, exist_ok=True)
            if k < 40:
                pixels = Image.frombytes("L", (8, 8), chance.randbytes(64))
                pixels.save(folder / f"{k}.png")
            else:
                os.link(place / split / f"breed {k % 37:02}" / f"{k % 37}.png", folder / f"{k}.png")


def test_prepare_twice_then_with_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pets(tmp_path)
    file = tmp_path / "oxfordiiitpet.manifest.csv"
    assert run("data", "prepare", "oxfordiiitpet", "--root", tmp_path) == 0
    said = capsys.readouterr().err
    assert "37 classes, 3,312 train, 368 val, 3,669 test" in said and "7,349 images opened" in said
    written = file.read_bytes()
    assert f"written: {file}" in said and len(table(file)) == 7349
    assert run("data", "prepare", "oxfordiiitpet", "--root", tmp_path) == 0
    assert "the same as in" in capsys.readouterr().err and file.read_bytes() == written
    task = tasks.get("oxfordiiitpet")(tmp_path / "pets")
    assert compare(task, file) == []

    victim = tmp_path / "pets/test/breed 05/5.png"
    content = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(content[: len(content) // 2])
    assert run("data", "prepare", "oxfordiiitpet", "--root", tmp_path) == 1
    said = capsys.readouterr().err
    assert "1 of 7,349 images cannot be read" in said and "5.png (truncated)" in said
    shutil.copy(tmp_path / "pets/test/breed 06/6.png", victim)
    assert run("data", "prepare", "oxfordiiitpet", "--root", tmp_path) == 1
    assert "breed 05/5.png has other content than the manifest says" in capsys.readouterr().err
    assert file.read_bytes() == written


def test_prepare_says_what_to_get(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "prepare", "stanfordcars", "--root", tmp_path) == 2
    said = capsys.readouterr().err
    assert "cannot be downloaded" in said and "cars_train_annos.mat" in said and str(tmp_path / "stanford_cars") in said
    assert run("data", "prepare", "folder", "--root", tmp_path) == 2
    assert run("data", "prepare", "flower102", "--root", tmp_path) == 2
    assert "flowers102" in capsys.readouterr().err


def test_a_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_internet(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no internet")

    monkeypatch.setattr(torchvision.datasets.utils.urllib.request, "urlopen", no_internet)
    for root, left in ((tmp_path / "new", None), (tmp_path / "old", ["mine"]), (tmp_path / "begun", ["dtd"])):
        if left:
            (root / left[0]).mkdir(parents=True)
        for name in (
            "dtd",
            "fgvcaircraft",
            "flowers102",
            "food101",
            "oxfordiiitpet",
            "cifar10",
            "caltech101",
            "sun397",
        ):
            with pytest.raises(UserError, match="could not be downloaded"):
                tasks.get(name)(root)
        assert (sorted(path.name for path in root.rglob("*")) if root.exists() else None) == left


def test_half_a_download_is_taken_away_on_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtd: Any = tasks.get("dtd")

    def stopped(self: Any) -> None:
        (self.home / "images").mkdir(parents=True)
        (self.home / "images/half.jpg").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(dtd, "fetch", stopped)
    (tmp_path / "dtd").mkdir()
    with pytest.raises(KeyboardInterrupt):
        dtd(tmp_path)
    assert list(tmp_path.rglob("*")) == [tmp_path / "dtd"]
