"""Oxford-IIIT Pets (Parkhi et al. 2012): breeds of cats and dogs."""

from pathlib import Path
from typing import Any

from torchvision import datasets

from budwood.core.registry import tasks

from .published import PublishedTask
from .readers import CLASS_FOLDERS, authors
from .samples import Sample


@tasks.register("oxfordiiitpet")
class OxfordIIITPet(PublishedTask):
    """The authors' trainval and test; val is held out of trainval."""

    name, metric, place = "oxfordiiitpet", "mean_per_class", "oxford-iiit-pet"
    also = ("pets", "oxford_pets")
    source = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    licence = "CC BY-SA 4.0"
    fine_grained = True
    statistics = ((0.4807, 0.4432, 0.3949), (0.2598, 0.2537, 0.2597))
    declared_classes = 37
    declared_sizes = {"train": 3312, "val": 368, "test": 3669}
    dataset = datasets.OxfordIIITPet
    parts = {"train": {"split": "trainval"}, "test": {"split": "test"}}
    layouts = (authors("images/", "annotations/"), CLASS_FOLDERS)

    @staticmethod
    def pairs(part: Any) -> list[Sample]:
        return [(Path(path), int(label)) for path, label in zip(part._images, part._labels, strict=True)]
