"""Food-101 (Bossard et al. 2014): dishes; the labels of train are noisy on purpose, those of test are clean."""

from torchvision import datasets

from budwood.core.registry import tasks

from .torchvision_sets import TorchvisionTask


@tasks.register("food101")
class Food101(TorchvisionTask):
    """The authors' train and test; val is held out of train."""

    name, metric, place = "food101", "top1", "food-101"
    source = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
    licence = "scientific fair use (the images are Foodspotting's)"
    declared_classes = 101
    declared_sizes = {"train": 68175, "val": 7575, "test": 25250}
    dataset = datasets.Food101
    parts = {"train": {"split": "train"}, "test": {"split": "test"}}
