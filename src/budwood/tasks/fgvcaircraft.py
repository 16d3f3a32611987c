"""FGVC Aircraft (Maji et al. 2013): variants of aircraft."""

from torchvision import datasets

from budwood.core.registry import tasks

from .torchvision_sets import TorchvisionTask


@tasks.register("fgvcaircraft")
class FgvcAircraft(TorchvisionTask):
    """The authors' three splits, labelled by variant."""

    name, metric, place = "fgvcaircraft", "mean_per_class", "fgvc-aircraft-2013b"
    source = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    licence = "for non-commercial research purposes"
    declared_classes = 100
    declared_sizes = {"train": 3334, "val": 3333, "test": 3333}
    dataset = datasets.FGVCAircraft
