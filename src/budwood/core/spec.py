"""What determines a run, and the name that follows from it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .files import digest_of
from .task import Metric, Preprocessing

Transfer = Literal["linear", "full", "none"]
Where = Literal["none", "upstream", "downstream", "one-shot"]
Protocol = Literal["budwood", "cvpr22"]

COMPONENT_VERSIONS = {"fit": 3, "linear": 1, "prune": 7, "transforms": 1}
"""Raised by whoever changes what a component computes: results of older versions are then made again."""
STUDY_VERSION = 1
"""The same for what `cvpr22` alone computes. 1: the epoch is chosen by top-1."""


class Recipe(BaseModel):
    """How a network is trained. The defaults are Budwood's own; `docs/explain/protocol.md` has the study's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    epochs: int = Field(10, ge=0, le=100_000)
    """How often every training image is seen."""
    batch_size: int = Field(32, ge=1)
    """Images a step, over all processes."""
    accumulate: int = Field(1, ge=1)
    """Parts a batch is computed in, to save memory."""
    lr: float = Field(0.01, gt=0)
    """Learning rate of SGD at its highest."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay of SGD."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over time: cosine to zero, or the same but for its falls at `milestones`."""
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Epochs (0-based) from which on the learning rate is lower by `gamma`."""
    gamma: float = Field(0.1, gt=0, le=1)
    """Factor of the learning rate at each milestone."""
    warmup_epochs: int = Field(0, ge=0)
    """Epochs in which the learning rate rises to its highest."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an average of the weights, which is then the network; 0 for none."""
    amp: bool = False
    """bfloat16 autocast for the forward pass; the weights stay float32."""
    distill: float = Field(0.0, ge=0, le=1)
    """Share of the loss that asks for the dense network's answers; 0 for none."""
    select: Literal["best", "last"] = "best"
    """Which epoch is kept: best on the validation split (among those at final sparsity), or the last."""
    size: int | None = Field(None, ge=16, le=2048)
    """Image size in pixels; the network's own if not given."""
    augment: bool = True
    """Random crops and mirroring while training."""
    head: Literal["lbfgs", "sgd", "sgd-augmented"] = "lbfgs"
    """How a linear head is fitted: L-BFGS with C chosen on the validation split; SGD as in the study; or SGD on images
    that are cropped and mirrored anew in every epoch, for which the backbone runs each time."""
    adapt_bn: bool = False
    """Before a linear head is fitted, make batch norm statistics anew on the training images."""

    def for_linear(self) -> "Recipe":
        """What of it counts for a linear head. L-BFGS has no epochs; SGD has the study's settings: batches of 64,
        learning rate 0.01, a tenth from the 0-based epochs 51 and 101 on, 150 epochs."""
        kept = {"size": self.size, "head": self.head, "select": self.select, "adapt_bn": self.adapt_bn}
        if self.head == "lbfgs":
            return Recipe(**kept)
        return Recipe(**kept, epochs=150, batch_size=64, lr=0.01, schedule="constant", milestones=(51, 101))


LINEAR_ONLY = ("head", "adapt_bn")
"""What of a recipe counts for a linear head alone."""


class RunSpec(BaseModel):
    """What determines a run's result. Paths and clocks do not count, nor do the numbers of threads, which change its
    last digits, and of processes, each of which has batch norm over its own part of a batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    model: str
    parent: str
    """Digest of the checkpoint it starts from; `run:RUN_ID` for the one that another run makes."""
    preprocessing: Preprocessing | None = None
    """How the images reach the network."""
    task: str
    metric: Metric = "top1"
    data: str
    """Digest of the task's images, labels and splits."""
    method: str = "dense"
    where: Where = "none"
    sparsity: float = Field(0.0, ge=0, lt=1)
    options: dict[str, Any] = {}
    transfer: Transfer = "full"
    seed: int = Field(0, ge=0, lt=2**31)
    recipe: Recipe = Recipe()
    protocol: Protocol = "budwood"
    """Whose rules of splits and normalisation it follows (docs/explain/protocol.md)."""
    teacher: str | None = None
    """run_id of the run that is distilled from."""

    @model_validator(mode="after")
    def _possible(self) -> "RunSpec":
        if self.transfer == "linear" and self.where == "downstream":
            raise ValueError("a linear transfer does not train the backbone, so nothing can be pruned in it")
        return self

    @property
    def run_id(self) -> str:
        """16 hex digits: the digest of the canonical JSON and the components' versions."""
        spec, versions = self.model_dump(mode="json"), COMPONENT_VERSIONS
        # Fields of later days: older runs keep their names.
        if not self.recipe.adapt_bn:
            del spec["recipe"]["adapt_bn"]
        if self.protocol == "budwood":
            del spec["protocol"]
        else:
            versions = versions | {"study": STUDY_VERSION}
        return digest_of({"spec": spec, "versions": versions})[:16]
