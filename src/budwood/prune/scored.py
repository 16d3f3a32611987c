"""What methods share that prune by a score: which layers take part, in which pattern, at once or little by little."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Options, Plan, Pruner
from .allocation import CONVENTIONS, PATTERN_CONVENTION, Allocation, Part, kept_dense, mask_by_score
from .schedule import Cubic
from .score import magnitude
from .structure import SINGLE, Pattern, Structure, parse


def several(value: Any) -> Any:
    """One part alone is a list of one."""
    return (value,) if isinstance(value, str) else value


class LayerOptions(Options):
    """Which layers, and what share of each."""

    allocation: Allocation = "global"
    """How the sparsity is shared among the layers (str: ResNet-50 alone)."""
    keep_dense: Annotated[tuple[Part, ...] | None, BeforeValidator(several)] = None
    """Layers left out of the pruning. Not set: the allocation's convention (lth-t: first and classifier)."""


class ScoreOptions(LayerOptions):
    pattern: Pattern = SINGLE
    """unstructured; N:M (2:4, 4:8, 1:4); blocks of 1xB (1x4, 1x2). Groups lie along the input channels."""

    @model_validator(mode="after")
    def _possible(self) -> "ScoreOptions":
        if parse(self.pattern).kind == "n:m" and self.allocation in ("erk", "str"):
            raise ValueError(f"{self.pattern} gives every layer the same share, {self.allocation} does not")
        return self


class GradualOptions(ScoreOptions):
    schedule: Cubic = Cubic()


def participants(
    model: nn.Module, mask: Mask, options: LayerOptions, convention: tuple[Part, ...] | None = None
) -> list[str]:
    """Names of the weights that take part, in the mask's order. `convention`: what is left out where the options do
    not say; None for that of the allocation."""
    parts = options.keep_dense
    pattern = getattr(options, "pattern", SINGLE)
    if parts is None:
        parts = CONVENTIONS[options.allocation] if convention is None else convention
        parts += PATTERN_CONVENTION if pattern != SINGLE else ()
    dense = kept_dense(model, parts, parse(pattern).size)
    return [name for name in mask if name not in dense]


class Layered(Pruner):
    """Prunes the layers that its options leave it, each to the share that the allocation gives it, in their pattern if
    they have one."""

    Options = LayerOptions

    def __init__(self, sparsity: float = 0.0, options: Any = None) -> None:
        super().__init__(sparsity, options)
        structure = self.structure
        most = 1 - structure.most / structure.size
        if structure.kind == "n:m" and abs(sparsity - most) > 1e-6:
            raise UserError(f"{self.pattern} makes {most:g} zeros in the layers it prunes, not {sparsity:g}")

    @property
    def pattern(self) -> str:
        return str(getattr(self.options, "pattern", SINGLE))

    @property
    def structure(self) -> Structure:
        """What the pattern says."""
        return parse(self.pattern)

    def unit(self) -> int:
        return self.structure.unit

    def layers(self, model: nn.Module, mask: Mask) -> list[str]:
        return participants(model, mask, self.options)

    def check(self, model: nn.Module, mask: Mask, epochs: int) -> None:
        """By magnitude, which is cheap: whether the sparsity can be reached does not depend on the scores."""
        super().check(model, mask, epochs)
        self.largest(model, mask, self.sparsity)

    def largest(self, model: nn.Module, mask: Mask, sparsity: float) -> Mask:
        """`mask`, in the layers that take part with the largest weights of now alone."""
        return self.select(magnitude(model, self.layers(model, mask)), mask, sparsity)

    def select(self, scores: Mapping[str, Tensor], mask: Mask, sparsity: float) -> Mask:
        """`mask` with only the highest scores kept, as allocation and pattern say."""
        return mask_by_score(scores, mask, sparsity, self.options.allocation, self.pattern)


class Scored(Layered):
    """Prunes at once, by `scores`, which are |w| unless a method has others. One that also changes the weights it keeps
    extends `prune_to`."""

    Options = ScoreOptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.plan_ = plan
        return self.prune_to(model, mask, self.sparsity)

    def prune_to(self, model: nn.Module, mask: Mask, sparsity: float, step: int = 0) -> Mask:
        """The mask at `sparsity`, by the scores of now. `step` (0-based) is when, and salts what is drawn."""
        return self.select(self.scores(model, mask, sparsity, step), mask, sparsity)

    def scores(self, model: nn.Module, mask: Mask, sparsity: float, step: int) -> dict[str, Tensor]:
        """Name -> how much each weight matters, for every one of `layers`; the least go first."""
        return magnitude(model, self.layers(model, mask))


class Gradual(Scored):
    """Prunes along the schedule while it is trained; at once where there is no training (a plan of no steps).
    What is pruned stays pruned."""

    Options = GradualOptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.plan_ = plan
        if plan.steps == 0:
            return self.prune_to(model, mask, self.sparsity)
        already = mask.restricted(self.layers(model, mask)).sparsity
        self.check(model, mask, plan.epochs)  # what cannot be reached is refused now and not at the last update
        moments = self.options.schedule.at(self.sparsity, plan.steps)
        self.moments_ = {step: max(target, already) for step, target in moments.items()}
        return mask

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        return self.prune_to(model, mask, self.moments_[step], step) if step in self.moments_ else mask

    def looks_at_gradients(self, step: int) -> bool:
        return type(self).update is not Gradual.update

    def settled(self, step: int) -> bool:
        return step >= max(self.moments_)
