"""Caltech-101 (Fei-Fei, Fergus and Perona 2004): pictures of objects, about fifty a class."""

from collections.abc import Callable
from pathlib import Path

from torchvision import datasets

from budwood.core.registry import tasks

from .layout import folders_in, is_image
from .published import PublishedTask
from .readers import CLASS_FOLDERS, Layout, Parts
from .samples import Sample

BACKGROUND = "BACKGROUND_Google"
"""Pictures of anything, and no class."""


def first_of_each(count: int) -> Callable[[PublishedTask, Path], Parts]:
    """The first `count` images of each class folder, in the order of their names, are train, all others test."""

    def read(task: PublishedTask, folder: Path) -> Parts:
        # torchvision's class makes up the names from the number of files: one stray file, and it names an image
        # that is not there.
        train: list[Sample] = []
        test: list[Sample] = []
        classes = [path for path in folders_in(folder) if path.name != BACKGROUND]
        for k, path in enumerate(classes):
            images = [(image, k) for image in sorted(filter(is_image, path.iterdir()))]
            train += images[:count]
            test += images[count:]
        return Parts(tuple(path.name for path in classes), {"train": train, "test": test})

    return read


@tasks.register("caltech101")
class Caltech101(PublishedTask):
    """The first 30 images of each class are train, as in the study; val is held out of them."""

    name, metric, place = "caltech101", "mean_per_class", "caltech101/101_ObjectCategories"
    also = ("caltech-101",)
    source = "https://data.caltech.edu/records/mzrjq-6wc02"
    licence = "CC BY 4.0"
    fine_grained = False
    statistics = ((0.5413, 0.5063, 0.4693), (0.3115, 0.3090, 0.3183))
    declared_classes = 101
    declared_sizes = {"train": 2727, "val": 303, "test": 5647}
    dataset = datasets.Caltech101
    layouts = (Layout("the authors' archive", ("accordion/|yin_yang/",), first_of_each(30)), CLASS_FOLDERS)
