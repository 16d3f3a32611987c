"""AC/DC, alternating compressed / decompressed training (Peste et al. 2021): in turn a few epochs with the largest
weights alone and a few with all of them; the last phase is a compressed one."""

import itertools

from pydantic import Field
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Plan, Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .scored import Scored, ScoreOptions

MODEL = "torchvision:resnet50 --from-scratch"
IMAGENET = Recipe(
    epochs=100, batch_size=256, lr=0.256, momentum=0.875, weight_decay=3.051757813e-5, warmup_epochs=5, select="last"
)
PERCENT = {"first_dense": 10, "phase": 5, "last_dense": 10, "last_sparse": 15}
"""Of the training, so of the authors' 100 epochs as many; over 200 epochs they keep these numbers, as epochs."""


class ACDCOptions(ScoreOptions):
    first_dense: int | None = Field(None, ge=1, le=100_000)
    """Epochs before the first compressed phase; 10 % of the training, if not given."""
    phase: int | None = Field(None, ge=1, le=100_000)
    """Epochs of every phase, compressed or dense, between the first and the last two; 5 %, if not given."""
    last_dense: int | None = Field(None, ge=1, le=100_000)
    """Epochs of the last dense phase; 10 %, if not given."""
    last_sparse: int | None = Field(None, ge=1, le=100_000)
    """Epochs of the compressed phase at the end; 15 %, if not given. Epochs that make no whole phase are added."""


def compressed(epochs: int, options: ACDCOptions) -> list[bool]:
    """Epoch -> whether the network is compressed in it. Shares of the training are rounded, to one epoch at least,
    the last one up. Raises UserError where the training is too short for one phase of each kind."""
    first, phase, last_dense, last_sparse = lengths = _lengths(epochs, options)
    if sum(lengths) > epochs:
        least = next(n for n in itertools.count(epochs) if sum(_lengths(n, options)) <= n)
        raise UserError(f"AC/DC's phases need at least {least} epochs, not {epochs}; set --epochs {least} or more")
    phases = (epochs - first - last_dense - last_sparse) // phase
    phases -= 1 - phases % 2  # they begin and end compressed
    between = [i // phase % 2 == 0 for i in range(phases * phase)]
    found = [False] * first + between + [False] * last_dense
    return found + [True] * (epochs - len(found))


def _lengths(epochs: int, options: ACDCOptions) -> list[int]:
    shares = {name: max(1, (epochs * share + 50) // 100) for name, share in PERCENT.items()}
    shares["last_sparse"] = -(-epochs * PERCENT["last_sparse"] // 100)  # in a short training the end matters most
    return [getattr(options, name) or share for name, share in shares.items()]


@methods.register("acdc")
class ACDC(Scored):
    """Keeps the largest |w| in compressed phases, everything in dense ones.

    Masks change at the first step of a phase, after its gradients: weights are chosen as they are then, and those that
    come back start at zero with that step's dense gradient, all momentum forgotten. Zeros that a network comes with
    stay: dense means all that it came with.
    """

    tags = Tags(
        family="re-growth", paper="Peste et al. 2021", gradual=True, at_once=False, revives=True, patterns=True
    )  # fmt: skip
    Options = ACDCOptions
    cost = (
        "a selection over all weights at each compressed phase, 8 of them: 1 s and 0.6 GB for ResNet-50 (measured, one "
        "core)"
    )
    papers = {
        "global": Settings(
            MODEL, "IST-DASLab/ACDC, README.md and iht_imagenet_resnet50_insta_cosinelr_s90_ep100.yaml", IMAGENET,
            {"allocation": "global"}, results={0.8: 76.45, 0.9: 75.03, 0.95: 73.14, 0.98: 68.48},
            notes=("in half precision (fp16) there",),
        ),
        "uniform": Settings(
            MODEL, "IST-DASLab/ACDC, README.md and iht_imagenet_resnet50_insta_cosinelr_s90_ep100_unif.yaml", IMAGENET,
            {"allocation": "uniform"}, results={0.9: 75.04, 0.95: 73.28},
            notes=("the sparsity is that of the pruned layers: first convolution and classifier are dense",),
        ),
        "uniform-2x": Settings(
            MODEL, "IST-DASLab/ACDC, README.md and iht_imagenet_resnet50_insta_cosinelr_s90_ep200_unif.yaml",
            IMAGENET.model_copy(update={"epochs": 200}), {"allocation": "uniform", **PERCENT},
            results={0.9: 76.09, 0.95: 74.29},
        ),
        "mobilenet": Settings(
            "published:mobilenet_v1 --from-scratch",
            "IST-DASLab/ACDC, README.md and iht_imagenet_mobilenet_insta_cosinelr_s75_ep100.yaml",
            IMAGENET, {"allocation": "global"}, sparsity=0.75, results={0.75: 70.41, 0.9: 66.24},
        ),
        "2:4": Settings(
            MODEL, "IST-DASLab/ACDC, iht_imagenet_resnet50_cosinelr_sp_2_4_ep100.yaml", IMAGENET,
            {"pattern": "2:4"}, sparsity=0.5,
            notes=("the first convolution is 2:4 as well there, with groups across its three input channels",),
        ),
    }  # fmt: skip

    def check(self, model: nn.Module, mask: Mask, epochs: int) -> None:
        compressed(epochs, self.options)
        super().check(model, mask, epochs)

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.check(model, mask, plan.epochs)
        self.plan_, self.given_ = plan, mask
        self.compressed_ = compressed(plan.epochs, self.options)
        return mask

    def turns(self, step: int, to: bool) -> bool:
        """Whether a phase begins at `step`, compressed or not as `to` says."""
        epoch, inside = divmod(step, self.plan_.steps_per_epoch)
        return inside == 0 and epoch > 0 and self.compressed_[epoch - 1 : epoch + 1] == [not to, to]

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        if self.turns(step, to=True):
            return self.prune_to(model, self.given_, self.sparsity, step)
        return self.given_ if self.turns(step, to=False) else mask

    def looks_at_gradients(self, step: int) -> bool:
        """Where weights come back, which that very step trains."""
        return self.turns(step, to=False)

    def resets_momentum(self, step: int) -> bool:
        return self.turns(step, to=False)

    def settled(self, step: int) -> bool:
        """In the last phase: all that come before have a dense one after them."""
        return all(self.compressed_[step // self.plan_.steps_per_epoch :])
