"""CIFAR-100 (Krizhevsky 2009): as CIFAR-10, with its hundred fine labels."""

from torchvision import datasets

from budwood.core.registry import tasks

from .cifar10 import Cifar10


@tasks.register("cifar100")
class Cifar100(Cifar10):
    """The authors' train and test, held in memory; val is held out of train."""

    name, place = "cifar100", "cifar-100-python"
    declared_classes = 100
    dataset = datasets.CIFAR100
