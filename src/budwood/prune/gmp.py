"""GMP, gradual magnitude pruning (Zhu & Gupta 2017): the sparsity grows along a cubic curve during training."""

from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Plan, Tags
from ..core.registry import methods
from .magnitude import Magnitude, MagnitudeOptions
from .schedule import Cubic


class GMPOptions(MagnitudeOptions):
    schedule: Cubic = Cubic()


@methods.register("gmp")
class GMP(Magnitude):
    """Pruned weights stay pruned. Without a training to be gradual in (a plan of no steps) it prunes at once."""

    tags = Tags(family="magnitude", paper="Zhu & Gupta 2017", gradual=True)
    Options = GMPOptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        if plan.steps == 0:
            return self.prune_to(model, mask, self.sparsity)
        already = mask.restricted(self.layers(model, mask)).sparsity
        if already > self.sparsity:
            self.prune_to(model, mask, self.sparsity)
        moments = self.options.schedule.at(self.sparsity, plan.steps)
        self.moments_ = {step: max(target, already) for step, target in moments.items()}
        return mask

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        return self.prune_to(model, mask, self.moments_[step]) if step in self.moments_ else mask

    def settled(self, step: int) -> bool:
        return step >= max(self.moments_)
