"""SynFlow (Tanaka, Kunin, Yamins, Ganguli 2020): keep the weights that carry the most of a flow through the network,
measured without data and again after every small step, so that no layer is ever cut through."""

import copy
import functools
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .schedule import exponential
from .score import magnitude
from .scored import Scored, ScoreOptions

CURVED = (
    *("ReLU6", "Hardtanh", "SiLU", "Swish", "Hardswish", "HardSwish", "GELU", "GELUTanh", "QuickGELU", "Mish"),
    *("HardMish", "ELU", "CELU", "SELU", "LeakyReLU", "Softplus"),
)
"""Activations that are like ReLU but bent or cut off. What they make of a large input is a large output, or ought to
be: the flow is far greater than any activation."""
GATES = ("Sigmoid", "Hardsigmoid", "HardSigmoid")
"""What channels are multiplied by in squeeze-excite layers; saturated by the flow, it would let none pass back."""


class SynFlowOptions(ScoreOptions):
    iterations: int = Field(100, ge=1)
    """Steps of the pruning; the density falls by the same factor in each."""
    size: int = Field(64, ge=1, le=1024)
    """Height and width in pixels of the one image, all ones, that is sent through."""


@methods.register("synflow")
class SynFlow(Scored):
    """Removes the smallest |w dR/dw|, where R is the sum of the outputs for an image of ones, with the absolute values
    of all parameters and statistics in their place, in evaluation mode.

    Every layer carries the whole of R between its weights, so the fewer they are the more each one counts.
    """

    tags = Tags(family="one-shot", paper="Tanaka et al. 2020", patterns=True)
    Options = SynFlowOptions
    brief = {"iterations": 10, "size": 6}
    cost = (
        "once, `iterations` times: one image of `size` x `size` forward and backward in float64, and a sort of all "
        "weights. ResNet-50: 1 to 2 s each on one thread, so 3 min for 100, and 2 GB of memory in all (measured)"
    )
    papers = {
        "cifar10": Settings(
            model="VGG-11 with batch norm --from-scratch",
            data="CIFAR-10",
            source="ganguli-lab/Synaptic-Flow, Results/data/singleshot/0630_2020_cifar10_lottery_vgg11_bn_run0",
            recipe=Recipe(
                epochs=160, batch_size=128, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="constant",
                milestones=(60, 120), gamma=0.1, select="last",
            ),
            options={"allocation": "global", "iterations": 100, "size": 32},
            notes=("SGD has Nesterov momentum there; compressions of 10^0.1 and so on are shown in figures only",),
        ),
    }  # fmt: skip

    def prune_to(self, model: nn.Module, mask: Mask, sparsity: float, step: int = 0) -> Mask:
        names = self.layers(model, mask)
        goal = self.select(magnitude(model, names), mask, sparsity)  # what cannot be reached is refused at once
        if goal.kept == mask.kept:
            return goal
        flow = flowing(model)
        for done, target in enumerate(exponential(mask.restricted(names).sparsity, sparsity, self.options.iterations)):
            mask = self.select(flow_scores(flow, names, mask, self.options.size), mask, target)
            self.plan_.told(done + 1, self.options.iterations)
        return mask


def flowing(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are positive, whose activations pass every positive value as it is, and
    whose gates are open.

    On the CPU in float64: sums of positive products grow in every layer, in ResNet-50 beyond what float32 holds.
    """
    flow = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        for tensor in flow.state_dict().values():
            if tensor.is_floating_point():
                tensor.abs_()
    for parent in list(flow.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in CURVED:
                setattr(parent, name, nn.ReLU())
            elif type(child).__name__ in GATES:
                setattr(parent, name, _Gate())
                parent.forward = functools.partial(_beside, parent, parent.forward)
    return flow


class _Gate(nn.Module):
    """An open gate, which is 1, with the relative slope of its input: between the weights that feed it they share the
    flow that passes it, as every other layer's weights do. Shut where nothing feeds it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return x / torch.where(x > 0, x, 1).detach()


def _beside(parent: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a squeeze-excite layer does with its gate open: nothing. Its own weights get their share of the flow, but
    no flow goes back through them: the layers before it would have it twice, and twice again at the next."""
    out = forward(x.detach())
    if isinstance(parent, nn.Sequential):  # it makes the gate alone; who multiplies is outside
        return out
    return x + (out - out.detach()) if out.shape == x.shape else forward(x)


def flow_scores(flow: nn.Module, names: list[str], mask: Mask, size: int) -> dict[str, Tensor]:
    """Name -> |w dR/dw| in float64, over the greatest of all. `flow` is left with the mask applied.

    Raises UserError where the network does not take an image of this size, or R is not finite.
    """
    mask.apply_(flow)
    weights = [flow.get_parameter(name).requires_grad_() for name in names]
    with torch.enable_grad():
        try:
            total = flow(torch.ones(1, 3, size, size, dtype=torch.float64)).sum()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the network takes no image of {size} x {size} ({error}); set --option size=") from error
        found = torch.autograd.grad(total, weights, allow_unused=True)
    if not bool(torch.isfinite(total)):
        raise UserError("the flow through the network is not finite: a weight is, or it is too deep for SynFlow")
    flows = [torch.zeros_like(w) if g is None else (w.detach() * g).abs() for w, g in zip(weights, found, strict=True)]
    most = max(float(score.max()) for score in flows) or 1.0
    return {name: score / most for name, score in zip(names, flows, strict=True)}
