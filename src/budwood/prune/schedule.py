"""When how much is pruned."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Cubic(BaseModel):
    """Zhu & Gupta 2017: s(t) = final + (initial - final) (1 - (t - t0) / (t1 - t0))^3 at `updates` moments that are
    evenly spread from t0 to t1, both included. `start` and `end` are shares of the whole training."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    start: float = Field(0.0, ge=0, le=1)
    end: float = Field(0.6, ge=0, le=1)
    updates: int = Field(30, ge=1)
    initial: float = Field(0.0, ge=0, lt=1)

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
        for i in range(self.updates):
            progress = i / (self.updates - 1)
            moment = (self.start + (self.end - self.start) * progress) * steps
            found[min(round(moment), steps - 1)] = final + (initial - final) * (1 - progress) ** 3
        return found
