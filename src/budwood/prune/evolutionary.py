"""SET, sparse evolutionary training (Mocanu et al. 2018): every layer now and then drops its smallest weights and grows
any others."""

from torch import Tensor, nn

from ..core.pruner import Settings, Tags
from ..core.registry import methods
from .regrow import BEFORE, IMAGENET, IMAGENET_NOTES, UNIFORM, Regrow


@methods.register("set")
class SET(Regrow):
    """Grows at random, with other numbers for every seed and step. As google-research/rigl has it: the share falls
    along a cosine (Mocanu et al. replace 0.3 of the weights after every epoch, always), and what was just dropped may
    be drawn again."""

    tags = Tags(family="re-growth", paper="Mocanu et al. 2018", gradual=True, at_once=False, revives=True)
    brief = {"every": 3}
    cost = "two selections over all weights at each move, 1.7 s for ResNet-50 on one core (measured); no memory"
    papers = {
        "uniform": Settings(
            "torchvision:resnet50 --from-scratch",
            "Evci et al. 2020, ResNet-50 table (the same in luuyin/chase, README.md); google-research/rigl",
            IMAGENET,
            {**UNIFORM},
            results={0.8: 72.9, 0.9: 69.6},
            notes=("measured by RigL's authors: Mocanu et al. have no ImageNet", BEFORE, *IMAGENET_NOTES),
        ),
    }  # fmt: skip

    def promises(self, model: nn.Module, names: list[str], step: int) -> dict[str, Tensor]:
        return self.chances({name: model.get_parameter(name) for name in names}, step + 1)
