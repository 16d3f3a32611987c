"""Top-KAST (Jayakumar et al. 2020): forward with the largest weights A, gradients for the larger set B around it."""

import copy
import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.mask import Mask
from budwood.core.pruner import Options, Plan, Pruner, Tags
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.prune.allocation import mask_by_score
from budwood.prune.score import magnitude
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit


class TopKASTOptions(Options):
    backward: float = 0.4
    """Sparsity of B."""
    every: int = 2
    """Steps between two choices of A."""


class TopKAST(Pruner):
    """B is the mask in force; the exploration penalty is left out."""

    tags = Tags(family="re-growth", gradual=True)
    Options = TopKASTOptions

    def _forward_mask(self, model: nn.Module, mask: Mask) -> Mask:
        return mask_by_score(magnitude(model, mask), mask, self.sparsity, "global")

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.forward_ = self._forward_mask(model, mask)
        return mask_by_score(magnitude(model, mask), mask, max(self.options.backward, mask.sparsity), "global")

    def forward_weights(self, weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
        return {n: w + (w * self.forward_[n] - w).detach() for n, w in weights.items()}

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        if step % self.options.every == 0:
            self.forward_ = self._forward_mask(model, mask)
        return mask

    def finish(self, model: nn.Module, mask: Mask) -> Mask:
        found = self._forward_mask(model, mask)
        found.apply_(model)
        return found

    def state(self) -> dict[str, Tensor]:
        return dict(self.forward_)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.forward_ = Mask(state)


def test_one_pass_by_hand() -> None:
    """Of the weights 3, 1, -2 the first is forward; the gradient 1, 2, 3 reaches all."""
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 1.0, -2.0]])
    pruner = TopKAST(2 / 3, TopKASTOptions(backward=1 / 3))
    stored = pruner.start(layer, Mask.ones({"weight": layer.weight}), Plan(1, 1))
    assert stored["weight"].tolist() == [[True, False, True]]
    weight = pruner.forward_weights({"weight": layer.weight}, stored)["weight"]
    assert weight.tolist() == [[3, 0, 0]]
    (weight * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    stored.apply_to_gradients_(layer)
    assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[1, 0, 3]]


def test_forward_through_a_and_learning_in_b() -> None:
    model, data = toy_network(), toy_data()
    model[7].p = 0.0  # without dropout the loss can be known beforehand
    weights = prunable(model, head=True)
    pruner = TopKAST(0.7)
    recipe = Recipe(epochs=1, batch_size=32, lr=0.1, momentum=0.0, weight_decay=0.0, select="last")
    fit = Fit(model, pruner, Mask.ones(weights), data, data, recipe)
    before, losses, after = copy.deepcopy(model), [], {}

    def keep(done: int, total: int, loss: float) -> None:
        losses.append(loss)
        after.update({n: w.detach().clone() for n, w in weights.items()})

    fit.progress = keep
    forward = mask_by_score(magnitude(before, weights), Mask.ones(weights), 0.7, "global")
    stored = mask_by_score(magnitude(before, weights), Mask.ones(weights), 0.4, "global")
    fit.run()

    forward.apply_(before)
    images, targets = data.tensors
    with torch.no_grad():
        expected = float(F.cross_entropy(before.train()(images), targets))
    assert abs(losses[0] - expected) < 1e-5, "A alone is forward"
    explored = 0
    fresh = toy_network()
    for name, weight in after.items():
        old = fresh.get_parameter(name).detach()
        between = stored[name] & ~forward[name]
        explored += int((weight[between] != old[between]).sum())
        assert not weight[~stored[name]].any(), "outside of B all is zero"
    assert explored > 20, "weights of B that were not forward have learned"


def test_a_moves_inside_b_and_is_the_end() -> None:
    model, data = toy_network(), toy_data()
    pruner = TopKAST(0.7)
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    seen: list[Mask] = []
    fit.progress = lambda *_: seen.append(pruner.forward_)
    fitted = fit.run()
    assert len({mask.digest() for mask in seen}) > 2, "A was chosen anew"
    assert any(later.revived_since(earlier) for earlier, later in itertools.pairwise(seen))
    assert all(not mask.revived_since(fit.mask) for mask in [*seen, fitted.mask]), "and lies in B"
    assert fit.mask.total - fit.mask.kept == round(0.4 * fit.mask.total)
    assert fitted.mask.total - fitted.mask.kept == round(0.7 * fit.mask.total) and fitted.mask.holds(model)


def test_contract(contract: Callable[..., None]) -> None:
    contract(TopKAST)
