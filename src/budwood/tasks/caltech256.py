"""Caltech-256 (Griffin, Holub and Perona 2007): objects, at least eighty images a class, and clutter."""

from torchvision import datasets

from budwood.core.registry import tasks

from .caltech101 import Caltech101, first_of_each
from .readers import CLASS_FOLDERS, Layout


@tasks.register("caltech256")
class Caltech256(Caltech101):
    """The first 60 images of each class are train, as in the study, and clutter is a class; val is held out."""

    name, place = "caltech256", "caltech256/256_ObjectCategories"
    also = ("caltech-256",)
    source = "https://data.caltech.edu/records/nyy15-4j048"
    licence = "openly published by Caltech, no licence found"
    statistics = ((0.5438, 0.5141, 0.4821), (0.3077, 0.3044, 0.3163))
    declared_classes = 257
    declared_sizes = {"train": 13878, "val": 1542, "test": 15187}
    dataset = datasets.Caltech256
    layouts = (Layout("the authors' archive", ("001.ak47/|257.clutter/",), first_of_each(60)), CLASS_FOLDERS)
