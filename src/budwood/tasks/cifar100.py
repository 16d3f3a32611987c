"""CIFAR-100 (Krizhevsky 2009): as CIFAR-10, with its hundred fine labels."""

from torchvision import datasets

from budwood.core.registry import tasks

from .cifar10 import Cifar10
from .readers import CLASS_FOLDERS, authors


@tasks.register("cifar100")
class Cifar100(Cifar10):
    """The authors' train and test, held in memory or as image files; val is held out of train."""

    name, place = "cifar100", "cifar-100-python"
    also = ("cifar-100",)
    statistics = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    declared_classes = 100
    dataset = datasets.CIFAR100
    layouts = (authors("train", "test", "meta"), CLASS_FOLDERS)
