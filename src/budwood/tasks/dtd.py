"""Describable Textures (Cimpoi et al. 2014)."""

from torchvision import datasets

from budwood.core.registry import tasks

from .published import THREE_WAYS, PublishedTask
from .readers import CLASS_FOLDERS, authors


@tasks.register("dtd")
class Dtd(PublishedTask):
    """The first of the authors' ten partitions, with its three splits."""

    name, metric, place = "dtd", "top1", "dtd/dtd"
    source = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    licence = "for research purposes"
    fine_grained = False
    statistics = ((0.5322, 0.4734, 0.4251), (0.2642, 0.2530, 0.2613))
    declared_classes = 47
    declared_sizes = {"train": 1880, "val": 1880, "test": 1880}
    dataset = datasets.DTD
    parts = THREE_WAYS
    layouts = (authors("images/", "labels/"), CLASS_FOLDERS)
