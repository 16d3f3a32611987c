"""The contract of every registered task, on every layout in which people have its data."""

import importlib.util
import shutil
import tarfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets.utils
from PIL import Image
from torchvision import datasets

from budwood.core.errors import UserError
from budwood.core.registry import tasks
from budwood.testing.tasks import check_task

from .data_sets import CARS, LAYOUTS, lay_out

ARCHIVES = Path(__file__).resolve().parents[3] / "shared" / "data" / "images"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Removed at once: tens of thousands of files are not to be kept for three runs, as pytest would."""
    yield tmp_path / "data"
    shutil.rmtree(tmp_path / "data", ignore_errors=True)


def opened(name: str, root: Path | None, **options: Any) -> Any:
    return tasks.get(name)(root, download=False, **options)


def test_every_member_is_checked_here() -> None:
    assert set(tasks.names()) == {"folder", "elpv", *LAYOUTS}


STUDY = {  # classes, train, test, metric, mean and deviation in ten thousandths, fine-grained: the study's own settings
    "fgvcaircraft": (100, 6667, 3333, "mean_per_class", [4892, 5159, 5356, 2275, 2200, 2476], True),
    "birdsnap": (500, 32677, 8171, "top1", [4856, 4948, 4486, 2233, 2213, 2586], True),
    "caltech101": (101, 3030, 5647, "mean_per_class", [5413, 5063, 4693, 3115, 3090, 3183], False),
    "caltech256": (257, 15420, 15187, "mean_per_class", [5438, 5141, 4821, 3077, 3044, 3163], False),
    "stanfordcars": (196, 8144, 8041, "top1", [4513, 4354, 4358, 2900, 2880, 2951], True),
    "cifar10": (10, 50000, 10000, "top1", [4914, 4822, 4465, 2023, 1994, 2010], False),
    "cifar100": (100, 50000, 10000, "top1", [5071, 4867, 4408, 2675, 2565, 2761], False),
    "dtd": (47, 3760, 1880, "top1", [5322, 4734, 4251, 2642, 2530, 2613], False),
    "flowers102": (102, 2040, 6149, "mean_per_class", [5133, 4148, 3383, 2959, 2502, 2900], True),
    "food101": (101, 75750, 25250, "top1", [5566, 4378, 3193, 2589, 2622, 2630], True),
    "oxfordiiitpet": (37, 3680, 3669, "mean_per_class", [4807, 4432, 3949, 2598, 2537, 2597], True),
    "sun397": (397, 19850, 19850, "top1", [4772, 4566, 4168, 2556, 2520, 2720], False),
}


@pytest.mark.parametrize("name", STUDY)
def test_facts_of_the_study(name: str) -> None:
    kind = tasks.get(name)
    mean, deviation = kind.statistics
    pixels = [round(10000 * value) for value in (*mean, *deviation)]
    train = kind.declared_sizes["train"] + kind.declared_sizes["val"]
    here = kind.declared_classes, train, kind.declared_sizes["test"], kind.metric, pixels, kind.fine_grained
    assert here == STUDY[name]
    assert kind.study_lr == (0.01 if name in ("fgvcaircraft", "stanfordcars") else 0.001)


LARGE = {"birdsnap", "caltech256", "cifar10", "cifar100", "food101", "sun397"}
CASES = [
    pytest.param(name, layout, marks=pytest.mark.slow if layout == "class folders" and name in LARGE else ())
    for name, layouts in LAYOUTS.items()
    for layout in layouts
]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_contract_of_published_sets(name: str, layout: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(name, layout, root, monkeypatch)
    task = check_task(lambda: opened(name, root))
    assert task.source.startswith("https://") and task.licence and task.notes[0].startswith("layout: ")
    assert any("held out" in note for note in task.notes) == (task.trainval is not None) or name == "fgvcaircraft"


@pytest.mark.parametrize(("name", "moves"), [("oxfordiiitpet", True), ("dtd", False)])
def test_a_seed_moves_what_is_held_out(name: str, moves: bool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(name, "authors", root, monkeypatch)
    assert (opened(name, root, seed=1).digest() != opened(name, root).digest()) == moves


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


@pytest.fixture
def no_internet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked for."""
    asked: list[str] = []

    def urlopen(request: Any, *_: Any, **__: Any) -> None:
        asked.append(request.full_url)
        raise urllib.error.URLError("no internet")

    monkeypatch.setattr(torchvision.datasets.utils.urllib.request, "urlopen", urlopen)
    return asked


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_absent(name: str, tmp_path: Path, no_internet: list[str]) -> None:
    member: Any = tasks.get(name)
    where = str(tmp_path / member.place)
    for download in (False, True):
        message = refusal(name, tmp_path, download=download)
        assert member.source in message and where in message
        assert ("no internet" if download and member.dataset else "is not in") in message
    assert bool(no_internet) == bool(member.dataset)


def test_data_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDWOOD_DATA", str(tmp_path))
    assert str(tmp_path / "dtd") in refusal("dtd", None, download=False)


def test_a_download_that_was_begun_goes_on_and_other_folders_are_left_alone(
    tmp_path: Path, no_internet: list[str]
) -> None:
    for place in ("flowers-102/jpg", "other/jpg", "other/SUN397/a/abbey", "SUN397/a/abbey"):
        (tmp_path / place).mkdir(parents=True)
    assert "could not be downloaded" in refusal("flowers102", tmp_path) and no_internet
    assert "could not be downloaded" in refusal("sun397", tmp_path)  # its lists, as its images seem to be there
    assert no_internet[-1].endswith("Partitions.zip")
    no_internet.clear()
    assert "incomplete: it has no imagelabels.mat, setid.mat" in refusal("flowers102", tmp_path / "other")
    assert "incomplete: it has no Training_01.txt" in refusal("sun397", tmp_path / "other/SUN397")
    assert no_internet == []


def test_wrong_counts_name_both(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("dtd", "authors", root, monkeypatch)
    labels = root / "dtd/dtd/labels/val1.txt"
    labels.write_text("\n".join(labels.read_text().split()[1:]) + "\n")
    message = refusal("dtd", root, download=False)
    assert "'val': 1879" in message and "'val': 1880" in message


def test_missing_broken_and_empty_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("dtd", "authors", root, monkeypatch)
    first, second, third = (root / f"dtd/dtd/images/texture00/texture00_{k:04}.jpg" for k in (0, 3, 6))
    first.unlink()
    assert "lacks 1 train images" in refusal("dtd", root) and "images/texture00/texture00_0000.jpg" in refusal(
        "dtd", root
    )
    second.unlink()
    second.symlink_to("nowhere.jpg")
    third.unlink()
    third.touch()
    assert "lacks 3 train images" in refusal("dtd", root)
    (root / "dtd/dtd/labels/test1.txt").unlink()
    assert "incomplete" in refusal("dtd", root)


def test_missing_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("caltech101", "authors", root, monkeypatch)
    shutil.rmtree(root / "caltech101/101_ObjectCategories/accordion")
    assert "'classes': 100" in refusal("caltech101", root, download=False)
    lay_out("oxfordiiitpet", "class folders", root / "more", monkeypatch)
    (root / "more/pets/train/class 007").rename(root / "more/away")
    assert "has not two train images of class 007" in refusal("oxfordiiitpet", root / "more")
    (root / "more/pets/train/class 007").mkdir()
    assert "has no image in train/class 007" in refusal("oxfordiiitpet", root / "more")


def test_damaged_lists(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("stanfordcars", "torchvision", root, monkeypatch)
    file = root / "stanford_cars/devkit/cars_train_annos.mat"
    whole = file.read_bytes()
    for data in (b"", b"no such thing", whole[: len(whole) // 2]):
        file.write_bytes(data)
        assert "is incomplete" in refusal("stanfordcars", root)


def test_cars_in_csv_need_their_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("stanfordcars", "CSV", root, monkeypatch)
    file = root / "devkit/cars_test_annos_withlabels.csv"
    file.write_text(file.read_text().replace("Class", "bbox_x2"))
    assert "has no column `class`" in refusal("stanfordcars", root)
    file.write_text("bbox_x1,class,fname\n1,197,00001.jpg\n")
    assert "stanfordcars in" in refusal("stanfordcars", root)


# ------------------------------------------------------------------------- splits, against other readers of them


def names_of(task: Any, *splits: str) -> list[tuple[str, int]]:
    return [(str(Path(s).relative_to(task.folder)), k) for split in splits for s, k in task.samples[split]]


@pytest.mark.parametrize(
    ("name", "train"), [("caltech101", 30), pytest.param("caltech256", 60, marks=pytest.mark.slow)]
)
def test_caltech_against_torchvision(name: str, train: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(name, "authors", root, monkeypatch)
    task = opened(name, root)
    theirs: Any = tasks.get(name).dataset(root)
    assert list(task.classes) == theirs.categories
    numbers = [[(k, n) for k, n in zip(theirs.y, theirs.index, strict=True) if k == c] for c in set(theirs.y)]
    expected = {"train": [x for c in numbers for x in c[:train]], "test": [x for c in numbers for x in c[train:]]}
    together = {"train": task.trainval, "test": task.samples["test"]}
    for split, samples in together.items():
        assert [(k, int(Path(s).stem[-4:])) for s, k in samples] == expected[split]
    stray = task.folder / task.classes[5] / "Thumbs.db"
    stray.touch()
    shutil.rmtree(task.folder / "BACKGROUND_Google", ignore_errors=True)
    assert opened(name, root).digest() == task.digest()


def test_cars_against_torchvision_and_among_layouts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for layout in ("torchvision", "CSV", "headless CSV", "single archive"):
        lay_out("stanfordcars", layout, root / layout, monkeypatch)
        found[layout] = task = opened("stanfordcars", root / layout)
        assert list(task.classes) == CARS
    for split, samples in (("train", "trainval"), ("test", None)):
        theirs: Any = datasets.StanfordCars(root / "torchvision", split=split)
        assert theirs.classes == CARS
        expected = [(Path(path).name, k) for path, k in theirs._samples]
        for layout in ("torchvision", "CSV", "headless CSV"):
            ours = found[layout].trainval if samples else found[layout].samples["test"]
            assert [(path.name, k) for path, k in ours] == expected
    assert found["single archive"].targets("test") == [k % 196 for k in range(8144, 8144 + 8041)]


def test_sun_against_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("sun397", "authors", root, monkeypatch)
    task = opened("sun397", root)
    theirs: Any = datasets.SUN397(root)
    assert list(task.classes) == theirs.classes and task.classes[1] == "church/indoor"
    lines = (root / "Partitions/Training_01.txt").read_text().split()
    assert [f"/{Path(s).relative_to(task.folder)}" for s, _ in task.trainval] == lines
    assert all(
        task.classes[k] == "/".join(Path(s).parts[-3:-1]).split("/", 1)[-1] or "church" in str(s)
        for s, k in task.trainval[::50]
    )


def test_aircraft_in_the_authors_order(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("fgvcaircraft", "authors", root, monkeypatch)
    task = opened("fgvcaircraft", root)
    numbers = [int(Path(s).stem) for s, _ in task.trainval]
    assert numbers[:3] == [0, 100, 200] and sorted(numbers) == list(range(6667))


def test_birdsnap_says_what_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("birdsnap", "lists", root, monkeypatch)
    task = opened("birdsnap", root)
    sizes: Any = task.sizes
    assert sizes["test"] == 2443 and sizes["train"] + sizes["val"] == 49829 - 2443 - 250 * 20
    assert (
        task.notes[-1]
        == "42,386 train images for the study's 32,677; 2,443 test images for the study's 8,171, 5,728 missing"
    )
    assert any("47,386 images listed in train, 2,443 in test" in note for note in task.notes)
    shutil.rmtree(root / "birdsnap/download/images/Bird_003")
    assert "has not two train images of Bird_003" in refusal("birdsnap", root)


@pytest.mark.parametrize(("name", "own"), [("dtd", "dtd/dtd"), ("oxfordiiitpet", "oxford-iiit-pet")])
def test_own_folder_or_the_one_above(name: str, own: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(name, "authors", root, monkeypatch)
    digest = opened(name, root).digest()
    steps = Path(own).parts
    for k in range(1, len(steps) + 1):
        assert opened(name, root.joinpath(*steps[:k])).digest() == digest
    (root / own).rename(root / "textures and pets")
    task = opened(name, root / "textures and pets")
    assert task.digest() == digest and all(Path(s).exists() for s, _ in task.samples["train"])


def test_val_of_class_folders_is_as_large_as_the_authors(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("flowers102", "class folders", root, monkeypatch)
    task = opened("flowers102", root)
    assert set(np.bincount(task.targets("val"))) == {10} and "cannot be told from train" in task.notes[-1]


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
