"""RigL (Evci et al. 2020): every few steps the smallest weights of each layer go and those of the largest gradient
come."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from budwood.core.mask import Mask
from budwood.core.pruner import Options, Plan, Pruner, Tags
from budwood.models.network import prunable
from budwood.prune.allocation import mask_by_score
from budwood.prune.score import magnitude
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit

BATCH = (torch.zeros(1), torch.zeros(1))


class RigLOptions(Options):
    every: int = 3
    end: float = 0.75
    alpha: float = 0.3


class RigL(Pruner):
    tags = Tags(family="re-growth", gradual=True, revives=True)
    Options = RigLOptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.last_ = self.options.end * plan.steps
        return mask_by_score(magnitude(model, mask), mask, self.sparsity, "erk")

    def _moment(self, step: int) -> bool:
        return 0 < step <= self.last_ and step % self.options.every == 0

    def applies_gradient(self, step: int) -> bool:
        return not self._moment(step)

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        if not self._moment(step):
            return mask
        share = self.options.alpha / 2 * (1 + math.cos(math.pi * step / self.last_))
        return Mask({n: _moved(model.get_parameter(n), kept, share) for n, kept in mask.items()})


def _moved(weight: nn.Parameter, kept: Tensor, share: float) -> Tensor:
    """One layer's mask: drop the smallest weights, grow where the gradient is largest (also what was just dropped)."""
    assert weight.grad is not None
    shape, kept = kept.shape, kept.flatten()
    count = int(share * int(kept.sum()))
    sizes = weight.detach().abs().flatten().masked_fill(~kept, -1)
    stay = torch.zeros_like(kept)
    stay[sizes.sort(descending=True, stable=True).indices[: int(kept.sum()) - count]] = True
    gradients = weight.grad.abs().flatten().masked_fill(stay, -1)
    stay[gradients.sort(descending=True, stable=True).indices[:count]] = True
    return stay.reshape(shape)


def test_one_update_by_hand() -> None:
    """Half way the cosine is 0, so with alpha 1 half of the four weights go: 0.1 and 0.3. Among these two and the two
    that are pruned the gradients are 9, 0, 1, 8: the just dropped 0.1 is back as it was, the last one comes in at 0."""
    layer = nn.Linear(6, 1, bias=False)
    layer.weight.data = torch.tensor([[0.5, 0.1, -0.3, 0.4, 0.0, 0.0]])
    layer.weight.grad = torch.tensor([[0.0, -9.0, 0.0, 0.0, 1.0, 8.0]])
    pruner = RigL(1 / 3, RigLOptions(alpha=1.0, end=1.0, every=5))
    mask = pruner.start(layer, Mask.ones({"weight": layer.weight}), Plan(1, 10))
    assert mask["weight"].tolist() == [[True] * 4 + [False] * 2]
    assert pruner.update(layer, mask, 4, BATCH) is mask and pruner.applies_gradient(4)
    found = pruner.update(layer, mask, 5, BATCH)
    assert found["weight"].tolist() == [[True, True, False, True, False, True]] and not pruner.applies_gradient(5)
    found.apply_(layer)
    assert torch.equal(layer.weight.data, torch.tensor([[0.5, 0.1, 0.0, 0.4, 0.0, 0.0]]))


def test_in_training() -> None:
    model, data = toy_network(), toy_data()
    fit = Fit(model, RigL(0.7), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    before: dict[str, Tensor] = {}
    masks: list[Mask] = []
    come = grown = 0

    def after(done: int, total: int, loss: float) -> None:
        nonlocal come, grown
        now = {n: p.detach().clone() for n, p in model.named_parameters()}
        momentum = {n: fit.optimizer.state[p]["momentum_buffer"] for n, p in model.named_parameters()}
        if masks and masks[-1] != fit.mask:
            for name, new in fit.mask.revived_since(masks[-1]).items():
                come += int(new.sum())
                assert not now[name][new].any() and not momentum[name][new].any(), (
                    "they start at zero, without momentum"
                )
            for (
                name,
                weight,
            ) in now.items():  # no gradient is applied: what stays is as it was, dropped weights are zero
                kept = fit.mask.get(name)
                assert torch.equal(weight, before[name] if kept is None else before[name] * kept)
        elif len(masks) >= 2 and masks[-1] != masks[-2]:
            for name, new in masks[-1].revived_since(masks[-2]).items():
                grown += int(now[name][new].count_nonzero())
        masks.append(fit.mask)
        before.update(now)

    fit.progress = after
    fitted = fit.run()
    assert [i for i in range(1, 16) if masks[i] != masks[i - 1]] == [3, 6, 9], "at 12 the cosine has come to 0"
    assert come > 5 and grown > come / 2, "weights came, and then learned"
    assert len({tuple(mask.counts().values()) for mask in masks}) == 1, "every layer keeps its number"
    assert fitted.mask.holds(model)


def test_grows_where_the_dense_gradient_is_largest() -> None:
    """Only a gradient that is not masked yet can tell which pruned weight should come back."""
    model, data = toy_network(), toy_data()
    seen: list[float] = []

    class Watched(RigL):
        def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
            seen.extend(float(model.get_parameter(n).grad[~kept].abs().max()) for n, kept in mask.items())
            return super().update(model, mask, step, batch)

    Fit(model, Watched(0.7), Mask.ones(prunable(model, head=True)), data, data, RECIPE).run()
    assert len(seen) == 48 and min(seen) > 0


def test_contract(contract: Callable[..., None]) -> None:
    contract(RigL)
