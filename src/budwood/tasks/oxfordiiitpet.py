"""Oxford-IIIT Pets (Parkhi et al. 2012): breeds of cats and dogs."""

from pathlib import Path
from typing import Any

from torchvision import datasets

from budwood.core.registry import tasks

from .samples import Sample
from .torchvision_sets import TorchvisionTask


@tasks.register("oxfordiiitpet")
class OxfordIIITPet(TorchvisionTask):
    """The authors' trainval and test; val is held out of trainval."""

    name, metric, place = "oxfordiiitpet", "mean_per_class", "oxford-iiit-pet"
    source = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    licence = "CC BY-SA 4.0"
    declared_classes = 37
    declared_sizes = {"train": 3312, "val": 368, "test": 3669}
    dataset = datasets.OxfordIIITPet
    parts = {"train": {"split": "trainval"}, "test": {"split": "test"}}

    @staticmethod
    def pairs(part: Any) -> list[Sample]:
        return [(Path(path), int(label)) for path, label in zip(part._images, part._labels, strict=True)]
