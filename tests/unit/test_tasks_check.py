"""`check` finds what was put wrong, and only that."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from budwood.tasks.check import Report, check


def fill(root: Path, *classes: str, count: int = 4, start: int = 0) -> None:
    for k, label in enumerate(classes):
        (root / label).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            Image.new("RGB", (8, 8), (start + k, n, 9)).save(root / label / f"{n}.png")


def found(report: Report) -> dict[str, tuple[str, int]]:
    return {finding.kind: (finding.severity, finding.count) for finding in report.findings}


def test_nothing_wrong(tmp_path: Path) -> None:
    for start, split in enumerate(("train", "val", "test")):
        fill(tmp_path / split, "a", "b", start=10 * start)
    report = check(tmp_path)
    assert found(report) == {"class imbalance": ("info", 1)} and report.worst == "info"
    assert report.layout == "train/ val/ test/" and not report.refused
    assert report.totals == {split: {"a": 4, "b": 4} for split in ("train", "val", "test")}


def test_every_odd_kind(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", count=5)
    a = tmp_path / "a"
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(a / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(a / "deep.png")
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(a / "cmyk.jpg")
    Image.new("P", (8, 8)).save(a / "palette.png")
    Image.new("RGB", (8, 8), "red").save(a / "named.gif")
    (a / "named.gif").rename(a / "gif.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 8), "blue").save(a / "turned.jpg", exif=exif)
    Image.effect_noise((64, 64), 50).save(a / "cut.jpg")
    (a / "cut.jpg").write_bytes((a / "cut.jpg").read_bytes()[:900])
    (a / "zero.jpg").touch()
    (a / "text.jpg").write_text("hello")
    report = check(tmp_path)
    kinds = found(report)
    for fault in ("truncated", "zero-byte", "unreadable"):
        assert kinds[fault] == ("error", 1)
    assert kinds["grey"] == ("info", 2)
    assert kinds["palette"] == ("info", 2)  # the GIF is one too
    for kind in ("CMYK", "more than 8 bits", "EXIF-rotated"):
        assert kinds[kind] == ("info", 1)
    assert kinds["format differs from name"] == ("warning", 1)
    assert "cannot be read" in report.refused and kinds["cannot be used as it is"] == ("error", 1)
    assert sum(sum(split.values()) for split in report.totals.values()) == 16  # split all the same


def test_enormous(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    Image.new("1", (10_001, 10_001)).save(tmp_path / "a" / "huge.png")
    with pytest.warns(Image.DecompressionBombWarning):
        report = check(tmp_path)
    assert found(report)["enormous"] == ("error", 1)
    assert "a/huge.png" in next(f for f in report.findings if f.kind == "enormous").examples[0]


def test_duplicates(tmp_path: Path) -> None:
    for start, split in enumerate(("train", "val", "test")):
        fill(tmp_path / split, "a", "b", start=10 * start)
    copies = {
        "test/a/leak.png": "train/a/0.png",
        "train/b/twice.png": "train/b/1.png",
        "val/b/other.png": "val/a/2.png",
    }
    for copy, original in copies.items():
        (tmp_path / copy).write_bytes((tmp_path / original).read_bytes())
    report = check(tmp_path)
    examples = {finding.kind: finding.examples for finding in report.findings}
    assert examples["same image in two splits"] == ["test/a/leak.png = train/a/0.png"]
    assert examples["same image under two labels"] == ["val/a/2.png = val/b/other.png"]
    assert sorted(examples["same image twice in a split"]) == [
        "train/b/1.png = train/b/twice.png",
        "val/a/2.png = val/b/other.png",
    ]
    assert report.worst == "error" and not report.refused


def test_classes(tmp_path: Path) -> None:
    fill(tmp_path / "train", "a", count=30)
    fill(tmp_path / "train", "b", count=3, start=50)
    fill(tmp_path / "train", "single", count=1, start=60)
    fill(tmp_path / "test", "a", "b", start=80)
    (tmp_path / "train" / "void").mkdir()
    report = check(tmp_path)
    kinds = found(report)
    assert kinds["empty class"] == ("warning", 1) and kinds["class of one image"] == ("error", 1)
    assert kinds["class not in every split"] == ("warning", 1)
    assert kinds["class imbalance"] == ("warning", 34)
    assert "fewer than 2 images: single" in report.refused
    assert report.totals == {"train": {"a": 30, "b": 3, "single": 1}, "test": {"a": 4, "b": 4}}


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    report = check(tmp_path / "nowhere")
    assert report.worst == "error" and "does not exist" in report.refused and report.totals == {}
    fill(tmp_path, "a")
    report = check(tmp_path)
    assert "one class only" in report.refused and report.totals == {"all": {"a": 4}}
