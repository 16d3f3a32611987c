"""FGVC Aircraft (Maji et al. 2013): variants of aircraft."""

from torchvision import datasets

from budwood.core.registry import tasks

from .published import THREE_WAYS, PublishedTask
from .readers import CLASS_FOLDERS, authors


@tasks.register("fgvcaircraft")
class FgvcAircraft(PublishedTask):
    """The authors' three splits, labelled by variant."""

    name, metric, place = "fgvcaircraft", "mean_per_class", "fgvc-aircraft-2013b/data"
    also = ("aircraft", "fgvc-aircraft", "fgvc_aircraft")
    source = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    licence = "for non-commercial research purposes"
    fine_grained = True
    statistics = ((0.4892, 0.5159, 0.5356), (0.2275, 0.2200, 0.2476))
    study_lr = 0.01
    declared_classes = 100
    declared_sizes = {"train": 3334, "val": 3333, "test": 3333}
    dataset = datasets.FGVCAircraft
    parts = {**THREE_WAYS, "trainval": {"split": "trainval"}}
    layouts = (authors("images/", "variants.txt"), CLASS_FOLDERS)
