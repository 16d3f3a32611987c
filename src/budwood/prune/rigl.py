"""RigL, the rigged lottery (Evci et al. 2020): a random sparse network, in which every layer now and then drops its
smallest weights and grows those with the largest gradient."""

from torch import Tensor, nn

from ..core.pruner import Settings, Tags
from ..core.registry import methods
from .regrow import ERK, IMAGENET, IMAGENET_NOTES, UNIFORM, Regrow, gradient

MODEL = "torchvision:resnet50 --from-scratch"
SOURCE = "google-research/rigl, README.md and rigl/imagenet_resnet/imagenet_train_eval.py"
LONG = IMAGENET.model_copy(update={"epochs": 512, "milestones": (150, 350, 450)})
"""Five times as long; every share of the training stretches with it."""


@methods.register("rigl")
class RigL(Regrow):
    """Grows by |gradient| of the step's batch. As in the paper's algorithm, a step that moves weights trains none: its
    gradients belong to the network before."""

    tags = Tags(
        family="re-growth", paper="Evci et al. 2020", gradual=True, at_once=False, revives=True, gradients=True,
    )  # fmt: skip
    brief = {"every": 3}
    cost = (
        "two selections over all weights at each move, 1.7 s for ResNet-50 on one core (measured), every 100 steps; "
        "no memory beside the dense gradient of these steps"
    )
    papers = {
        "erk": Settings(
            MODEL, SOURCE, IMAGENET, {**ERK}, results={0.8: 75.12, 0.9: 73.07}, notes=IMAGENET_NOTES
        ),
        "erk-5x": Settings(
            MODEL, SOURCE, LONG, {**ERK}, notes=IMAGENET_NOTES,
            results={0.8: 77.17, 0.9: 76.42, 0.95: 74.63, 0.965: 72.77},
        ),
        "uniform": Settings(
            MODEL, SOURCE, IMAGENET, {**UNIFORM}, results={0.8: 74.60, 0.9: 72.02}, notes=IMAGENET_NOTES
        ),
        "uniform-5x": Settings(
            MODEL, SOURCE, LONG, {**UNIFORM}, notes=IMAGENET_NOTES,
            results={0.8: 76.71, 0.9: 75.73, 0.95: 73.22, 0.965: 71.31},
        ),
    }  # fmt: skip

    def looks_at_gradients(self, step: int) -> bool:
        return self.moves(step)

    def applies_gradient(self, step: int) -> bool:
        return not self.moves(step)

    def promises(self, model: nn.Module, names: list[str], step: int) -> dict[str, Tensor]:
        return {name: gradient(model, name).abs() for name in names}
