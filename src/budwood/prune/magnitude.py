"""One-shot magnitude pruning: the smallest weights go at once, before any training."""

from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import nn

from ..core.mask import Mask
from ..core.pruner import Options, Plan, Pruner, Tags
from ..core.registry import methods
from .allocation import CONVENTIONS, Allocation, Part, kept_dense, mask_by_score
from .score import magnitude


def _several(value: Any) -> Any:
    """One part alone is a list of one."""
    return (value,) if isinstance(value, str) else value


class MagnitudeOptions(Options):
    allocation: Allocation = "global"
    keep_dense: Annotated[tuple[Part, ...] | None, BeforeValidator(_several)] = None
    """Layers left out of the pruning; None for the allocation's convention."""


@methods.register("magnitude")
class Magnitude(Pruner):
    """Removes the smallest |w|; the layers take part as `allocation` and `keep_dense` say."""

    tags = Tags(family="magnitude", paper="Han et al. 2015")
    Options = MagnitudeOptions

    def __init__(self, sparsity: float = 0.0, options: Any = None) -> None:
        super().__init__(sparsity, options)

    def layers(self, model: nn.Module, mask: Mask) -> list[str]:
        """Names of the weights that take part."""
        options = self.options
        parts = CONVENTIONS[options.allocation] if options.keep_dense is None else options.keep_dense
        dense = kept_dense(model, parts)
        return [name for name in mask if name not in dense]

    def prune_to(self, model: nn.Module, mask: Mask, sparsity: float) -> Mask:
        """The mask at `sparsity`, by the magnitudes of now."""
        scores = magnitude(model, self.layers(model, mask))
        return mask_by_score(scores, mask, sparsity, self.options.allocation)

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        return self.prune_to(model, mask, self.sparsity)
