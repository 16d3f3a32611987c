"""One's own images: every layout, every split that is made, every refusal."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from budwood.core.errors import UserError
from budwood.core.task import SPLITS
from budwood.tasks.folder import Folder
from budwood.tasks.samples import hold_out, split_three_ways


def image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 7)).save(path)
    return path


def fill(root: Path, count: int, *classes: str) -> None:
    """`count` different images in each of some class folders."""
    for k, label in enumerate(classes):
        for number in range(count):
            image(root / label / f"{number:03}.png", k * count + number)


def files(task: Folder, split: str) -> set[str]:
    return {Path(source).name for source, _ in task.samples[split]}  # type: ignore[index]


# ---------------------------------------------------------------------------------------------- layouts


def test_three_splits_as_given(tmp_path: Path) -> None:
    for split, count in zip(SPLITS, (5, 2, 3), strict=True):
        fill(tmp_path / split, count, "b", "a")
    task = Folder(tmp_path)
    assert task.classes == ("a", "b") and task.sizes == {"train": 10, "val": 4, "test": 6}
    assert task.targets("train") == [0] * 5 + [1] * 5
    assert task.notes == ["layout: train/ val/ test/"]
    loaded, target = task.load("train", lambda picture: picture)[0]
    assert target == 0 and loaded.getpixel((0, 0)) == (5, 0, 7)  # the first image of a, written second


def test_train_and_test_holds_val_out_of_train(tmp_path: Path) -> None:
    fill(tmp_path / "train", 20, "a", "b")
    fill(tmp_path / "test", 4, "a", "b")
    task = Folder(tmp_path)
    assert task.sizes == {"train": 34, "val": 6, "test": 8}
    assert Counter(task.targets("val")) == {0: 3, 1: 3}
    assert any("held out as val" in note for note in task.notes)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_train_and_val_reports_val_as_test(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", 20, "a", "b")
    fill(tmp_path / name, 4, "a", "b")
    task = Folder(tmp_path)
    assert task.sizes == {"train": 34, "val": 6, "test": 8}
    assert all(name in str(source) for source, _ in task.samples["test"])
    assert any("as test" in note for note in task.notes) and any("held out as val" in note for note in task.notes)


def test_class_folders_are_split_70_15_15(tmp_path: Path) -> None:
    fill(tmp_path, 20, "a", "b")
    fill(tmp_path, 3, "rare")
    task = Folder(tmp_path)
    assert task.sizes == {"train": 29, "val": 7, "test": 7}
    assert all(set(task.targets(split)) == {0, 1, 2} for split in SPLITS)
    assert any("70/15/15" in note for note in task.notes)


def test_train_alone_is_split_as_class_folders_are(tmp_path: Path) -> None:
    fill(tmp_path / "train", 20, "a", "b")
    assert Folder(tmp_path).sizes == {"train": 28, "val": 6, "test": 6}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, 5, "car", "train", "bus")
    assert Folder(tmp_path).classes == ("bus", "car", "train")


def test_csv(tmp_path: Path) -> None:
    fill(tmp_path / "pictures", 10, "x", "y")
    lines = [f"pictures\\{k}\\{n:03}.png, {k}" for k in "xy" for n in range(10)]
    table = tmp_path / "list.csv"
    table.write_text("﻿path,label\r\n" + "\r\n".join([*lines, "", lines[0]]), encoding="utf-8")
    task = Folder(table)
    assert task.classes == ("x", "y") and task.name == "list" and sum(task.sizes.values()) == 20
    assert "1 repeated rows of the CSV left out" in task.notes
    rows = [f"{line},{split}" for line, split in zip(lines, 2 * ("train " * 7 + "val val test").split(), strict=True)]
    table.write_text("path,label,split\n" + "\n".join(rows))
    assert Folder(table).sizes == {"train": 14, "val": 4, "test": 2}


def test_other_files_are_counted_and_nested_ones_found(tmp_path: Path) -> None:
    fill(tmp_path, 4, "a", "b")
    image(tmp_path / "a" / "deeper" / "still" / "z.JPG")
    for name in ("a/.DS_Store", "a/Thumbs.db", "b/readme.txt", "b/more.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".git" / "c").mkdir(parents=True)
    (tmp_path / "nothing").mkdir()
    task = Folder(tmp_path)
    assert sum(task.sizes.values()) == 9 and task.classes == ("a", "b")
    assert "4 files that are no images left out: 1 .db, 2 .txt, 1 hidden" in task.notes
    assert "class folders without an image left out: nothing" in task.notes


def test_linked_files_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(root, 4, "a", "b")
    (root / "a" / "linked.png").symlink_to(image(tmp_path / "elsewhere.png", 999))
    (root / "a" / "loop").symlink_to(root)
    (root / "c").symlink_to(root)
    task = Folder(root)
    assert sum(task.sizes.values()) == 9
    assert "1 linked folders not followed" in task.notes


# ------------------------------------------------------------------------------------------------ seeds


def test_same_everywhere_and_only_the_seed_moves_it(tmp_path: Path) -> None:
    names = [f"{label}/{n:03}.png" for label in "aB" for n in range(20)]
    for root, order in (("one", names), ("two", names[::-1])):
        for name in order:
            image(tmp_path / root / name, names.index(name))
    one, two, other = Folder(tmp_path / "one"), Folder(tmp_path / "two"), Folder(tmp_path / "one", seed=1)
    assert one.classes == ("B", "a")  # by code point, not by any locale
    assert one.digest() == two.digest() != other.digest()
    for split in SPLITS:
        paths = [[str(Path(s).relative_to(tmp_path))[4:] for s, _ in task.samples[split]] for task in (one, two)]
        assert paths[0] == paths[1] == sorted(paths[0])
    assert files(one, "test") != files(other, "test")


def test_the_split_itself_is_pinned() -> None:
    """Another split by the same seed would silently make old results incomparable."""
    splits = split_three_ways(["a"] * 10 + ["b"] * 10, seed=0)
    assert "".join(split[1] for split in splits) == "rreerarrrrrerrararrr"  # tRain, vAl, tEst


def test_digest_sees_image_label_and_split(tmp_path: Path) -> None:
    for split in SPLITS:
        fill(tmp_path / split, 3, "a", "b")
    digests = [Folder(tmp_path).digest()]
    image(tmp_path / "train/a/000.png", 12345)
    digests.append(Folder(tmp_path).digest())
    (tmp_path / "train/a/001.png").rename(tmp_path / "train/b/x.png")
    digests.append(Folder(tmp_path).digest())
    (tmp_path / "train/b/x.png").rename(tmp_path / "val/b/x.png")
    digests.append(Folder(tmp_path).digest())
    assert len(set(digests)) == 4


@given(
    sizes=st.lists(st.integers(2, 60), min_size=1, max_size=8),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**31),
    shuffle=st.randoms(use_true_random=False),
)
def test_hold_out_is_stratified(sizes: list[int], fraction: float, seed: int, shuffle) -> None:  # type: ignore[no-untyped-def]
    labels = [k for k, size in enumerate(sizes) for _ in range(size)]
    shuffle.shuffle(labels)
    held = hold_out(labels, fraction, seed)
    counts = Counter(label for label, out in zip(labels, held, strict=True) if out)
    for label, size in enumerate(sizes):
        assert 1 <= counts[label] < size
        assert abs(counts[label] - size * fraction) <= 1
    if all(size * fraction >= 1 for size in sizes):
        assert held.sum() == round(len(labels) * fraction)
    assert np.array_equal(held, hold_out(labels, fraction, seed))


@given(sizes=st.lists(st.integers(3, 60), min_size=1, max_size=8), seed=st.integers(0, 2**31))
def test_every_class_is_in_every_split(sizes: list[int], seed: int) -> None:
    labels = [k for k, size in enumerate(sizes) for _ in range(size)]
    splits = split_three_ways(labels, seed)
    counts = Counter(zip(labels, splits, strict=True))
    for label, size in enumerate(sizes):
        for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            assert counts[label, split] >= 1 and abs(counts[label, split] - size * share) <= 2


# --------------------------------------------------------------------------------------------- refusals


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        Folder(root, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_places(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is empty" in refusal(tmp_path)
    assert "neither a folder nor a .csv" in refusal(image(tmp_path / "picture.png"))
    assert "holds 1 images but no class folders" in refusal(tmp_path)
    (tmp_path / "a").mkdir()
    assert "holds no images" in refusal(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 5, "a", "b")
    real = os.scandir

    def scandir(path: object) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"{tmp_path / 'b'} cannot be read (Permission denied)" in refusal(tmp_path)


def test_too_little(tmp_path: Path) -> None:
    fill(tmp_path, 5, "a")
    assert "one class only (a)" in refusal(tmp_path)
    fill(tmp_path, 2, "b", "c", "d", "e")
    assert "4 classes have fewer than 3 images: b, c, d and 1 more" in refusal(tmp_path)
    fill(tmp_path / "split" / "train", 1, "a", "b")
    fill(tmp_path / "split" / "test", 1, "a", "b")
    assert "fewer than 2 images: a, b" in refusal(tmp_path / "split")


def test_classes_that_train_lacks(tmp_path: Path) -> None:
    fill(tmp_path / "train", 5, "a", "b", "only")
    fill(tmp_path / "test", 5, "a", "b")
    assert "1 classes of train are not in test: only" in Folder(tmp_path).notes
    fill(tmp_path / "test", 5, "c")
    assert "1 classes of test" in refusal(tmp_path) and "not in train: c" in refusal(tmp_path)


def test_splits_that_cannot_be(tmp_path: Path) -> None:
    fill(tmp_path / "test", 5, "a", "b")
    fill(tmp_path / "val", 5, "a", "b")
    assert "no train/" in refusal(tmp_path)
    fill(tmp_path / "train", 5, "a", "b")
    fill(tmp_path / "valid", 5, "a", "b")
    assert "two folders for val" in refusal(tmp_path)


def test_unlabelled_test_images(tmp_path: Path) -> None:
    fill(tmp_path / "train", 5, "a", "b")
    image(tmp_path / "test" / "1.png")
    assert "test has no class folders" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;label\na.png;x\n", r"has columns file;label; its first line must be path,label"),
        ("", "has columns none"),
        (
            "path,label\n1.png,x\n2.png,x\n3.png,y\n4.png,y\n",
            "lists 4 files that do not exist: 1.png, 2.png, 3.png and 1",
        ),
        ("path,label\na.png,x\n./a.png,y\n", "lists a.png twice with different labels"),
        ("path,label,split\na.png,x,train\na.png,x,test\n", "lists a.png twice"),
        ("path,label,split\na.png,x,hold\n", "line 2 has the split 'hold'"),
        ("path,label,split\na.png,x,train\nb.png,x,\n", "in some rows only"),
        ("path,label\na.png,\n", "line 2 has no label"),
        ("path,label\n,x\n", "line 2 has no path"),
        ("path,label\n", "holds no images"),
        ("path,label\na.png,\xe9\n", "not UTF-8"),
    ],
)
def test_csv_refusals(tmp_path: Path, text: str, message: str) -> None:
    for name in ("a.png", "b.png"):
        image(tmp_path / name)
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    assert re.search(message, refusal(tmp_path / "list.csv"))


def test_unreadable_images(tmp_path: Path) -> None:
    fill(tmp_path, 60, "a", "b")
    (tmp_path / "a" / "000.png").write_bytes(b"")
    task = Folder(tmp_path)
    assert sum(task.sizes.values()) == 119
    assert "1 of 120 images left out, not readable: a/000.png (zero-byte)" in task.notes
    (tmp_path / "a" / "broken.png").symlink_to(tmp_path / "gone.png")
    message = refusal(tmp_path)
    assert "2 of 121 images" in message and "budwood data check" in message and "--allow-unreadable" in message
    assert sum(Folder(tmp_path, allow_unreadable=True).sizes.values()) == 119


def test_options(tmp_path: Path) -> None:
    fill(tmp_path, 4, "a", "b")
    assert Folder(tmp_path).metric == "top1"
    assert Folder(tmp_path, metric="mean_per_class").metric == "mean_per_class"
    assert "no metric called 'f1'" in refusal(tmp_path, metric="f1")
    assert "needs to know where" in refusal(None)  # type: ignore[arg-type]


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_names_that_are_not_text(tmp_path: Path) -> None:
    fill(tmp_path, 4, "a", "b")
    odd = os.fsencode(tmp_path / "a") + b"/\xff.png"
    with open(odd, "wb"):
        pass
    refusal(tmp_path).encode()
    assert Folder(tmp_path, allow_unreadable=True).digest()
