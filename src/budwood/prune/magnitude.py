"""One-shot magnitude pruning (Han et al. 2015): the smallest weights go at once, before any training."""

from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Tags
from ..core.registry import methods
from .score import magnitude
from .scored import Scored


@methods.register("magnitude")
class Magnitude(Scored):
    """Removes the smallest |w|."""

    tags = Tags(family="magnitude", paper="Han et al. 2015", patterns=True)

    def scores(self, model: nn.Module, mask: Mask, sparsity: float, step: int) -> dict[str, Tensor]:
        return magnitude(model, self.layers(model, mask))
