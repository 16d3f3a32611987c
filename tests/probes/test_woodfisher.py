"""WoodFisher (Singh & Alistarh 2020): prune by w^2 / (2 [F^-1]_qq), and move the other weights to make up for it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from budwood.core.mask import Mask
from budwood.core.pruner import Options, Plan, Pruner, Tags
from budwood.models.network import prunable
from budwood.prune.allocation import mask_by_score
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit

BATCH = (torch.zeros(1), torch.zeros(1))


class WoodFisherOptions(Options):
    gradients: int = 4
    dampening: float = 1e-3


class WoodFisher(Pruner):
    """Prunes once, half way, by the gradients of the steps before; a block is a layer."""

    tags = Tags(family="second-order", gradual=True, edits_weights=True)
    Options = WoodFisherOptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        mask_by_score({n: model.get_parameter(n).detach().square() for n in mask}, mask, self.sparsity, "global")
        self.at_ = plan.steps // 2
        self.seen_: dict[str, Tensor] = {n: torch.empty(0, kept.numel()) for n, kept in mask.items()}
        return mask

    def settled(self, step: int) -> bool:
        return step >= self.at_

    @torch.no_grad()
    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        weights = {name: model.get_parameter(name) for name in mask}
        for name, weight in weights.items():
            gradient = (weight.grad * mask[name]).reshape(1, -1)
            self.seen_[name] = torch.cat([self.seen_[name], gradient])[-self.options.gradients :]
        if step != self.at_:
            return mask
        inverses = {name: inverse_fisher(seen, self.options.dampening) for name, seen in self.seen_.items()}
        scores = {n: (w.flatten().square() / (2 * inverses[n].diagonal())).reshape(w.shape) for n, w in weights.items()}
        found = mask_by_score(scores, mask, self.sparsity, "global")
        for name, weight in weights.items():
            gone = (mask[name] & ~found[name]).flatten()
            share = (weight.flatten() / inverses[name].diagonal())[gone]
            weight.sub_((inverses[name][:, gone] @ share).reshape(weight.shape))
        found.apply_(model)
        return found

    def state(self) -> dict[str, Tensor]:
        return self.seen_

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.seen_ = dict(state)


def inverse_fisher(gradients: Tensor, dampening: float) -> Tensor:
    """Of dampening + mean of g g^T, by the recursion of Woodbury. gradients: (N, weights)."""
    count, size = gradients.shape
    inverse = torch.eye(size) / dampening
    for gradient in gradients:
        product = inverse @ gradient
        inverse = inverse - torch.outer(product, product) / (count + gradient @ product)
    return inverse


def test_recursion_is_the_inverse() -> None:
    gradients = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    direct = torch.linalg.inv(0.1 * torch.eye(7) + gradients.T @ gradients / 5)
    assert torch.allclose(inverse_fisher(gradients, 0.1), direct, atol=1e-4)


def test_one_update_by_hand() -> None:
    """One gradient (1, 1), dampening 1: F = ((2, 1), (1, 2)), F^-1 = ((2, -1), (-1, 2)) / 3. Of w = (3, 1) the scores
    are 6.75 and 0.75, so the second goes, and the first becomes 3 + 1 * (1/3) / (2/3) = 3.5."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 1.0]])
    layer.weight.grad = torch.tensor([[1.0, 1.0]])
    pruner = WoodFisher(0.5, WoodFisherOptions(gradients=1, dampening=1.0))
    mask = pruner.start(layer, Mask.ones({"weight": layer.weight}), Plan(1, 1))
    found = pruner.update(layer, mask, 0, BATCH)
    assert found["weight"].tolist() == [[True, False]]
    assert torch.allclose(layer.weight.data, torch.tensor([[3.5, 0.0]]))


def test_the_order_of_the_scores_is_not_that_of_the_magnitudes() -> None:
    """A gradient (4, 0) makes the first weight dear: though smaller, it stays."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0]])
    layer.weight.grad = torch.tensor([[4.0, 0.0]])
    pruner = WoodFisher(0.5, WoodFisherOptions(gradients=1, dampening=1.0))
    mask = pruner.start(layer, Mask.ones({"weight": layer.weight}), Plan(1, 1))
    assert pruner.update(layer, mask, 0, BATCH)["weight"].tolist() == [[True, False]]


def test_in_training_kept_weights_move_and_the_mask_holds() -> None:
    model, data = toy_network(), toy_data()
    moved: list[int] = []

    class Watched(WoodFisher):
        def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
            before = {n: model.get_parameter(n).detach().clone() for n in mask}
            found = super().update(model, mask, step, batch)
            moved.append(sum(int((model.get_parameter(n) != before[n])[found[n]].sum()) for n in found))
            return found

    fit = Fit(model, Watched(0.7), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    sparsities: list[float] = []
    fit.progress = lambda *_: sparsities.append(fit.mask.sparsity)
    fitted = fit.run()
    assert [i for i, count in enumerate(moved) if count] == [8] and moved[8] > fitted.mask.kept / 2
    assert sparsities[7] == 0 and abs(sparsities[8] - 0.7) < 1 / fitted.mask.total and fitted.mask.holds(model)


def test_contract(contract: Callable[..., None]) -> None:
    contract(WoodFisher)
