"""What to classify: the labelled images a network is transferred to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:  # a saved program knows its preprocessing, and does without PyTorch
    from torch.utils.data import Dataset

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Metric = Literal["top1", "mean_per_class"]
Triple = tuple[float, float, float]


class Preprocessing(BaseModel):
    """How a network wants its images at evaluation: shorter side to `resize`, centre crop `size`, normalise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    size: int = Field(224, ge=1, le=1 << 14)
    resize: int = Field(256, ge=1, le=1 << 14)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)

    def at(self, size: int) -> Preprocessing:
        """The same at another image size in pixels, the ratio of resize to crop unchanged."""
        return self.model_copy(update={"size": size, "resize": max(size, round(size * self.resize / self.size))})


class Task(ABC):
    """An opened task: its data was found, its splits are made.

    `notes` holds, in one line each, whatever was decided while opening it (a split made, images left out),
    for the screen and the report. `declared_sizes` is what the data set's authors state, where they do.
    """

    name: str
    metric: Metric = "top1"
    source: str = ""
    licence: str = ""
    fine_grained: ClassVar[bool | None] = None
    """Classes of one kind of thing (breeds, models), or of all kinds; None where nobody has said."""
    statistics: ClassVar[tuple[Triple, Triple] | None] = None
    """Mean and deviation of the training images in RGB, 0 to 1, with which the study normalises in full transfers."""
    study_lr: ClassVar[float] = 0.001
    """Learning rate of the study's full transfers to it."""
    declared_classes: ClassVar[int | None] = None
    declared_sizes: ClassVar[dict[str, int] | None] = None
    classes: tuple[str, ...]
    notes: list[str]

    @abstractmethod
    def targets(self, split: Split) -> Sequence[int]:
        """Class index of every image of a split, in the order of `load`."""

    @abstractmethod
    def load(self, split: Split, transform: Callable[[Any], Any]) -> Dataset[Any]:
        """The split as (transform(RGB PIL image), class index)."""

    @abstractmethod
    def digest(self) -> str:
        """sha256 (hex) that changes whenever an image, a label or its split does."""

    @property
    def sizes(self) -> dict[str, int]:
        """Images per split."""
        return {split: len(self.targets(split)) for split in SPLITS}
