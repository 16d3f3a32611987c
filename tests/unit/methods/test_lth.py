"""Lottery tickets (Frankle & Carbin 2019): rounds of training, pruning and rewinding in one run."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Cycles, Plan, Pruner
from budwood.core.spec import Recipe
from budwood.models.network import prunable
from budwood.models.small import SmallResNet
from budwood.prune.allocation import mask_by_score
from budwood.prune.lth import LTH, TicketOptions, levels, reinitialise_, shuffled
from budwood.prune.score import magnitude
from budwood.testing.pruners import RECIPE, sparse_mask, toy_data, toy_network
from budwood.train.fit import Fit
from budwood.train.optim import learning_rate

TABLE = {7: 79.0, 8: 83.2, 10: 89.3, 11: 91.4, 13: 94.5, 14: 95.6}
"""Rounds of a fifth each -> sparsity in percent (Chen et al. 2021)."""


def test_levels_are_the_papers() -> None:
    for rounds in range(1, 19):
        found = levels(1 - 0.8**rounds, 0.2)
        assert found == pytest.approx([1 - 0.8**k for k in range(1, rounds + 1)], abs=1e-12)
    for rounds, percent in TABLE.items():
        found = levels(percent / 100, 0.2)
        assert len(found) == rounds and found[-1] == percent / 100, "also from the rounded figure"
        assert round(100 * (1 - 0.8**rounds), 1) == percent


def test_the_last_round_is_cut_to_the_sparsity_asked_for() -> None:
    assert levels(0.9, 0.2) == [*[pytest.approx(1 - 0.8**k) for k in range(1, 11)], 0.9]
    assert levels(0.5, 0.5) == [0.5] and levels(0.6, 0.5) == [0.5, 0.6] and levels(0.01, 0.2) == [0.01]
    assert levels(0.0, 0.2) == []
    assert LTH(0.9).cycles() == Cycles(12), "eleven rounds, and the training of the ticket"


class Watched(LTH):
    """Notes the network before and after each pass and update, and what the loop asks."""

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        self.before: list[dict[str, Tensor]] = []
        self.trained: dict[int, dict[str, Tensor]] = {}
        self.tickets: dict[int, dict[str, Tensor]] = {}
        self.masks: list[Mask] = []
        return super().start(model, mask, plan)

    def backward(self, model: nn.Module, mask: Mask, step: int, closure: Any) -> Tensor:
        self.before.append(copy.deepcopy(model.state_dict()))
        return super().backward(model, mask, step, closure)

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        trained = copy.deepcopy(model.state_dict())
        found = super().update(model, mask, step, batch)
        if found is not mask:
            self.trained[step], self.tickets[step] = trained, copy.deepcopy(model.state_dict())
        self.masks.append(found)
        return found


def trained(sparsity: float = 0.7, pruner: Pruner | None = None, **options: Any) -> tuple[Any, Fit, Any]:
    """Three rounds and a last training, of one epoch (four steps) each."""
    model, data = toy_network(), toy_data()
    recipe = RECIPE.model_copy(update={"epochs": options.pop("epochs", RECIPE.epochs)})
    pruner = Watched(sparsity, TicketOptions(**{"share": 0.34} | options)) if pruner is None else pruner
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe)
    return pruner, fit, fit.run()


def test_each_round_prunes_by_the_trained_weights_and_rewinds_everything() -> None:
    pruner, fit, fitted = trained()
    first = toy_network().state_dict()
    assert list(pruner.tickets) == [4, 8, 12]
    masks = [Mask.ones(prunable(toy_network(), head=True)), *(pruner.masks[step] for step in (4, 8, 12))]
    for k, (step, earlier, later) in enumerate(zip((4, 8, 12), masks, masks[1:], strict=False)):
        wanted = (0.34, 1 - 0.66**2, 0.7)[k]
        assert later.total - later.kept == round(wanted * later.total)
        sizes = {name: pruner.before[step][name].abs() for name in earlier}
        assert later == mask_by_score(sizes, earlier, wanted, "global"), "the weights that the training left"
        untrained = {name: first[name].abs() for name in earlier}
        assert later != mask_by_score(untrained, earlier, wanted, "global"), "and not those of the start"
        for name, value in pruner.tickets[step].items():
            kept = later.get(name)
            assert torch.equal(value, first[name] if kept is None else first[name] * kept), (
                f"{name}: statistics, biases and scales go back as well"
            )
        assert not torch.equal(pruner.trained[step]["1.running_mean"], first["1.running_mean"])
    assert fitted.mask == masks[-1] and fitted.mask.holds(fit.model)


def test_no_gradient_at_a_rewinding_and_momentum_starts_over() -> None:
    pruner, fit, _ = trained()
    for step in range(16):
        between = step in (4, 8, 12)
        assert pruner.applies_gradient(step) == (not between) and pruner.resets_momentum(step) == between
    for step in (4, 8, 12):
        for name, value in pruner.before[step + 1].items():
            assert torch.equal(value, pruner.tickets[step][name]), "the step that rewinds changes nothing more"
    momentum = fit.optimizer.state[fit.model.get_parameter("8.weight")]["momentum_buffer"]
    assert int((momentum == 0).sum()) >= int((~fit.mask["8.weight"]).sum())


def test_the_learning_rate_starts_over_with_each_training() -> None:
    _, fit, _ = trained()
    rates = [fit.learning_rate(step) for step in range(16)]
    assert fit.cycles.count == 4 and rates[:4] * 4 == rates and rates[0] > rates[3]


def test_after_a_late_rewinding_the_rest_of_the_schedule_follows() -> None:
    """Frankle et al. 2020: back to epoch 1 of 3, and on from there, three times: 3 + 2 + 2 epochs of 4 steps."""
    recipe = Recipe(epochs=7, batch_size=8, lr=0.1, warmup_epochs=1)
    pruner = LTH(0.75, TicketOptions(share=0.5, rewind_epoch=1))
    model, data = toy_network(), toy_data()
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe)
    fit.run()
    assert fit.plan.steps_per_epoch == 4
    one = [learning_rate(recipe.model_copy(update={"epochs": 3}), step, 4) for step in range(12)]
    assert [fit.learning_rate(step) for step in range(28)] == one + one[4:] + one[4:]
    assert [step for step in range(28) if pruner.resets_momentum(step)] == [12, 20]
    assert [step for step in range(28) if pruner.settled(step)] == list(range(20, 28))


@given(st.integers(1, 9), st.integers(0, 5), st.integers(1, 60))
def test_the_next_fitting_number_of_epochs(count: int, skip: int, epochs: int) -> None:
    """Of several trainings, all but the first so much shorter: by trying all lengths of the first."""
    lengths = range(1 if count == 1 else skip + 1, 80)
    sums = [length + (count - 1) * (length - skip) for length in lengths]
    cycles = Cycles(count, skip)
    assert cycles.fitting(epochs) == min(total for total in sums if total >= epochs)
    assert cycles.length(epochs) == (lengths[sums.index(epochs)] if epochs in sums else None)
    length = cycles.length(cycles.fitting(epochs))
    assert length is not None
    later = list(range(3 * skip, 3 * length))
    schedule = list(range(3 * length)) + later * (count - 1)
    assert [cycles.place(step, length, 3)[1] for step in range(len(schedule))] == schedule


def test_epochs_must_fit_the_late_rewinding() -> None:
    pruner, mask = LTH(0.75, TicketOptions(share=0.5, rewind_epoch=2)), Mask.ones(prunable(toy_network(), head=True))
    for epochs, fitting in ((4, 5), (5, None), (6, 8), (8, None)):  # 3 + 1 + 1, 4 + 2 + 2
        if fitting is None:
            pruner.check(toy_network(), mask, epochs)
        else:
            with pytest.raises(
                UserError, match=f"3 trainings, all but the first 2 shorter; set --epochs to {fitting}$"
            ):
                pruner.check(toy_network(), mask, epochs)


def test_epochs_must_divide() -> None:
    model, data = toy_network(), toy_data()
    fit = Fit(model, LTH(0.9), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    with pytest.raises(UserError, match=r"12 trainings of equal length; set --epochs to 12$"):
        fit.run()


def test_late_rewinding_goes_back_to_the_weights_after_so_many_epochs() -> None:
    """Two trainings, of two epochs and of one: at step 8 all is as it was before step 4, without the statistics of its
    batch."""
    pruner, _, _ = trained(sparsity=0.5, share=0.5, rewind_epoch=1, epochs=3)
    assert list(pruner.tickets) == [8]
    found = pruner.masks[8]
    for name, value in pruner.tickets[8].items():
        then = pruner.before[4][name]
        assert torch.equal(value, then * found[name] if name in found else then)
    assert not torch.equal(pruner.before[4]["8.weight"], toy_network().state_dict()["8.weight"])


def test_random_mask_control() -> None:
    plain, _, ticket = trained()
    control, _, fitted = trained(control="random-mask")
    assert plain.masks[:12] == control.masks[:12], "the rounds before are the same"
    assert fitted.mask.counts() == ticket.mask.counts() and fitted.mask != ticket.mask
    first = toy_network().state_dict()
    for name in fitted.mask:
        assert torch.equal(control.tickets[12][name], first[name] * fitted.mask[name])


def test_random_places_are_among_those_that_were_given() -> None:
    given = sparse_mask(Mask.ones(prunable(toy_network(), head=True)))
    found = mask_by_score({n: torch.rand(k.shape) for n, k in given.items()}, given, 0.7, "global")
    moved, again, other = (shuffled(found, given, seed) for seed in (0, 0, 1))
    assert moved == again != other and moved.counts() == found.counts() and not moved.revived_since(given)


def test_random_weights_control() -> None:
    _, _, ticket = trained()
    control, _, fitted = trained(control="random-reinit")
    assert fitted.mask == ticket.mask, "the ticket's places"
    first = toy_network().state_dict()
    for name in fitted.mask:
        value, kept = control.tickets[12][name], fitted.mask[name]
        assert not value[~kept].any() and int((value == first[name])[kept].sum()) < 0.1 * int(kept.sum())
        assert set(value[kept].tolist()) <= set(first[name].flatten().tolist()), "its own, at other places"
    assert torch.equal(control.tickets[12]["1.running_mean"], torch.zeros(8))
    again, _, _ = trained(control="random-reinit")
    assert all(torch.equal(v, again.tickets[12][n]) for n, v in control.tickets[12].items()), "from the seed alone"


def test_random_weights_are_the_first_ones_in_another_order() -> None:
    """However a network begins, and whatever it has become: this one's values are no `reset_parameters`'."""
    model = SmallResNet(1, 10)
    new = {name: value.clone() for name, value in model.state_dict().items()}
    for value in model.state_dict().values():
        value.copy_(value + 1)
    reinitialise_(model, new, 0)
    matrices = 0
    for name, value in model.state_dict().items():
        if value.ndim > 1:
            matrices += 1
            assert torch.equal(value.flatten().sort().values, new[name].flatten().sort().values)
            assert float((value == new[name]).float().mean()) < 0.02
        else:
            assert torch.equal(value, new[name])
    assert matrices == 13


@pytest.mark.parametrize("rewind", [0, 1])
def test_random_weights_are_those_from_before_the_training(rewind: int) -> None:
    """Also where the ticket itself goes back to later ones."""
    model, data = toy_network(), toy_data()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    tickets: list[dict[str, Tensor]] = []

    class Seen(LTH):
        def ticket(self, model: nn.Module, mask: Mask, done: int) -> Mask:
            found = super().ticket(model, mask, done)
            tickets.append({name: value.clone() for name, value in model.state_dict().items()})
            return found

    pruner = Seen(0.5, TicketOptions(share=0.5, rewind_epoch=rewind, control="random-reinit"))
    recipe = RECIPE.model_copy(update={"epochs": 3 if rewind else 4})
    Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe).run()
    (ticket,) = tickets
    for name in prunable(model, head=True):
        assert set(ticket[name].flatten().tolist()) <= {0.0, *first[name].flatten().tolist()}


def test_reinitialising_leaves_the_global_random_numbers_alone() -> None:
    pruner = LTH(0.5, TicketOptions(share=0.5, control="random-reinit"))
    model = toy_network()
    mask = pruner.start(model, Mask.ones(prunable(model, head=True)), Plan(2, 4))
    before = torch.get_rng_state()
    pruner.update(model, mask, 4, (torch.zeros(1), torch.zeros(1)))
    assert torch.equal(before, torch.get_rng_state())


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rewind_epoch": 1, "share": 0.5},
        {"control": "random-reinit"},
        {"rewind_epoch": 1, "share": 0.5, "control": "random-reinit"},
    ],
)
def test_gone_on_with_in_every_round(tmp_path: Path, options: dict[str, Any]) -> None:
    """Stopped after each step in turn, the rest is the same to the last bit."""
    sparsity = 0.75 if "rewind_epoch" in options else 0.7

    def run(path: Path | None, stop: int | None) -> tuple[Mask, dict[str, Tensor]]:
        model, data = toy_network(), toy_data()
        pruner = LTH(sparsity, TicketOptions(**{"share": 0.34} | options))
        fit = Fit(
            model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE, state_path=path, save_seconds=-1.0
        )

        def after(done: int, total: int, how: str) -> None:
            if done == stop:
                raise _Stop

        fit.progress = after
        return fit.run().mask, model.state_dict()

    mask, weights = run(None, None)
    for stop in (3, 5, 6, 9, 10, 13, 15):
        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(_Stop):
            run(path, stop)
        found, again = run(path, None)
        assert found == mask and all(torch.equal(w, again[n]) for n, w in weights.items()), f"after {stop} steps"


def test_only_the_last_training_may_be_best_and_sparse_networks_go_on() -> None:
    pruner, _, _ = trained()
    assert [pruner.settled(step) for step in (0, 4, 11, 12, 15)] == [False, False, False, True, True]
    model, data = toy_network(), toy_data()
    sparse = sparse_mask(Mask.ones(prunable(model, head=True)))
    fit = Fit(model, LTH(0.7, TicketOptions(share=0.34)), sparse, data, data, RECIPE)
    masks: list[Mask] = []
    fit.progress = lambda *_: masks.append(fit.mask)
    fit.run()
    assert masks[5] == sparse, "a round whose sparsity is there already prunes nothing"
    assert all(not b.revived_since(a) for a, b in itertools.pairwise(masks))
    assert masks[-1].total - masks[-1].kept == round(0.7 * masks[-1].total)


def test_ticket_is_not_what_magnitude_finds_at_once() -> None:
    _, _, fitted = trained()
    model = toy_network()
    dense = Mask.ones(prunable(model, head=True))
    assert fitted.mask != mask_by_score(magnitude(model, dense), dense, 0.7, "global")


def test_places_at_random_are_single_weights() -> None:
    with pytest.raises(ValidationError, match="random-mask draws single weights, and 2:4 has none"):
        TicketOptions(control="random-mask", pattern="2:4")


def test_the_average_of_the_weights_begins_anew_with_each_training() -> None:
    model, data, same = toy_network(), toy_data(), {}
    pruner, recipe = LTH(0.7, TicketOptions(share=0.34)), RECIPE.model_copy(update={"ema": 0.5})
    fit = Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe)

    def look(done: int, total: int, how: str) -> None:
        assert fit.average is not None
        pairs = zip(fit.average.parameters(), model.parameters(), strict=True)
        same[done - 1] = all(torch.equal(a, b) for a, b in pairs)

    fit.progress = look
    fit.run()
    begins = [step for step in range(1, fit.plan.steps) if pruner.resets_momentum(step)]
    assert len(begins) == pruner.cycles().count - 1
    # The step that rewinds counts in the average, too: it begins as what the network was then.
    assert [step for step, equal in same.items() if equal] == begins
