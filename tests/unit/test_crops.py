"""Stored crops: the same tensors as without them, decoded once, made again where the file is no good."""

import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from budwood.core.files import digest_of
from budwood.core.task import SPLITS, Preprocessing, Split
from budwood.tasks.images import ImageError, transforms
from budwood.tasks.samples import SampleTask
from budwood.transfer.crops import Crops, dataset

SHAPES = [(40, 40), (57, 41), (23, 90), (31, 32), (16, 16), (9, 12), (200, 3)]
"""Width and height of the images, in turn."""


class Noise(SampleTask):
    """Images of noise of many shapes, more of them than are decoded together; `decoded` lists those that were."""

    name, source, licence = "noise", "made here", "none"
    classes, notes = ("a", "b", "c"), []

    def __init__(self, seed: int = 0, count: int = 150) -> None:
        chance = np.random.default_rng(seed)
        self.seed = seed
        self.decoded: list[Any] = []
        self.samples = {
            split: [
                (chance.integers(0, 256, (*SHAPES[k % len(SHAPES)][::-1], 3), dtype=np.uint8), k % 3)
                for k in range(count)
            ]
            for split in SPLITS
        }

    def read(self, source: Any) -> Image.Image:
        self.decoded.append(source)
        return Image.fromarray(source)

    def digest(self) -> str:
        return digest_of(self.seed)


def plain(task: Noise, split: Split, preprocessing: Preprocessing) -> tuple[torch.Tensor, list[int]]:
    data = task.load(split, transforms(preprocessing, train=False))
    return torch.stack([data[i][0] for i in range(len(data))]), [data[i][1] for i in range(len(data))]


PREPROCESSINGS = [
    Preprocessing(size=16, resize=20),
    Preprocessing(size=16, resize=16, interpolation="bicubic"),
    Preprocessing(size=15, resize=33, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
    Preprocessing(size=21, resize=18, mean=(0.1, 0.2, 0.3), std=(1.7, 0.01, 3.0)),
]


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS, ids=str)
def test_the_tensors_are_those_of_the_transform_to_the_bit(tmp_path: Path, preprocessing: Preprocessing) -> None:
    task = Noise()
    expected, targets = plain(task, "val", preprocessing)
    for folder in (None, tmp_path, tmp_path):  # not stored, written, read
        data = dataset(task, "val", preprocessing, folder)
        assert len(data) == 150 and isinstance(data, Crops) == (folder is not None)
        pairs = [data[i] for i in range(150)]
        assert torch.equal(torch.stack([x for x, _ in pairs]), expected) and [int(y) for _, y in pairs] == targets
    assert isinstance(data, Crops)
    batches = list(data.batches(40))
    assert torch.equal(torch.cat([x for x, _ in batches]), expected)
    assert torch.cat([y for _, y in batches]).tolist() == targets
    assert all(x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)
    some, theirs = data[[140, 3, 3]]
    assert torch.equal(some, expected[[140, 3, 3]]) and theirs.tolist() == [targets[140], targets[3], targets[3]]
    loaded = list(DataLoader(data, batch_size=40, num_workers=1))
    assert torch.equal(torch.cat([x for x, _ in loaded]), expected)


def test_a_file_holds_the_crops_and_nothing_else(tmp_path: Path) -> None:
    task = Noise()
    dataset(task, "train", Preprocessing(size=16, resize=20), tmp_path)
    (file,) = tmp_path.iterdir()
    assert 0 <= file.stat().st_size - 150 * 16 * 16 * 3 <= 256
    assert isinstance(np.load(file, mmap_mode="r", allow_pickle=False), np.memmap)


def test_networks_that_normalise_differently_share_it(tmp_path: Path) -> None:
    task = Noise()
    first, second = Preprocessing(size=16, resize=20), Preprocessing(size=16, resize=20, std=(2.0, 3.0, 4.0))
    dataset(task, "test", first, tmp_path)
    assert len(task.decoded) == 150
    data = dataset(task, "test", second, tmp_path)
    found = torch.stack([data[i][0] for i in range(150)])
    assert len(task.decoded) == 150
    assert torch.equal(found, plain(task, "test", second)[0])


def test_nothing_else_is_shared(tmp_path: Path) -> None:
    base = Preprocessing(size=16, resize=20)
    others = [{"size": 15}, {"resize": 21}, {"interpolation": "bicubic"}]
    views = [base, *(base.model_copy(update=change) for change in others)]
    asked: list[tuple[Noise, Split, Preprocessing]] = [(Noise(), "val", view) for view in views]
    asked += [(Noise(), "test", base), (Noise(seed=1), "val", base)]
    for turn in range(2):
        for task, split, view in asked:
            data = dataset(task, split, view, tmp_path)
            assert len(task.decoded) == (150 if turn == 0 else 0)
            assert torch.equal(data[7][0], plain(task, split, view)[0][7])
            task.decoded.clear()
    assert len(list(tmp_path.iterdir())) == len(asked)


class Explodes:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def pickled(path: Path) -> None:
    np.save(path, np.array([Explodes(path.with_name("trace"))], dtype=object), allow_pickle=True)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "header alone": lambda path: path.write_bytes(path.read_bytes()[:128]),
    "half a header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "garbled header": lambda path: path.write_bytes(path.read_bytes()[:10] + b"(" * 118 + bytes(150 * 16 * 16 * 3)),
    "empty": lambda path: path.write_bytes(b""),
    "not an array": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200_000)),
    "fewer images": lambda path: np.save(path, np.zeros((149, 16, 16, 3), np.uint8)),
    "other numbers": lambda path: np.save(path, np.zeros((150, 16, 16, 3), np.float32)),
    "python objects": pickled,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_good_is_made_again(tmp_path: Path, damage: str) -> None:
    task, view = Noise(), Preprocessing(size=16, resize=20)
    dataset(task, "val", view, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    DAMAGES[damage](file)
    data = dataset(task, "val", view, tmp_path)
    assert torch.equal(torch.stack([data[i][0] for i in range(150)]), plain(task, "val", view)[0])
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_bytes() == whole


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    task, view = Noise(), Preprocessing(size=16, resize=20)
    dataset(task, "val", view, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.unlink()
    file.with_suffix(".part").write_bytes(bytes(500_000))
    file.with_suffix(".lock").touch()
    dataset(task, "val", view, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_bytes() == whole


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 2 * 2**30 - 1000, 2 * 2**30 + 1000))
    yield


@pytest.mark.usefixtures("full_disk")
def test_without_room_they_are_decoded_every_time(tmp_path: Path) -> None:
    task, view = Noise(), Preprocessing(size=16, resize=20)
    for _ in range(2):
        data = dataset(task, "val", view, tmp_path)
        task.decoded.clear()
        assert torch.equal(data[3][0], plain(task, "val", view)[0][3])
        assert not list(tmp_path.iterdir()) and task.decoded
    small = Noise(count=1)
    assert isinstance(dataset(small, "val", view, tmp_path), Crops)  # 768 bytes, and there are 1000


def test_an_unreadable_image_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    class Files(SampleTask):
        name, classes, notes = "files", ("a", "b"), []

        def digest(self) -> str:
            return "f" * 64

    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (20, 20)).save(good)
    bad.write_bytes(good.read_bytes()[:40])
    task = Files()
    task.samples = {"val": [(good, 0), (bad, 1), (good, 1)]}
    with pytest.raises(ImageError, match=r"bad\.png is"):
        dataset(task, "val", Preprocessing(size=16, resize=16), tmp_path / "crops")
    assert not list((tmp_path / "crops").iterdir())
