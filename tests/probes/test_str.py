"""STR (Kusupati et al. 2020): the forward weight is sign(w) relu(|w| - sigmoid(s)), one learned s a layer."""

import copy
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from budwood.core.mask import Mask
from budwood.core.pruner import Options, Plan, Pruner, Tags
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.testing.pruners import toy_data, toy_network
from budwood.train.fit import Fit


class STROptions(Options):
    initial: float = -3.0


class STR(Pruner):
    tags = Tags(
        family="regularisation", gradual=True, edits_weights=True, learns_thresholds=True, density="indirect"
    )  # fmt: skip
    Options = STROptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.logits_ = {name: nn.Parameter(torch.tensor(self.options.initial)) for name in mask}
        return mask

    def parameters(self) -> list[nn.Parameter]:
        return list(self.logits_.values())

    def forward_weights(self, weights: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
        return {n: w.sign() * (w.abs() - self.logits_[n].sigmoid()).relu() for n, w in weights.items()}

    @torch.no_grad()
    def finish(self, model: nn.Module, mask: Mask) -> Mask:
        weights = {name: model.get_parameter(name) for name in mask}
        for name, weight in self.forward_weights(weights, mask).items():
            weights[name].copy_(weight)
        return Mask.from_zeros(weights)


class Forgetful(STR):
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The thresholds of a run that is gone on with are those of its start again."""


def test_one_update_by_hand() -> None:
    """Threshold 0.2, weights 0.5, -0.1, -0.4: forward 0.3, 0, -0.2. With the loss 1, 2, 3 times them, the gradient is
    1, 0, 3 for w, and for s -0.2 * 0.8 (1 * 1 + 3 * -1) = 0.32."""
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[0.5, -0.1, -0.4]])
    mask = Mask.ones({"weight": layer.weight})
    pruner = STR(0.5, STROptions(initial=math.log(0.2 / 0.8)))
    pruner.start(layer, mask, Plan(1, 1))
    weight = pruner.forward_weights({"weight": layer.weight}, mask)["weight"]
    assert weight.tolist() == [pytest.approx([0.3, 0, -0.2])]
    (weight * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    (logit,) = pruner.parameters()
    assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[1, 0, 3]]
    assert float(logit.grad) == pytest.approx(0.32)  # type: ignore[arg-type]
    torch.optim.SGD([*layer.parameters(), logit], lr=0.1).step()
    assert float(logit.detach()) == pytest.approx(math.log(0.25) - 0.032)
    assert pruner.finish(layer, mask)["weight"].tolist() == [[True, False, True]]


def test_sparsity_grows_and_the_last_network_is_the_thresholded_one() -> None:
    model, data = toy_network(), toy_data()
    pruner = STR()
    recipe = Recipe(epochs=6, batch_size=8, lr=0.1, weight_decay=0.05, select="last")
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe)
    stored: list[nn.Module] = []
    fit.progress = lambda done, total, loss: stored.append(copy.deepcopy(fit.model)) if done == total else None
    fitted = fit.run()

    sparsities = [row["sparsity"] for row in fitted.history]
    assert sparsities[-1] > sparsities[0] + 0.02, "weight decay drives s, and with it the sparsity, up"
    assert len({round(float(p.detach()), 6) for p in pruner.parameters()}) == 3, "each layer has learned its own"
    raw = {name: stored[0].get_parameter(name) for name in fitted.mask}
    assert Mask.from_zeros(raw).sparsity == 0, "stored weights stay dense while it trains"
    images = data.tensors[0]
    with torch.no_grad():
        forward = pruner.forward_weights(raw, fitted.mask)
        wanted = torch.func.functional_call(stored[0].eval(), forward, (images,))
        assert torch.equal(model.eval()(images), wanted), "a plain network that answers as the thresholded one did"
    assert fitted.mask == Mask.from_zeros({n: model.get_parameter(n) for n in fitted.mask})


def test_contract_with_thresholds_restored(contract: Callable[..., None]) -> None:
    contract(STR)
    with pytest.raises(AssertionError, match="gone on with"):
        contract(Forgetful)
