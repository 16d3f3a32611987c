"""CrAM+ (Peste et al. 2023): the gradient at w, plus that at C(w + rho g) where C keeps the largest of all weights."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from budwood.core.mask import Mask
from budwood.core.pruner import Options, Plan, Pruner, Tags
from budwood.models.network import prunable
from budwood.prune.allocation import mask_by_score
from budwood.prune.score import magnitude
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit


class CrAMOptions(Options):
    rho: float = 0.05
    levels: tuple[float, ...] = (0.5, 0.7, 0.9)


class CrAM(Pruner):
    tags = Tags(family="regularisation", gradual=True)
    Options = CrAMOptions

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        mask_by_score(magnitude(model, mask), mask, self.sparsity, "global")  # is refused now rather than at the end
        self.passes_ = 0
        return mask

    def backward(self, model: nn.Module, mask: Mask, closure: Callable[[], Tensor]) -> Tensor:
        loss = closure()
        weights = {name: model.get_parameter(name) for name in mask}
        stored = {n: t.clone() for n, t in model.state_dict().items()}
        clean = {name: _gradient(w).clone() for name, w in weights.items()}
        with torch.no_grad():
            for name, weight in weights.items():
                weight.add_(clean[name], alpha=self.options.rho)
                _gradient(weight).zero_()
        random = torch.Generator().manual_seed(self.passes_)
        self.passes_ += 1
        level = self.options.levels[int(torch.randint(len(self.options.levels), (), generator=random))]
        compressed = mask_by_score(magnitude(model, mask), mask, max(level, mask.sparsity), "global")
        compressed.apply_(model)
        closure()
        compressed.apply_to_gradients_(model)
        model.load_state_dict(stored)  # batch norm statistics too: they are those of the dense pass
        for name, weight in weights.items():
            _gradient(weight).add_(clean[name])
        return loss

    def finish(self, model: nn.Module, mask: Mask) -> Mask:
        found = mask_by_score(magnitude(model, mask), mask, self.sparsity, "global")
        found.apply_(model)
        return found

    def state(self) -> dict[str, Tensor]:
        return {"passes": torch.tensor(self.passes_)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.passes_ = int(state["passes"])


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_one_step_by_hand() -> None:
    """Loss |w - (0, 1)|^2 / 2 at w = (1, -0.5): gradient (1, -1.5). With rho 0.1, w + rho g = (1.1, -0.65), of which
    half is (1.1, 0), with the gradient (1.1, -1), masked (1.1, 0). In all (2.1, -1.5)."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -0.5]])
    mask = Mask.ones({"weight": layer.weight})
    seen: list[list[float]] = []

    def closure() -> Tensor:
        seen.append(layer.weight.detach().flatten().tolist())
        loss = (layer.weight - torch.tensor([[0.0, 1.0]])).square().sum() / 2
        loss.backward()
        return loss.detach()

    pruner = CrAM(0.5, CrAMOptions(rho=0.1, levels=(0.5,)))
    pruner.start(layer, mask, Plan(1, 1))
    assert float(pruner.backward(layer, mask, closure)) == 1.625
    assert torch.allclose(torch.tensor(seen), torch.tensor([[1.0, -0.5], [1.1, 0.0]]))
    assert torch.allclose(_gradient(layer.weight), torch.tensor([[2.1, -1.5]]))  # type: ignore[arg-type]
    assert layer.weight.tolist() == [[1.0, -0.5]]


def test_two_passes_a_step_and_statistics_of_the_dense_one() -> None:
    model, data, forwards = toy_network(), toy_data(), []
    model.register_forward_pre_hook(lambda module, _: forwards.append(module.training))
    fit = Fit(model, CrAM(0.7), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    zeros: list[int] = []
    fit.progress = lambda *_: zeros.append(
        fit.mask.total - sum(int(model.get_parameter(n).count_nonzero()) for n in fit.mask)
    )
    fitted = fit.run()
    assert sum(forwards) == 2 * 16
    assert int(model.get_buffer("1.num_batches_tracked")) == 16
    assert zeros == [0] * 16, "dense while it trains"
    assert fitted.mask.total - fitted.mask.kept == round(0.7 * fitted.mask.total) and fitted.mask.holds(model)


def test_without_the_second_pass_it_is_another_training() -> None:
    ends = []
    for pruner in (CrAM(0.7), Pruner()):
        model, data = toy_network(), toy_data()
        Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE).run()
        ends.append(model.get_parameter("1.weight").detach())
    assert not torch.allclose(*ends)


def test_contract(contract: Callable[..., None]) -> None:
    contract(CrAM)
