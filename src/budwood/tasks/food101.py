"""Food-101 (Bossard et al. 2014): dishes; the labels of train are noisy on purpose, those of test are clean."""

from torchvision import datasets

from budwood.core.registry import tasks

from .published import PublishedTask
from .readers import CLASS_FOLDERS, authors


@tasks.register("food101")
class Food101(PublishedTask):
    """The authors' train and test; val is held out of train."""

    name, metric, place = "food101", "top1", "food-101"
    also = ("food",)
    source = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
    licence = "scientific fair use (the images are Foodspotting's)"
    fine_grained = True
    statistics = ((0.5566, 0.4378, 0.3193), (0.2589, 0.2622, 0.2630))
    declared_classes = 101
    declared_sizes = {"train": 68175, "val": 7575, "test": 25250}
    dataset = datasets.Food101
    layouts = (authors("images/", "meta/"), CLASS_FOLDERS)
