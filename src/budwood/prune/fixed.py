"""The mask a network comes with, held: what transfer of an already pruned network, and dense training, are."""

from ..core.pruner import Pruner
from ..core.registry import methods

methods.register("fixed")(Pruner)
methods.register("dense")(Pruner)
