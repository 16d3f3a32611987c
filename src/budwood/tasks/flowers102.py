"""Oxford Flowers-102 (Nilsback and Zisserman 2008): flowers common in the United Kingdom."""

from torchvision import datasets

from budwood.core.registry import tasks

from .published import THREE_WAYS, PublishedTask
from .readers import CLASS_FOLDERS, authors


@tasks.register("flowers102")
class Flowers102(PublishedTask):
    """The authors' three splits; train and val together are the 2,040 that studies train on."""

    name, metric, place = "flowers102", "mean_per_class", "flowers-102"
    also = ("flowers", "oxford_flowers", "oxford_flowers_pytorch")
    source = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    licence = "no licence stated"
    fine_grained = True
    statistics = ((0.5133, 0.4148, 0.3383), (0.2959, 0.2502, 0.2900))
    declared_classes = 102
    declared_sizes = {"train": 1020, "val": 1020, "test": 6149}
    dataset = datasets.Flowers102
    parts = THREE_WAYS
    layouts = (authors("jpg/", "imagelabels.mat", "setid.mat"), CLASS_FOLDERS)
