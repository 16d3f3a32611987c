"""WoodFisher (Singh & Alistarh 2020): prunes by what the loss rises when one weight goes and all others of its Fisher
block make up for it, w^2 / (2 [F^-1]_qq), and moves the kept weights accordingly (optimal brain surgeon)."""

from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Plan, Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from ..models.profile import layers
from .fisher_pruner import FisherOptions, FisherPruner
from .gmp import POST_TRAINING
from .gradients import batches_of
from .structure import parse

# Their rate falls at the end of epochs 40, 46, ... 88 (of MobileNet: 30, 31, ...), so from the next one on.
_RECIPE = Recipe(
    epochs=100, batch_size=180, lr=0.005, momentum=0.9, weight_decay=1e-4, schedule="constant",
    milestones=tuple(range(41, 90, 6)), gamma=0.6, select="last",
)  # fmt: skip
_NOTES = (
    "the accuracies are those of the best epoch",
    "its Fisher blocks run over all weights of a layer, pruned ones included (pruners/woodfisherblock.py); here over "
    "those that are left, so that a block reaches further the more is pruned",
)


class WoodFisherOptions(FisherOptions):
    flops_power: float = Field(0.0, ge=0, le=10)
    """Scores are divided by this power of the operations that a weight costs for one image: the same sparsity then
    saves more of them. 0 counts weights alone; the authors have 0.3."""

    @model_validator(mode="after")
    def _of_all_layers(self) -> "WoodFisherOptions":
        if self.flops_power and (self.allocation != "global" or parse(self.pattern).kind == "n:m"):
            raise ValueError("flops_power compares layers, which have their shares here; set allocation=global, no N:M")
        return self


@methods.register("woodfisher")
class WoodFisher(FisherPruner):
    """Removes the weights with the least w^2 / (2 [F^-1]_qq). Those pruned together are treated as if each went alone:
    the others of a block move by - sum_q w_q F^-1 e_q / [F^-1]_qq."""

    tags = Tags(
        family="second-order", paper="Singh & Alistarh 2020", gradual=True, seeded=True, edits_weights=True,
        data="labels", gradients=True, patterns=True,
    )  # fmt: skip
    Options = WoodFisherOptions
    brief = {"gradients": 6, "batch": 4, "block": 50, "schedule": {"start": 0.1, "end": 0.7, "updates": 3}}
    cost = (
        "at every update `gradients` x `batch` images forward and backward; 4 x `gradients` bytes of disk for a weight "
        "that is left (with less room the layers go in parts, and every part's gradients are drawn twice). ResNet-50 "
        "pruned once with 400 gradients in blocks of 2000 (measured, two cores with AVX2): 41 GB of disk, 44 minutes "
        "of CPU time with single images, 2.3 GB of memory at the most, and 4.4 GB where a gradient is of 32 images. A "
        "process each, where there are several"
    )
    papers = {
        "resnet50": Settings(
            model="torchvision:resnet50",
            source="IST-DASLab/WoodFisher, configs/resnet50.yaml and scripts/resnet50_woodfisher_sparsity-0.9.sh",
            recipe=_RECIPE,
            options={"gradients": 400, "batch": 400, "block": 2000, "dampening": 1e-5, "schedule": POST_TRAINING},
            results={0.9: 75.3, 0.95: 72.2},
            notes=_NOTES,
        ),
        "resnet50-80": Settings(
            model="torchvision:resnet50",
            source="IST-DASLab/WoodFisher, scripts/resnet50_woodfisher_sparsity-0.8.sh",
            recipe=_RECIPE.model_copy(update={"batch_size": 256}),
            options={
                "gradients": 400, "batch": 400, "block": 2000, "dampening": 1e-5, "update_scale": 0.9,
                "schedule": POST_TRAINING,
            },
            sparsity=0.8,
            results={0.8: 76.7},
            notes=_NOTES,
        ),
        "resnet50-98": Settings(
            model="torchvision:resnet50",
            source="IST-DASLab/WoodFisher, scripts/resnet50_woodfisher_sparsity-0.98.sh",
            recipe=_RECIPE,
            options={"gradients": 400, "batch": 400, "block": 1000, "dampening": 1e-5, "schedule": POST_TRAINING},
            sparsity=0.98,
            results={0.98: 65.5},
            notes=_NOTES,
        ),
        "resnet50-flops": Settings(
            model="torchvision:resnet50",
            source="IST-DASLab/WoodFisher, scripts/resnet50_woodfisher_sparsity-0.9_flops-aware-power-0.30.sh",
            recipe=_RECIPE,
            options={
                "gradients": 400, "batch": 400, "block": 2000, "dampening": 1e-5, "flops_power": 0.3,
                "schedule": POST_TRAINING,
            },
            sparsity=0.9023,
            notes=("no weight decay after the last pruning there", _NOTES[1]),
        ),
        "mobilenetv1": Settings(
            model="published:mobilenet_v1@FILE",
            source="IST-DASLab/WoodFisher, configs/mobilenetv1.yaml, scripts/mobilenetv1_woodfisher_sparsity-0.89.sh, "
            "and plotmaker/str_gradual_pruning_mobilenetv1_*.py",
            recipe=_RECIPE.model_copy(update={"milestones": tuple(range(31, 100)), "gamma": 0.92}),
            options={
                "gradients": 400, "batch": 2400, "block": 10000, "dampening": 1e-5,
                "schedule": {"start": 0.04, "end": 0.24, "updates": 6, "initial": 0.05},
            },
            sparsity=0.89,
            results={0.7528: 70.09, 0.89: 63.87},
            notes=(
                "FILE is STR's dense network", "batches of 256, and no weight decay after the last pruning, at 75.28 % "
                "there", *_NOTES,
            ),
        ),
    }  # fmt: skip

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.costs_: dict[str, float] = {}
        if self.options.flops_power:
            images, _ = next(batches_of(plan, 1, 0))
            self.costs_ = {x.name: x.flops_dense / x.total for x in layers(model, Mask({}), images.shape[-1])}
        return super().start(model, mask, plan)

    def compared(self, model: nn.Module, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        # A layer that no image goes through costs nothing, and has no gradient either.
        costs = {name: self.costs_.get(name.removesuffix(".weight"), 1.0) for name in scores}
        return {name: score / costs[name] ** self.options.flops_power for name, score in scores.items()}
