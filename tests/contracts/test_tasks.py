"""The contract of every registered task, on a data set's real layout: names and counts are true, pixels are not."""

import hashlib
import importlib.util
import json
import os
import shutil
import tarfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torchvision.datasets.utils
from PIL import Image
from torchvision import datasets

from budwood.core.errors import UserError
from budwood.core.registry import tasks
from budwood.testing.tasks import check_task

ARCHIVES = Path(__file__).resolve().parents[3] / "shared" / "data" / "images"


class Builder:
    """Lays files out below a root; every image is one tiny JPEG under another name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.picture = root / "picture.jpg"
        root.mkdir(parents=True)
        Image.linear_gradient("L").resize((50, 60)).convert("RGB").save(self.picture)

    def image(self, name: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(self.picture, self.root / name)

    def text(self, name: str, lines: list[str]) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text("\n".join(lines) + "\n")


def flowers102(build: Builder, patch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    ids = np.arange(1, 8190)
    labels = (ids - 1) % 102 + 1
    for k in ids:
        build.image(f"flowers-102/jpg/image_{k:05d}.jpg")
    folder = build.root / "flowers-102"
    scipy_io.savemat(folder / "imagelabels.mat", {"labels": labels})
    scipy_io.savemat(folder / "setid.mat", {"trnid": ids[:1020], "valid": ids[1020:2040], "tstid": ids[2040:]})
    # The check of the label files stays, against the sums of these ones.
    sums = dict(datasets.Flowers102._file_dict)
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        sums[key] = (name, hashlib.md5((folder / name).read_bytes()).hexdigest())
    patch.setattr(datasets.Flowers102, "_file_dict", sums)


def dtd(build: Builder, patch: pytest.MonkeyPatch) -> None:
    rows: dict[str, list[str]] = {"train1": [], "val1": [], "test1": []}
    for k in range(47):
        for number in range(120):
            name = f"texture{k:02}/texture{k:02}_{number:04}.jpg"
            build.image(f"dtd/dtd/images/{name}")
            rows[("train1", "val1", "test1")[number % 3]].append(name)
    for part, names in rows.items():
        build.text(f"dtd/dtd/labels/{part}.txt", names)


def fgvcaircraft(build: Builder, patch: pytest.MonkeyPatch) -> None:
    data = "fgvc-aircraft-2013b/data"
    variants = ["F/A-18", "Boeing 717", *(f"A{300 + k}" for k in range(98))]
    build.text(f"{data}/variants.txt", variants)
    for part, first, last in (("train", 0, 3334), ("val", 3334, 6667), ("test", 6667, 10000)):
        build.text(f"{data}/images_variant_{part}.txt", [f"{k:07} {variants[k % 100]}" for k in range(first, last)])
    for k in range(10000):
        build.image(f"{data}/images/{k:07}.jpg")


def food101(build: Builder, patch: pytest.MonkeyPatch) -> None:
    for k in range(1000):
        build.image(f"food-101/images/dish_000/{k}.jpg")
    dishes = [f"dish_{k:03}" for k in range(101)]
    for dish in dishes[1:]:  # 101,000 files would take their time
        (build.root / "food-101/images" / dish).symlink_to("dish_000")
    for part, numbers in (("train", range(750)), ("test", range(750, 1000))):
        build.text(f"food-101/meta/{part}.json", [json.dumps({d: [f"{d}/{k}" for k in numbers] for d in dishes})])


def oxfordiiitpet(build: Builder, patch: pytest.MonkeyPatch) -> None:
    for part, count in (("trainval", 3680), ("test", 3669)):
        ids = [(f"great_breed{k % 37:02}_{part}{k}", k % 37 + 1) for k in range(count)]
        build.text(f"oxford-iiit-pet/annotations/{part}.txt", [f"{name} {label} 1 1" for name, label in ids])
        for name, _ in ids:
            build.image(f"oxford-iiit-pet/images/{name}.jpg")


def cifar(build: Builder, patch: pytest.MonkeyPatch, classes: int, name: str) -> None:
    """Its real files are pickles under fixed checksums, so torchvision's reader is stood in for."""

    def reader(root: Path, train: bool, download: bool) -> SimpleNamespace:
        count = 50000 if train else 10000
        names = [f"class {k}" for k in range(classes)]
        data = np.zeros((count, 32, 32, 3), np.uint8)
        return SimpleNamespace(data=data, targets=[k % classes for k in range(count)], classes=names)

    patch.setattr(tasks.get(name), "dataset", staticmethod(reader))


LAYOUTS = {
    "flowers102": flowers102,
    "dtd": dtd,
    "fgvcaircraft": fgvcaircraft,
    "food101": food101,
    "oxfordiiitpet": oxfordiiitpet,
    "cifar10": lambda build, patch: cifar(build, patch, 10, "cifar10"),
    "cifar100": lambda build, patch: cifar(build, patch, 100, "cifar100"),
}


def lay_out(name: str, root: Path, patch: pytest.MonkeyPatch) -> Path:
    LAYOUTS[name](Builder(root), patch)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Removed at once: tens of thousands of files are not to be kept for three runs, as pytest would."""
    yield tmp_path / "data"
    shutil.rmtree(tmp_path / "data", ignore_errors=True)


def test_every_member_is_checked_here() -> None:
    assert set(tasks.names()) == {"folder", "elpv", *LAYOUTS}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_contract_of_torchvision_sets(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(name, root, monkeypatch)
    task = check_task(lambda: tasks.get(name)(root, download=False))
    assert task.source.startswith("https://") and task.licence
    moved = tasks.get(name)(root, seed=1, download=False).digest() != task.digest()
    assert moved == any("held out" in note for note in task.notes)  # the authors' own splits know no seed


@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="the package elpv-dataset is absent")
def test_contract_of_elpv() -> None:
    task: Any = check_task(lambda: tasks.get("elpv")(None))
    shares = [np.mean(task.targets(split)) for split in ("train", "val", "test")]
    assert max(shares) - min(shares) < 0.01
    label = {Path(source).stem: target for part in task.samples.values() for source, target in part}
    assert len(label) == 2624 and label["cell0001"] == 1 and label["cell0004"] == 0  # probabilities 1.0 and 0.0
    assert "Buerhop-Lutz" in task.source and task.licence == "CC BY-NC-SA 4.0"


def test_elpv_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'budwood\[demo\]'"):
        tasks.get("elpv")(None)


def test_contract_of_folder(tmp_path: Path) -> None:
    for k, label in enumerate(("b", "a", "c")):
        for n in range(8):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (20, 30), (k, n, 0)).save(tmp_path / label / f"{n}.png")
    check_task(lambda: tasks.get("folder")(tmp_path))


@pytest.mark.skipif(not ARCHIVES.is_dir(), reason="no image archives beside this checkout")
@pytest.mark.parametrize(
    ("name", "classes", "train", "test"), [("flowers5", 5, 1250, 450), ("neu6", 6, 900, 480), ("dtd10", 10, 785, 392)]
)
def test_contract_of_folder_on_photographs(name: str, classes: int, train: int, test: int, tmp_path: Path) -> None:
    with tarfile.open(ARCHIVES / f"{name}.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    task = check_task(lambda: tasks.get("folder")(tmp_path / name))
    sizes = task.sizes
    assert len(task.classes) == classes and sizes["train"] + sizes["val"] == train and sizes["test"] == test


# ------------------------------------------------------------------------------------------- refusals


def refusal(name: str, root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        tasks.get(name)(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_absent_and_no_internet(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_internet(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no internet")

    monkeypatch.setattr(torchvision.datasets.utils.urllib.request, "urlopen", no_internet)
    member: Any = tasks.get(name)
    where = str(tmp_path / member.place)
    message = refusal(name, tmp_path)
    assert "no internet" in message and member.source in message and where in message
    message = refusal(name, tmp_path, download=False)
    assert "is not in" in message and member.source in message and where in message


def test_data_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDWOOD_DATA", str(tmp_path))
    assert str(tmp_path / "dtd") in refusal("dtd", None, download=False)  # type: ignore[arg-type]


def test_wrong_counts_name_both(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("dtd", root, monkeypatch)
    labels = root / "dtd/dtd/labels/val1.txt"
    labels.write_text("\n".join(labels.read_text().split()[1:]) + "\n")
    message = refusal("dtd", root, download=False)
    assert "'val': 1879" in message and "'val': 1880" in message


def test_missing_images_and_labels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("dtd", root, monkeypatch)
    (root / "dtd/dtd/images/texture00/texture00_0000.jpg").unlink()
    assert "lacks 1 train images: dtd/dtd/images/texture00/texture00_0000.jpg" in refusal("dtd", root)
    (root / "dtd/dtd/labels/test1.txt").unlink()
    assert "incomplete" in refusal("dtd", root)


def test_the_contract_can_fail(tmp_path: Path) -> None:
    for label in "ab":
        for n in range(4):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (20, 30), (n, 0, 0)).save(tmp_path / label / f"{n}.png")

    def broken(**changes: Any) -> Any:
        task = tasks.get("folder")(tmp_path)
        for key, value in changes.items():
            setattr(task, key, value)
        return task

    good = broken()
    digests = iter(["0" * 64, "1" * 64])
    spoilt = [
        lambda: broken(classes=("a", "a")),
        lambda: broken(classes=("a",)),
        lambda: broken(metric="f1"),
        lambda: broken(samples={**good.samples, "val": []}),
        lambda: broken(samples={**good.samples, "val": good.samples["train"]}),
        lambda: broken(samples={**good.samples, "val": [(good.samples["val"][0][0], 2)]}),
        lambda: broken(declared_sizes={"train": 1, "val": 1, "test": 1}),
        lambda: broken(declared_classes=3),
        lambda: broken(digest=lambda value=None: next(digests)),
    ]
    for opener in spoilt:
        with pytest.raises(AssertionError):
            check_task(opener)
