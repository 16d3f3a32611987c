"""What a run came to: one flat row, readable without any of the code that made it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UserError
from .files import canonical_json, write_atomic
from .spec import RunSpec


class Layer(BaseModel):
    """One prunable weight. FLOPs are of one image, a multiply and an add counted as two."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    shape: tuple[int, ...]
    kept: int
    total: int
    filters: int = 0
    """Output channels, and how many of them have no weight left; `channels` likewise for the input."""
    filters_zero: int = 0
    channels: int = 0
    channels_zero: int = 0
    flops_dense: int
    flops: int


class Result(BaseModel):
    """`metrics` are fractions (0.91, not 91) for accuracies; `seconds` is the work alone."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")  # JSON has no NaN, a loss may be one
    run_id: str
    spec: RunSpec
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    metrics: dict[str, float] = {}
    per_class: list[float] = []
    """Share of each class's test images that are named rightly, in the order of the classes; NaN without images."""
    history: list[dict[str, float]] = []
    """One row an epoch."""
    layers: list[Layer] = []
    sparsity: float = 0.0
    """Of the weights that the mask covers: all convolutions and linear layers, without a head that was made anew."""
    mask_digest: str = ""
    checkpoint_bytes: int = 0
    dense_bytes: int = 0
    """Size of the same network as a dense float32 safetensors file."""
    seconds: float = 0.0
    environment: dict[str, str] = {}
    task: dict[str, Any] = {}
    """name, classes, sizes, metric, source, licence, notes: what a report says of the data."""
    notes: list[str] = []

    def row(self) -> dict[str, Any]:
        """One flat row for a table or a CSV file."""
        spec = self.spec.model_dump(mode="json", exclude={"options", "recipe", "preprocessing"})
        options = {"options": canonical_json(self.spec.options)}
        settings = self.spec.recipe.model_dump(mode="json")
        recipe = {f"recipe_{k}": " ".join(map(str, v)) if isinstance(v, list) else v for k, v in settings.items()}
        flat = self.model_dump(mode="json", include={"run_id", "status", "reason", "mask_digest", "seconds"})
        sizes = {"measured_sparsity": self.sparsity, "bytes": self.checkpoint_bytes, "dense_bytes": self.dense_bytes}
        flops = {"flops": sum(x.flops for x in self.layers), "flops_dense": sum(x.flops_dense for x in self.layers)}
        return {**flat, **spec, **options, **self.metrics, **sizes, **flops, **recipe}

    def save(self, path: Path) -> None:
        write_atomic(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Result":
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValidationError, ValueError):
            raise UserError(f"{path} is no result of Budwood's, or damaged; delete its folder and run again") from None
