"""Describable Textures (Cimpoi et al. 2014)."""

from torchvision import datasets

from budwood.core.registry import tasks

from .torchvision_sets import TorchvisionTask


@tasks.register("dtd")
class Dtd(TorchvisionTask):
    """The first of the authors' ten partitions, with its three splits."""

    name, metric, place = "dtd", "top1", "dtd/dtd"
    source = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    licence = "for research purposes"
    declared_classes = 47
    declared_sizes = {"train": 1880, "val": 1880, "test": 1880}
    dataset = datasets.DTD
