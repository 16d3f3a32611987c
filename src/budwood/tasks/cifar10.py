"""CIFAR-10 (Krizhevsky 2009): 32-pixel photographs of animals and vehicles."""

from typing import Any

from torchvision import datasets

from budwood.core.registry import tasks

from .published import PublishedTask
from .readers import CLASS_FOLDERS, authors
from .samples import Pixels, Sample


@tasks.register("cifar10")
class Cifar10(PublishedTask):
    """The authors' train and test, held in memory or as image files; val is held out of train."""

    name, metric, place = "cifar10", "top1", "cifar-10-batches-py"
    also = ("cifar-10",)
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"
    licence = "no licence stated"
    fine_grained = False
    statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    declared_classes = 10
    declared_sizes = {"train": 45000, "val": 5000, "test": 10000}
    dataset = datasets.CIFAR10
    parts = {"train": {"train": True}, "test": {"train": False}}
    layouts = (authors("data_batch_1", "test_batch", "batches.meta"), CLASS_FOLDERS)

    @staticmethod
    def pairs(part: Any) -> list[Sample]:
        split = "train" if part.train else "test"
        return [
            (Pixels(f"{split}/{k:05}", pixels), int(target))
            for k, (pixels, target) in enumerate(zip(part.data, part.targets, strict=True))
        ]
