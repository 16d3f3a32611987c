"""One-shot magnitude pruning (Han et al. 2015): the smallest weights go at once, before any training."""

from ..core.pruner import Tags
from ..core.registry import methods
from .scored import Scored


@methods.register("magnitude")
class Magnitude(Scored):
    """Removes the smallest |w|."""

    tags = Tags(family="magnitude", paper="Han et al. 2015", patterns=True)
    cost = "a sort of all weights, once: 1 s and 0.6 GB for ResNet-50 (25.5 M weights; measured)"
