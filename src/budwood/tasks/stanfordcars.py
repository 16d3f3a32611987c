"""Stanford Cars (Krause et al. 2013): make, model and year."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from budwood.core.errors import UserError
from budwood.core.registry import tasks
from budwood.core.task import Split

from .layout import SUFFIXES
from .published import PublishedTask
from .readers import CLASS_FOLDERS, Layout, Parts, one_of
from .samples import Sample


def _mark(*names: str) -> str:
    """Files of the devkit, in its folder or beside it."""
    return "|".join(f"{where}{name}" for name in names for where in ("", "devkit/", "car_devkit/devkit/"))


IMAGES = ("cars_train/", "cars_test/")
MAT = {"train": _mark("cars_train_annos.mat"), "test": _mark("cars_test_annos_withlabels.mat")}
CSV = {
    "train": _mark("cars_train_annos.csv", "anno_train.csv"),
    "test": _mark("cars_test_annos_withlabels.csv", "cars_test_annos.csv", "anno_test.csv"),
}
NAMES = {"mat": _mark("cars_meta.mat"), "csv": _mark("cars_meta.csv", "names.csv")}
CLASS_COLUMNS = ("class", "class_id", "label")

Rows = list[tuple[str, int]]
"""File name and class, from 1."""


def _mat(path: Path) -> Any:
    from scipy.io import loadmat  # which takes its time to import

    return loadmat(path, squeeze_me=True)


def _mat_rows(path: Path) -> Rows:
    return [(str(row["fname"]), int(row["class"])) for row in _mat(path)["annotations"]]


def _csv_rows(path: Path) -> Rows:
    """With a header, or without one: the file's name is what ends as images do, the class the last of the others."""
    with open(path, newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.reader(stream, skipinitialspace=True) if row]
    name_at = next(k for k, cell in enumerate(rows[-1]) if cell.lower().endswith(SUFFIXES))
    class_at = max(k for k in range(len(rows[-1])) if k != name_at)
    if not rows[0][name_at].lower().endswith(SUFFIXES):
        header = [cell.strip().lower() for cell in rows.pop(0)]
        known = [header.index(word) for word in CLASS_COLUMNS if word in header]
        if not known:
            raise UserError(f"{path} has no column `class`; get the file with labels, or the .mat file")
        class_at = known[0]
    return [(row[name_at], int(row[class_at])) for row in rows]


def _names(folder: Path) -> list[str]:
    """The names of the classes; numbers where they are not there."""
    if path := one_of(folder, NAMES["mat"]):
        return [str(name) for name in _mat(path)["class_names"]]
    if path := one_of(folder, NAMES["csv"]):
        with open(path, newline="", encoding="utf-8-sig") as stream:
            cells = [cell.strip() for row in csv.reader(stream) for cell in row]
        return [cell for cell in cells if cell and not cell.isdigit() and cell not in ("class_id", "class_name")]
    return [str(k) for k in range(1, 197)]


def _two_lists(marks: dict[str, str], rows: Callable[[Path], Rows]) -> Callable[[PublishedTask, Path], Parts]:
    """One file of annotations and one folder of images for each split."""

    def read(task: PublishedTask, folder: Path) -> Parts:
        samples: dict[Split, list[Sample]] = {}
        for split in ("train", "test"):
            annotations = one_of(folder, marks[split])
            assert annotations, "the layout's marks are there"
            images = folder / f"cars_{split}"
            images = one_of(images, f"{images.name}/") or images  # Kaggle's are nested
            samples[split] = [(images / Path(name).name, number - 1) for name, number in rows(annotations)]
        return Parts(tuple(_names(folder)), samples)

    return read


def by_one_mat(task: PublishedTask, folder: Path) -> Parts:
    """cars_annos.mat: `annotations` with relative_im_path (car_ims/000001.jpg), class, from 1, and test, 0 or 1."""
    found = _mat(folder / "cars_annos.mat")
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for row in found["annotations"]:
        sample = folder / str(row["relative_im_path"]), int(row["class"]) - 1
        samples["test" if row["test"] else "train"].append(sample)
    return Parts(tuple(map(str, found["class_names"])), samples)


@tasks.register("stanfordcars")
class StanfordCars(PublishedTask):
    """The authors' train and test; val is held out of train.

    Their site is gone, and torchvision's class reads only one of the layouts in which people have it.
    """

    name, metric, place = "stanfordcars", "top1", "stanford_cars"
    also = ("cars", "cars_new", "car_data", "car_data/car_data")
    source = "https://github.com/pytorch/vision/issues/7545"
    licence = "research use, no licence stated"
    fine_grained = True
    statistics = ((0.4513, 0.4354, 0.4358), (0.2900, 0.2880, 0.2951))
    study_lr = 0.01
    declared_classes = 196
    declared_sizes = {"train": 7330, "val": 814, "test": 8041}
    layouts = (
        Layout("the authors' devkit", (*MAT.values(), NAMES["mat"], *IMAGES), _two_lists(MAT, _mat_rows)),
        Layout("the authors' single archive", ("cars_annos.mat", "car_ims/"), by_one_mat),
        Layout("CSV annotations", (*CSV.values(), *IMAGES), _two_lists(CSV, _csv_rows)),
        CLASS_FOLDERS,
    )
