"""Birdsnap (Berg et al. 2014): North American birds, photographed by users of Flickr."""

import csv
from pathlib import Path

from budwood.core.registry import tasks
from budwood.core.task import Split

from .published import PublishedTask
from .readers import CLASS_FOLDERS, Layout, Parts, one_of
from .samples import Sample


def by_lists(task: PublishedTask, folder: Path) -> Parts:
    """images.txt (tab-separated, with a column `path`: Blue_Jay/191761.jpg) and test_images.txt, the paths in test."""
    with open(folder / "images.txt", newline="", encoding="utf-8") as stream:
        paths = [row["path"] for row in csv.DictReader(stream, delimiter="\t")]
    tests = set((folder / "test_images.txt").read_text(encoding="utf-8").split()[1:])
    images = one_of(folder, "download/images/|images/") or folder
    classes = sorted({path.split("/")[0] for path in paths})
    index = {name: k for k, name in enumerate(classes)}
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for path in paths:
        samples["test" if path in tests else "train"].append((images / path, index[path.split("/")[0]]))
    listed = f"the authors' split: {len(samples['train']):,} images listed in train, {len(samples['test']):,} in test"
    return Parts(tuple(classes), samples, notes=[f"{listed}; the study's own split is not published"])


@tasks.register("birdsnap")
class Birdsnap(PublishedTask):
    """What is left of it: the images have to be fetched one by one from Flickr, and many are gone.

    `declared_sizes` are the study's, which had 40,848 of the authors' 49,829 images and split them anew.
    """

    name, metric, place = "birdsnap", "top1", "birdsnap"
    also = ("birds",)
    source = "https://thomasberg.org/datasets/birdsnap/1.1/birdsnap.tgz"
    licence = "no licence stated (the images are Flickr users')"
    fine_grained = True
    statistics = ((0.4856, 0.4948, 0.4486), (0.2233, 0.2213, 0.2586))
    declared_classes = 500
    declared_sizes = {"train": 29409, "val": 3268, "test": 8171}
    may_be_incomplete = True
    layouts = (Layout("the authors' lists", ("images.txt", "test_images.txt"), by_lists), CLASS_FOLDERS)
