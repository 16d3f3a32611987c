"""LTH-T (Chen et al. 2021): tickets of pre-trained networks, which are not trained further."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.allocation import mask_by_score
from budwood.prune.lth_t import PretrainedLTH, PretrainedOptions
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit

LAYER = "3.weight"
"""The one convolution of the toy network that is neither its first nor its classifier; 576 weights."""


def pruner_of(sparsity: float = 0.7, **options: Any) -> PretrainedLTH:
    return PretrainedLTH(sparsity, PretrainedOptions(**{"share": 0.3} | options))


def fit_of(pruner: PretrainedLTH, **fit: Any) -> Fit:
    model, data = toy_network(), toy_data()
    return Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE, **fit)


def test_rounds_of_the_paper() -> None:
    """A round is a training and a pruning; where the weights come trained, the first has no training."""
    for rounds in range(1, 19):
        assert PretrainedLTH(1 - 0.8**rounds).cycles().count == rounds
        wanted = max(1, rounds - 1)
        assert PretrainedLTH(1 - 0.8**rounds, PretrainedOptions(trained=True)).cycles().count == wanted
    settings = PretrainedLTH.papers["imagenet"]
    pruner = PretrainedLTH(settings.sparsity, PretrainedOptions(**settings.options))
    assert settings.recipe.epochs == 10 * pruner.cycles().count, "ten epochs each"


def test_the_ticket_is_the_mask_times_the_pretrained_weights() -> None:
    """All of the state but batch norm's statistics; the first convolution and the classifier stay dense."""
    pruner = pruner_of()
    fit = fit_of(pruner)
    fitted = fit.run()
    first = toy_network().state_dict()
    counts = fitted.mask.counts()
    assert counts[LAYER] == 576 - round(0.7 * 576) and counts["0.weight"] == 216 and counts["8.weight"] == 160
    for name, value in fit.model.state_dict().items():
        if "running" in name:
            assert not torch.equal(value, first[name]), "the ticket has statistics of its own"
        elif "num_batches" not in name:
            kept = fitted.mask.get(name)
            assert torch.equal(value, first[name] if kept is None else first[name] * kept), name


def test_a_classifier_made_anew_stays_trained() -> None:
    """It is not in the mask, and what it was before means nothing."""
    model, data = toy_network(), toy_data()
    mask = Mask.ones(prunable(model))
    fit = Fit(model, pruner_of(), mask, data, data, RECIPE)
    fit.run()
    assert not torch.equal(model.get_parameter("8.weight"), toy_network().get_parameter("8.weight"))
    assert torch.equal(model.get_parameter("0.weight"), toy_network().get_parameter("0.weight"))


def test_each_round_prunes_by_the_weights_it_trained() -> None:
    """Four rounds of one epoch: 0.3, 0.51, 0.657, 0.7; the last one at the end."""
    pruner = pruner_of()
    fit = fit_of(pruner)
    weights: list[Tensor] = []
    masks: list[Mask] = []

    def after(done: int, total: int, how: str) -> None:
        weights.append(fit.model.get_parameter(LAYER).detach().clone())
        masks.append(fit.mask)

    fit.progress = after
    fitted = fit.run()
    earlier = Mask.ones(prunable(toy_network(), head=True))
    for k, level in enumerate((0.3, 0.51, 0.657, 0.7)):
        trained = weights[4 * k + 3]  # after the last step of the k-th training
        later = masks[4 * k + 4] if k < 3 else fitted.mask
        assert later == mask_by_score({LAYER: trained.abs()}, earlier, level, "global"), f"round {k}"
        untrained = {LAYER: toy_network().get_parameter(LAYER).detach().abs()}
        assert later != mask_by_score(untrained, earlier, level, "global")
        earlier = later
    rewound = toy_network().get_parameter(LAYER).detach()
    for step in (4, 8, 12):
        assert torch.equal(weights[step], rewound * masks[step][LAYER]), "no gradient is applied to what was rewound"


def test_a_network_that_comes_trained_is_pruned_as_it_is_first() -> None:
    pruner = pruner_of(1 - 0.7**5, trained=True)
    fit = fit_of(pruner)
    masks: list[Mask] = []
    fit.progress = lambda *_: masks.append(fit.mask)
    fitted = fit.run()
    start = toy_network().get_parameter(LAYER).detach().abs()
    dense = Mask.ones(prunable(toy_network(), head=True))
    assert fit.cycles.count == 4 and masks[0] == mask_by_score({LAYER: start}, dense, 0.3, "global")
    left = [mask.restricted([LAYER]).kept for mask in (masks[3], masks[4], masks[8], masks[12], fitted.mask)]
    assert left == [576 - round((1 - 0.7**k) * 576) for k in range(1, 6)]


def test_before_the_end_it_answers_the_ticket_of_a_shorter_training() -> None:
    pruner = pruner_of(0.5, share=0.5)  # one training of four epochs
    fit = fit_of(pruner)
    fitted = fit.run()
    assert [row["sparsity"] > 0.3 for row in fitted.history] == [True] * 4
    assert [pruner.settled(step) for step in (0, 7, 14, 15)] == [False, False, False, True] and fitted.epoch == 3


def test_finish_leaves_the_training_alone() -> None:
    pruner = pruner_of()
    model = toy_network()
    mask = pruner.start(model, Mask.ones(prunable(model, head=True)), Plan(4, 4))
    pruner.update(model, mask, 0, (torch.zeros(1), torch.zeros(1)))
    with torch.no_grad():
        model.get_parameter(LAYER).mul_(1.5)
    deployed = copy.deepcopy(model)
    found = pruner.finish(deployed, mask, 0)
    assert torch.equal(model.get_parameter(LAYER), toy_network().get_parameter(LAYER) * 1.5)
    assert torch.equal(deployed.get_parameter(LAYER), toy_network().get_parameter(LAYER) * found[LAYER])


class _Stop(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"trained": True, "share": 0.22}])
def test_gone_on_with_in_every_round(tmp_path: Path, options: dict[str, Any]) -> None:
    def run(path: Path | None, stop: int | None) -> tuple[Mask, dict[str, Tensor]]:
        fit = fit_of(pruner_of(**options), state_path=path, save_seconds=-1.0)

        def after(done: int, total: int, how: str) -> None:
            if done == stop:
                raise _Stop

        fit.progress = after
        return fit.run().mask, fit.model.state_dict()

    mask, weights = run(None, None)
    for stop in (2, 5, 7, 9, 11, 13, 15):
        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(_Stop):
            run(path, stop)
        found, again = run(path, None)
        assert found == mask and all(torch.equal(w, again[n]) for n, w in weights.items()), f"after {stop} steps"


def test_edges() -> None:
    model = toy_network()
    with pytest.raises(UserError, match="one round prunes trained weights as they are"):
        pruner_of(0.2, share=0.2, trained=True).check(model, Mask.ones(prunable(model, head=True)), 4)
    dense = Mask.ones(prunable(model, head=True))
    with pytest.raises(UserError, match="already has"):
        half = Mask({n: torch.rand(k.shape) < 0.5 for n, k in dense.items()})
        pruner_of(0.1).start(model, half, Plan(1, 4))
    pruner = pruner_of(0.0)
    assert pruner.cycles().count == 1
    fit = fit_of(pruner)
    assert fit.run().mask.sparsity == 0
    pruner = pruner_of(0.5, keep_dense=())
    assert pruner.layers(model, dense) == list(dense)
