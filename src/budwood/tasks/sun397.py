"""SUN397 (Xiao et al. 2010): scenes, indoors and out."""

from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive

from budwood.core.registry import tasks

from .published import PublishedTask
from .readers import CLASS_FOLDERS, Layout, Parts, one_of


def _mark(name: str) -> str:
    """A list of the partitions, where people have it: among the images, beside them, or in a folder of its own."""
    return "|".join(f"{where}{name}" for where in ("", "Partitions/", "split/", "splits/", "../Partitions/", "../"))


TRAIN, TEST, NAMES = _mark("Training_01.txt"), _mark("Testing_01.txt"), _mark("ClassName.txt")
PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
PARTITIONS_MD5 = "29a205c0a0129d21f36cbecfefe81881"


def _lines(folder: Path, mark: str) -> list[str]:
    path = one_of(folder, mark)
    return path.read_text(encoding="utf-8").split() if path else []


def by_lists(task: PublishedTask, folder: Path) -> Parts:
    """Lines are /a/abbey/sun_aaalbzqrimafwbiv.jpg, of ClassName.txt /a/abbey. torchvision's class knows no split."""
    names = _lines(folder, NAMES)
    index = {name: k for k, name in enumerate(names)}
    train, test = (
        [(folder / line.lstrip("/"), index[line.rpartition("/")[0]]) for line in _lines(folder, mark)]
        for mark in (TRAIN, TEST)
    )
    return Parts(tuple(name[3:] for name in names), {"train": train, "test": test})


@tasks.register("sun397")
class Sun397(PublishedTask):
    """The first of the authors' ten partitions, 50 images a class in train and in test; val is held out of train."""

    name, metric, place = "sun397", "top1", "SUN397"
    also = ("SUN", "SUN397/splits_01")
    source = "https://vision.princeton.edu/projects/2010/SUN/"
    licence = "for research purposes only"
    fine_grained = False
    statistics = ((0.4772, 0.4566, 0.4168), (0.2556, 0.2520, 0.2720))
    declared_classes = 397
    declared_sizes = {"train": 17865, "val": 1985, "test": 19850}
    dataset = datasets.SUN397
    layouts = (Layout("the authors' archive and partitions", ("a/", TRAIN, TEST, NAMES), by_lists), CLASS_FOLDERS)

    def fetch(self) -> None:
        if one_of(self.home, TRAIN) is None:
            download_and_extract_archive(PARTITIONS, str(self.root / "Partitions"), md5=PARTITIONS_MD5)
        if not (self.home / "a").is_dir():
            super().fetch()
