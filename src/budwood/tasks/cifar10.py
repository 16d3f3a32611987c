"""CIFAR-10 (Krizhevsky 2009): 32-pixel photographs of animals and vehicles."""

from typing import Any

from PIL import Image
from torchvision import datasets

from budwood.core.registry import tasks

from .samples import Sample
from .torchvision_sets import TorchvisionTask


@tasks.register("cifar10")
class Cifar10(TorchvisionTask):
    """The authors' train and test, held in memory; val is held out of train."""

    name, metric, place = "cifar10", "top1", "cifar-10-batches-py"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"
    licence = "none stated"
    declared_classes = 10
    declared_sizes = {"train": 45000, "val": 5000, "test": 10000}
    dataset = datasets.CIFAR10
    parts = {"train": {"train": True}, "test": {"train": False}}
    read = staticmethod(Image.fromarray)

    @staticmethod
    def pairs(part: Any) -> list[Sample]:
        """Sources are uint8 arrays (32, 32, 3)."""
        return list(zip(part.data, map(int, part.targets), strict=True))
