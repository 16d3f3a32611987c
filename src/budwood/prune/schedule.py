"""When how much is pruned."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Cubic(BaseModel):
    """Zhu & Gupta 2017: s(t) = final + (initial - final) (1 - (t - t0) / (t1 - t0))^3 at `updates` moments that are
    evenly spread from t0 to t1, both included. `start` and `end` are shares of the whole training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    start: float = Field(0.0, ge=0, le=1)
    """When the first weights go, as a share of the training."""
    end: float = Field(0.6, ge=0, le=1)
    """When the last ones go, as a share of the training."""
    updates: int = Field(30, ge=1, le=1_000_000)
    """How often some go."""
    initial: float = Field(0.0, ge=0, lt=1)
    """The sparsity after the first time."""
    every: int = Field(1, ge=1)
    """Only every so manieth of the updates is made; the last of these reaches the end of the curve."""

    @model_validator(mode="after")
    def _ordered(self) -> "Cubic":
        if self.end < self.start:
            raise ValueError(f"the pruning ends (end={self.end:g}) before it starts (start={self.start:g})")
        return self

    def at(self, final: float, steps: int) -> dict[int, float]:
        """Step (0-based, of `steps`) -> sparsity to reach at it. Never empty; the last one is `final`."""
        if self.updates == 1 or steps <= 1:
            return {min(int(self.end * steps), max(steps - 1, 0)): final}
        initial = min(self.initial, final)
        found: dict[int, float] = {}
        for i in range(0, self.updates, self.every):
            progress = i / (self.updates - 1)
            moment = (self.start + (self.end - self.start) * progress) * steps
            found[min(round(moment), steps - 1)] = final + (initial - final) * (1 - progress) ** 3
        found[max(found)] = final
        return found


def exponential(before: float, final: float, count: int) -> list[float]:
    """The sparsities after each of `count` steps from `before`: the density falls by the same factor in every one."""
    factor = ((1 - final) / (1 - before)) ** (1 / count) if before < 1 else 1.0
    return [1 - (1 - before) * factor**i for i in range(1, count)] + [final]
