"""GMP, gradual magnitude pruning (Zhu & Gupta 2017): the sparsity grows along a cubic curve during training."""

from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .scored import Gradual

POST_TRAINING = {"start": 0.01, "end": 0.40, "updates": 40, "initial": 0.05, "every": 5}
"""Of 100 epochs: pruned at 1, 6, ..., 36 (IST-DASLab/WoodFisher, configs/resnet50.yaml), for WoodFisher too."""


@methods.register("gmp")
class GMP(Gradual):
    """Removes the smallest |w|, more and more of them."""

    tags = Tags(family="magnitude", paper="Zhu & Gupta 2017", gradual=True, patterns=True)
    cost = (
        "a sort of all weights at each of the `schedule.updates`: 1 s and 0.6 GB for ResNet-50 "
        "(25.5 M weights; measured)"
    )
    papers = {
        "post-training": Settings(
            model="torchvision:resnet50",
            source="IST-DASLab/WoodFisher, configs/resnet50.yaml (its global magnitude baseline)",
            recipe=Recipe(
                epochs=100, batch_size=180, lr=0.005, momentum=0.9, weight_decay=1e-4, schedule="constant",
                milestones=tuple(range(41, 90, 6)), gamma=0.6, select="last",
            ),
            options={"allocation": "global", "schedule": POST_TRAINING},
            results={0.8: 76.6, 0.9: 75.1, 0.95: 71.7, 0.98: 64.2},
            notes=("batches of 256 for 80 %",),
        ),
        "from-scratch": Settings(
            model="torchvision:resnet50 --from-scratch",
            source="RAIVNLab/STR, configs/largescale/resnet50-gmp.yaml",
            recipe=Recipe(
                epochs=100, batch_size=256, lr=0.256, momentum=0.875, weight_decay=3.0517578125e-5, warmup_epochs=5,
                label_smoothing=0.1, select="last",
            ),
            options={
                "allocation": "uniform", "keep_dense": [], "schedule": {"start": 0.2, "end": 0.79, "updates": 60},
            },
            notes=(
                "their mask is made anew from the weights at every forward pass, so pruned weights may come back; here "
                "they stay pruned",
                "their curve reaches its end a sixtieth of the way later",
                "their kernels are drawn by Kaiming's fan in, torchvision's by the fan out; no bias in the classifier",
            ),
        ),
    }  # fmt: skip
