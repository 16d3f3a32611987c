"""The published data sets in the layouts people have them in: names and counts are true, pixels are not."""

import csv
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from budwood.core.registry import tasks

Fixture = Callable[["Builder", pytest.MonkeyPatch], None]


class Builder:
    """Lays files out below a root; every image is one tiny JPEG under another name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        Image.linear_gradient("L").resize((50, 60)).convert("RGB").save(root / ".picture.jpg")
        self.links = 0

    def image(self, name: str) -> None:
        self.images(str(Path(name).parent), [Path(name).name])

    def images(self, folder: str, names: Iterable[str]) -> None:
        where = os.path.join(self.root, folder)
        os.makedirs(where, exist_ok=True)
        for name in names:
            self.links += 1
            picture = self.root / f".picture{self.links // 50000}.jpg"  # a file may have 65,000 names
            if not picture.exists():
                picture.write_bytes((self.root / ".picture.jpg").read_bytes())
            os.link(picture, os.path.join(where, name))

    def like(self, folder: str, others: Iterable[str]) -> None:
        """More folders with what one has: a hundred thousand files would take their time."""
        for name in others:
            (self.root / folder).with_name(name).symlink_to(Path(folder).name)

    def text(self, name: str, lines: Iterable[str]) -> None:
        self.file(name).write_text("\n".join(lines) + "\n")

    def mat(self, name: str, **values: Any) -> None:
        from scipy.io import savemat

        savemat(self.file(name), values)

    def table(self, name: str, rows: Iterable[Iterable[Any]]) -> None:
        with open(self.file(name), "w", newline="") as stream:
            csv.writer(stream).writerows(rows)

    def file(self, name: str) -> Path:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        return self.root / name


def shared(total: int, classes: int) -> list[int]:
    """How many of `total` images each class has, as even as can be."""
    return [total // classes + (k < total % classes) for k in range(classes)]


def class_folders(name: str, place: str, test: str = "test") -> Fixture:
    """The study's prepared folders: train and val together, and test."""

    def build(build: Builder, patch: pytest.MonkeyPatch) -> None:
        kind = tasks.get(name)
        sizes, classes = kind.declared_sizes, kind.declared_classes
        for split, total in (("train", sizes["train"] + sizes["val"]), (test, sizes["test"])):
            first: dict[int, str] = {}
            for k, count in enumerate(shared(total, classes)):
                folder = f"{place}/{split}/class {k:03}"
                if count in first:
                    build.like(first[count], [f"class {k:03}"])
                else:
                    build.images(folder, (f"{n:05}.jpg" for n in range(count)))
                    first[count] = folder

    return build


# ------------------------------------------------------------------------------------ the authors' archives


def flowers102(build: Builder, patch: pytest.MonkeyPatch) -> None:
    ids = np.arange(1, 8190)
    build.images("flowers-102/jpg", (f"image_{k:05d}.jpg" for k in ids))
    build.mat("flowers-102/imagelabels.mat", labels=(ids - 1) % 102 + 1)
    build.mat("flowers-102/setid.mat", trnid=ids[:1020], valid=ids[1020:2040], tstid=ids[2040:])
    # The check of the label files stays, against the sums of these ones.
    sums = dict(datasets.Flowers102._file_dict)
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        sums[key] = (name, hashlib.md5((build.root / "flowers-102" / name).read_bytes()).hexdigest())
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
    trainval = sorted(range(6667), key=lambda k: (k % 100, k))  # the authors' is sorted by variant
    build.text(f"{data}/images_variant_trainval.txt", [f"{k:07} {variants[k % 100]}" for k in trainval])
    build.images(f"{data}/images", (f"{k:07}.jpg" for k in range(10000)))


def food101(build: Builder, patch: pytest.MonkeyPatch) -> None:
    dishes = [f"dish_{k:03}" for k in range(101)]
    build.images("food-101/images/dish_000", (f"{k}.jpg" for k in range(1000)))
    build.like("food-101/images/dish_000", dishes[1:])
    for part, numbers in (("train", range(750)), ("test", range(750, 1000))):
        build.text(f"food-101/meta/{part}.json", [json.dumps({d: [f"{d}/{k}" for k in numbers] for d in dishes})])


def oxfordiiitpet(build: Builder, patch: pytest.MonkeyPatch) -> None:
    for part, count in (("trainval", 3680), ("test", 3669)):
        ids = [(f"great_breed{k % 37:02}_{part}{k}", k % 37 + 1) for k in range(count)]
        build.text(f"oxford-iiit-pet/annotations/{part}.txt", [f"{name} {label} 1 1" for name, label in ids])
        build.images("oxford-iiit-pet/images", (f"{name}.jpg" for name, _ in ids))


def cifar(build: Builder, patch: pytest.MonkeyPatch, member: Any, classes: int) -> None:
    """The authors' pickles of a data set with other pixels, and torchvision's checksums of these."""
    labels, names = ("labels", "label_names") if classes == 10 else ("fine_labels", "fine_label_names")

    def put(file: str, content: dict[str, Any]) -> str:
        data = pickle.dumps(content)
        build.file(f"{member.base_folder}/{file}").write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for part in ("train_list", "test_list"):
        files = [name for name, _ in getattr(member, part)]
        count = (50000 if part == "train_list" else 10000) // len(files)
        batch = {"data": np.zeros((count, 3072), np.uint8), labels: [k % classes for k in range(count)]}
        batch["data"][:, 0] = np.arange(count) % 251
        patch.setattr(member, part, [[name, put(name, batch)] for name in files])
    meta = {names: [f"class {k:02}" for k in range(classes)]}
    patch.setattr(member, "meta", member.meta | {"md5": put(member.meta["filename"], meta)})


def caltech(build: Builder, classes: list[str], train: int, test: int, pattern: str) -> None:
    for k, (label, count) in enumerate(zip(classes, shared(test, len(classes)), strict=True)):
        build.images(label, (pattern.format(k + 1, n + 1) for n in range(train + count)))


def caltech101(build: Builder, patch: pytest.MonkeyPatch) -> None:
    names = ["Faces", "Faces_easy", "accordion", "yin_yang", *(f"object_{k:02}" for k in range(97))]
    place = "caltech101/101_ObjectCategories"
    caltech(build, [f"{place}/{name}" for name in sorted(names)], 30, 5647, "image_{1:04d}.jpg")
    build.images(f"{place}/BACKGROUND_Google", (f"image_{n:04d}.jpg" for n in range(1, 468)))


def caltech256(build: Builder, patch: pytest.MonkeyPatch) -> None:
    names = [f"{k:03}.object" for k in range(1, 258)]
    names[0], names[55], names[197], names[256] = "001.ak47", "056.dog", "198.spider", "257.clutter"
    place = "caltech256/256_ObjectCategories"
    caltech(build, [f"{place}/{name}" for name in names], 60, 15187, "{0:03d}_{1:04d}.jpg")
    build.text(f"{place}/198.spider/RENAME2", ["of the real archive"])
    (build.root / place / "056.dog/greg/vision309").mkdir(parents=True)


CARS = [f"Make Model{k:03} 2012" for k in range(196)]


def cars_rows(count: int) -> list[tuple[str, int]]:
    """File name and class, from 1."""
    return [(f"{k + 1:05}.jpg", k % 196 + 1) for k in range(count)]


def structs(columns: dict[str, list[Any]]) -> np.ndarray:
    """A MATLAB struct array, (1, n)."""
    kinds = [(name, "O") for name in columns]
    return np.array([list(zip(*columns.values(), strict=True))], dtype=kinds)


def stanfordcars(build: Builder, patch: pytest.MonkeyPatch) -> None:
    """torchvision's folders."""
    for split, count, name in (
        ("train", 8144, "devkit/cars_train_annos.mat"),
        ("test", 8041, "cars_test_annos_withlabels.mat"),
    ):
        rows = cars_rows(count)
        build.images(f"stanford_cars/cars_{split}", (name for name, _ in rows))
        columns = {"bbox_x1": [1] * count, "class": [k for _, k in rows], "fname": [name for name, _ in rows]}
        build.mat(f"stanford_cars/{name}", annotations=structs(columns))
    build.mat("stanford_cars/devkit/cars_meta.mat", class_names=np.array([CARS], dtype=object))


def cars_single(build: Builder, patch: pytest.MonkeyPatch) -> None:
    count = 8144 + 8041
    paths = [f"car_ims/{k + 1:06}.jpg" for k in range(count)]
    build.images("cars/car_ims", (path.split("/")[1] for path in paths))
    test = [int(k >= 8144) for k in range(count)]
    columns = {"relative_im_path": paths, "class": [k % 196 + 1 for k in range(count)], "test": test}
    names = np.array([CARS], dtype=object)
    build.mat("cars/cars_annos.mat", annotations=structs(columns), class_names=names)


def cars_csv(build: Builder, patch: pytest.MonkeyPatch) -> None:
    """Kaggle's nested folders; with a header, the class among the columns, and names in one row."""
    for split, count, name in (("train", 8144, "cars_train_annos"), ("test", 8041, "cars_test_annos_withlabels")):
        rows = cars_rows(count)
        build.images(f"cars_{split}/cars_{split}", (name for name, _ in rows))
        header = ["bbox_x1", "Class", "fname"]
        build.table(f"devkit/{name}.csv", [header, *([39, label, file] for file, label in rows)])
    build.table("devkit/cars_meta.csv", [CARS])


def cars_headless_csv(build: Builder, patch: pytest.MonkeyPatch) -> None:
    """File first and class last, without a header; a name a line."""
    for split, count in (("train", 8144), ("test", 8041)):
        rows = cars_rows(count)
        build.images(f"cars_{split}", (name for name, _ in rows))
        build.table(f"anno_{split}.csv", [[file, 30, 52, 246, 147, label] for file, label in rows])
    build.table("names.csv", [[name] for name in CARS])


def sun397(build: Builder, patch: pytest.MonkeyPatch) -> None:
    names = ["/a/abbey", "/c/church/indoor", *(f"/z/place{k:03}" for k in range(395))]
    numbers = [f"sun_{k:03}.jpg" for k in range(100)]
    build.images("SUN397/a/abbey", numbers)
    for name in names[1:]:
        folder = build.file(f"SUN397{name}")
        folder.symlink_to(build.root / "SUN397/a/abbey")
    build.text("SUN397/ClassName.txt", names)
    for part, chosen in (("Training", numbers[:50]), ("Testing", numbers[50:])):
        build.text(f"Partitions/{part}_01.txt", (f"{name}/{number}" for name in names for number in chosen))


def birdsnap(build: Builder, patch: pytest.MonkeyPatch) -> None:
    """The authors' lists, and of 49,829 images those that Flickr still had."""
    paths = [f"Bird_{k % 500:03}/{k}.jpg" for k in range(49829)]
    build.text("birdsnap/images.txt", ["url\tmd5\tpath\tspecies_id", *(f"u\tm\t{path}\t1" for path in paths)])
    build.text("birdsnap/test_images.txt", ["path", *paths[-2443:]])
    build.images("birdsnap/download/images/Bird_000", (f"{k}.jpg" for k in range(0, 49829, 500)))
    for k in range(1, 500):
        gone = 20 if k % 2 else 0
        numbers = range(k, 49829, 500)
        build.images(f"birdsnap/download/images/Bird_{k:03}", (f"{n}.jpg" for n in list(numbers)[gone:]))


LAYOUTS: dict[str, dict[str, Fixture]] = {
    "birdsnap": {"lists": birdsnap, "class folders": class_folders("birdsnap", "birds")},
    "caltech101": {"authors": caltech101, "class folders": class_folders("caltech101", "caltech101")},
    "caltech256": {"authors": caltech256, "class folders": class_folders("caltech256", "caltech256")},
    "cifar10": {
        "authors": lambda build, patch: cifar(build, patch, datasets.CIFAR10, 10),
        "class folders": class_folders("cifar10", "cifar10"),
    },
    "cifar100": {
        "authors": lambda build, patch: cifar(build, patch, datasets.CIFAR100, 100),
        "class folders": class_folders("cifar100", "cifar100"),
    },
    "dtd": {"authors": dtd, "class folders": class_folders("dtd", "dtd")},
    "fgvcaircraft": {"authors": fgvcaircraft, "class folders": class_folders("fgvcaircraft", "aircraft")},
    "flowers102": {"authors": flowers102, "class folders": class_folders("flowers102", "oxford_flowers_pytorch")},
    "food101": {"authors": food101, "class folders": class_folders("food101", "food-101", test="valid")},
    "oxfordiiitpet": {"authors": oxfordiiitpet, "class folders": class_folders("oxfordiiitpet", "pets")},
    "stanfordcars": {
        "torchvision": stanfordcars,
        "single archive": cars_single,
        "CSV": cars_csv,
        "headless CSV": cars_headless_csv,
        "class folders": class_folders("stanfordcars", "car_data/car_data"),
    },
    "sun397": {"authors": sun397, "class folders": class_folders("sun397", "SUN397/splits_01")},
}


def lay_out(name: str, layout: str, root: Path, patch: pytest.MonkeyPatch) -> Path:
    LAYOUTS[name][layout](Builder(root), patch)
    return root
