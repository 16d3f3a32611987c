"""Oxford Flowers-102 (Nilsback and Zisserman 2008): flowers common in the United Kingdom."""

from torchvision import datasets

from budwood.core.registry import tasks

from .torchvision_sets import TorchvisionTask


@tasks.register("flowers102")
class Flowers102(TorchvisionTask):
    """The authors' three splits; train and val together are the 2,040 that studies train on."""

    name, metric, place = "flowers102", "mean_per_class", "flowers-102"
    source = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    licence = "none stated"
    declared_classes = 102
    declared_sizes = {"train": 1020, "val": 1020, "test": 6149}
    dataset = datasets.Flowers102
