"""The training loop, step by step against plain PyTorch, and every way in which a pruned weight could come back."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan, Pruner
from budwood.core.registry import methods
from budwood.core.spec import Recipe
from budwood.prune.gmp import GMP
from budwood.prune.scored import GradualOptions
from budwood.train.data import batch_plan
from budwood.train.fit import ENGINE, FEW, LOOKS, NEW, Fit, Fitted
from budwood.train.optim import learning_rate
from budwood.train.state import load_state, save_state

BATCH, IMAGES, EPOCHS = 10, 40, 3
STEPS = EPOCHS * IMAGES // BATCH


class Recorded(Dataset[Any]):
    """Random images with labels that depend on them; `seen` is the order in which they were asked for."""

    def __init__(self, count: int = IMAGES) -> None:
        generator = torch.Generator().manual_seed(count)
        self.images = torch.randn(count, 3, 8, 8, generator=generator)
        self.targets = self.images.mean((2, 3)).argmax(1)
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.seen.append(index)
        return self.images[index], self.targets[index]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


def some_kept(model: nn.Module, share: float, seed: int) -> Mask:
    """A random share of both convolutions' weights."""
    generator = torch.Generator().manual_seed(seed)
    convolutions = {n: p for n, p in model.named_parameters() if p.ndim == 4}
    return Mask({n: torch.rand(p.shape, generator=generator) < share for n, p in convolutions.items()})


class Scheduled(Pruner):
    """The masks of a timetable, each in force after its step."""

    def __init__(self, timetable: dict[int, Mask]) -> None:
        super().__init__()
        self.timetable = timetable

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        return self.timetable.get(step, mask)


def timetable(model: nn.Module) -> dict[int, Mask]:
    """Half of the weights go at step 2, and others in their place at step 6: some come back."""
    return {2: some_kept(model, 0.5, 1), 6: some_kept(model, 0.3, 2)}


def settings(**changes: Any) -> Recipe:
    facts = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.1, "select": "last"}
    return Recipe(**(facts | changes))


def fit(model: nn.Module, recipe: Recipe, pruner: Pruner, mask: Mask, **extra: Any) -> Fit:
    return Fit(model, pruner, mask, extra.pop("train", Recorded()), extra.pop("val", Recorded(12)), recipe, **extra)


def plain_pytorch(
    recipe: Recipe,
    order: list[int],
    masks: dict[int, Mask],
    *,
    teacher: nn.Module | None = None,
    zero_gradients: bool = True,
    zero_weights: bool = True,
    zero_average: bool = True,
) -> tuple[nn.Module, Mask]:
    """SGD with masks as one would write it by hand: the network that is deployed, and the mask in force at the end.

    Each of the three safeguards can be left out.
    """
    model, data = network().to(memory_format=torch.channels_last), Recorded()
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim == 4}
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
    if average is not None:
        average.update_parameters(model)  # the first call copies
    for step in range(STEPS):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        images = data.images[chosen].to(memory_format=torch.channels_last)
        targets = data.targets[chosen]
        optimizer.zero_grad()
        for x, y in zip(images.chunk(recipe.accumulate), targets.chunk(recipe.accumulate), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.amp):
                output = model(x)
            logs = output.float().log_softmax(1)
            wanted = nn.functional.one_hot(y, 3) * (1 - recipe.label_smoothing) + recipe.label_smoothing / 3
            if teacher is not None:
                with torch.no_grad():
                    wanted = (1 - recipe.distill) * wanted + recipe.distill * teacher(x).softmax(1)
            (-(wanted * logs).sum(1).sum() / len(targets)).backward()
        if step in masks:
            for name, p in model.named_parameters():
                if name in mask:
                    back = masks[step][name] & ~mask[name]
                    if "momentum_buffer" in optimizer.state[p]:
                        optimizer.state[p]["momentum_buffer"][back] = 0
            mask = dict(masks[step])
        named = [(p, mask[name]) for name, p in model.named_parameters() if name in mask]
        with torch.no_grad():
            for p, kept in named:
                p.grad *= kept if zero_gradients else 1
            optimizer.step()
            for p, kept in named:
                p *= kept if zero_weights else 1
            if average is not None:
                average.update_parameters(model)
                for name, p in average.module.named_parameters():
                    p *= mask[name] if zero_average and name in mask else 1
        scheduler.step()
    return (average.module if average is not None else model), Mask(mask)


DANGERS: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    # what is switched on, and the safeguard that is missing where it brings a weight back
    "momentum": ({"momentum": 0.9, "weight_decay": 0.0}, {"zero_weights": False}),
    "no momentum": ({"momentum": 0.0, "weight_decay": 0.0}, {"zero_gradients": False, "zero_weights": False}),
    "weight decay": ({"momentum": 0.9, "weight_decay": 0.1}, {"zero_weights": False}),
    "average": ({"ema": 0.8}, {"zero_average": False}),
    "bfloat16": ({"amp": True}, {"zero_gradients": False, "zero_weights": False}),
    "distillation": ({"distill": 0.5}, {"zero_gradients": False, "zero_weights": False}),
    "accumulation": ({"accumulate": 4}, {"zero_gradients": False, "zero_weights": False}),
    "label smoothing": ({"label_smoothing": 0.2}, {"zero_gradients": False, "zero_weights": False}),
}


def teacher_of(recipe: Recipe) -> nn.Module | None:
    return network(9).eval() if recipe.distill else None


@pytest.mark.parametrize("danger", DANGERS)
def test_the_mask_holds_after_every_step_and_all_is_as_in_plain_pytorch(danger: str) -> None:
    recipe, model, data = settings(**DANGERS[danger][0]), network(), Recorded()
    masks = timetable(model)
    held: list[bool] = []

    def watch(done: int, total: int, how: str) -> None:
        average = training.average.state_dict() if training.average is not None else {}
        gradients = {name: p.grad for name, p in model.named_parameters() if name in training.mask}
        held.append(all(training.mask.holds(what) for what in (model, gradients, average or model)))

    ones = some_kept(model, 1.1, 0)
    training = fit(model, recipe, Scheduled(masks), ones, train=data, teacher=teacher_of(recipe), progress=watch)
    fitted = training.run()
    assert held == [True] * STEPS
    assert fitted.mask == masks[6] and masks[6].holds(model)
    assert sorted(data.seen) == sorted(list(range(IMAGES)) * EPOCHS)
    expected, mask = plain_pytorch(recipe, data.seen, masks, teacher=teacher_of(recipe))
    assert mask == fitted.mask
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("danger", DANGERS)
def test_without_one_safeguard_plain_pytorch_brings_a_weight_back(danger: str) -> None:
    changes, missing = DANGERS[danger]
    recipe = settings(**changes)
    order = list(range(IMAGES)) * EPOCHS
    unsafe, mask = plain_pytorch(recipe, order, timetable(network()), teacher=teacher_of(recipe), **missing)
    assert mask.violations(unsafe)
    safe, mask = plain_pytorch(recipe, order, timetable(network()), teacher=teacher_of(recipe))
    assert mask.holds(safe)


def test_a_mask_given_at_the_start_is_held() -> None:
    model = network()
    mask = some_kept(model, 0.4, 3)
    fitted = fit(model, settings(ema=0.5, accumulate=3), Pruner(), mask).run()
    assert fitted.mask == mask and mask.holds(model)
    assert all(row["sparsity"] == mask.sparsity for row in fitted.history)


def with_dropout(seed: int = 0) -> nn.Sequential:
    return network(seed).insert(4, nn.Dropout(0.3))


class Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, how: str) -> None:
        if done == step:
            raise Interrupted

    return progress


@pytest.mark.parametrize("stopped", [2, 4, 5, 8, 9, STEPS])
def test_a_run_that_is_gone_on_with_is_the_same_and_holds_its_mask(tmp_path: Path, stopped: int) -> None:
    """4 steps an epoch; the file is of the step before: in an epoch, at the end of one, and between the pruning and
    the revival."""
    recipe = settings(ema=0.7, weight_decay=0.01, select="best")
    whole_model = with_dropout()
    ones = some_kept(whole_model, 1.1, 0)
    whole = fit(whole_model, recipe, Scheduled(timetable(whole_model)), ones).run()
    how: dict[str, Any] = {"state_path": tmp_path / "state", "save_seconds": -1.0}
    masks = timetable(network())
    with pytest.raises(Interrupted):
        fit(with_dropout(), recipe, Scheduled(masks), ones, progress=interrupt_at(stopped), **how).run()
    model, held = with_dropout(5), []  # other weights: what counts is the file
    again = fit(model, recipe, Scheduled(masks), ones, progress=lambda *_: held.append(again.mask.holds(model)), **how)
    fitted = again.run()
    assert held == [True] * (STEPS - stopped + 1)
    assert fitted == whole
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole_model.state_dict()[name]), name


def test_the_saved_momentum_would_bring_a_weight_back(tmp_path: Path) -> None:
    """What makes the resumed case dangerous: the momentum of a weight pruned at step 2 is in the file of step 3."""
    model = network()
    masks, how = timetable(model), {"state_path": tmp_path / "state", "save_seconds": -1.0}
    ones = some_kept(model, 1.1, 0)
    stopped = fit(model, settings(), Scheduled(masks), ones, progress=interrupt_at(4), **how)
    with pytest.raises(Interrupted):
        stopped.run()
    again = fit(network(), settings(), Scheduled(masks), ones, progress=interrupt_at(4), **how)
    with pytest.raises(Interrupted):
        again.run()
    assert again.mask == masks[2] and again.mask.holds(again.model)
    again.optimizer.step()  # gradients of pruned weights are zero, and yet
    assert again.mask.violations(again.model)


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"no state at all")
    with pytest.raises(UserError, match="is damaged; delete it") as caught:
        fit(network(), settings(), Pruner(), some_kept(network(), 0.5, 0), state_path=tmp_path / "state").run()
    assert "\n" not in str(caught.value)


def test_a_state_of_another_version_is_one_line(tmp_path: Path) -> None:
    path, ones = tmp_path / "state", some_kept(network(), 0.5, 0)
    with pytest.raises(Interrupted):
        fit(network(), settings(), Pruner(), ones, state_path=path, save_seconds=-1.0, progress=interrupt_at(2)).run()
    groups, facts = load_state(path)
    del facts["since"]
    save_state(path, groups, facts)
    with pytest.raises(UserError, match="'since': another version of Budwood wrote it; delete it"):
        fit(network(), settings(), Pruner(), ones, state_path=path).run()


# ------------------------------------------------------------------------------------------ learning rate


def rates_of_a_run(recipe: Recipe) -> list[float]:
    """What the optimizer was given at every step."""
    rates: list[float] = []
    training = fit(
        network(), recipe, Pruner(), some_kept(network(), 0.5, 0),
        progress=lambda *_: rates.append(training.optimizer.param_groups[0]["lr"]),
    )  # fmt: skip
    training.run()
    return rates


def stepped(scheduler: Any, steps: int) -> Iterator[float]:
    for _ in range(steps):
        yield scheduler.get_last_lr()[0]
        scheduler.optimizer.step()
        scheduler.step()


def test_cosine_is_torchs_stepped_per_step() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.05)
    expected = list(stepped(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS), STEPS))
    assert rates_of_a_run(settings(lr=0.05)) == pytest.approx(expected, rel=1e-9)


def test_cosine_after_a_warm_up_of_one_epoch() -> None:
    """4 steps an epoch: 0.25, 0.5, 0.75 and 1 of the rate, then torch's cosine over the other two epochs."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.04)
    rest = list(stepped(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8), 8))
    expected = [0.01, 0.02, 0.03, 0.04, *rest]
    assert rates_of_a_run(settings(lr=0.04, warmup_epochs=1)) == pytest.approx(expected, rel=1e-9)


def test_step_falls_in_the_epochs_of_the_study() -> None:
    """Its triple (start 50, frequency 50, end 150) is looked at when an epoch is over, so the tenth is in force from
    the 0-based epochs 51 and 101 on, not 50 and 100."""
    recipe = Recipe(head="sgd").for_linear()
    rates = [learning_rate(recipe, epoch * 7 + inside, 7) for epoch in range(150) for inside in (0, 6)]
    assert rates == pytest.approx([0.01] * 102 + [0.001] * 100 + [0.0001] * 98, rel=1e-9)


def test_a_run_takes_its_steps_at_these_rates() -> None:
    assert rates_of_a_run(settings(lr=0.5, schedule="constant", milestones=(2,))) == pytest.approx(
        [0.5] * 8 + [0.05] * 4  # 4 steps an epoch
    )


# --------------------------------------------------------------------------------------- parts of a batch


@pytest.mark.parametrize("parts", [2, 3, 4, 10, 64])
def test_accumulated_parts_are_the_step_of_the_whole(parts: int) -> None:
    """Also where the parts are unequal (10 images in 3 or 4), and with more parts than images."""
    whole, inside = network(), network()
    mask = some_kept(whole, 0.5, 1)
    first = fit(whole, settings(label_smoothing=0.1), Pruner(), mask).run()
    second = fit(inside, settings(label_smoothing=0.1, accumulate=parts), Pruner(), mask).run()
    torch.testing.assert_close(inside.state_dict(), whole.state_dict(), rtol=0, atol=1e-6)
    losses = [[row["train_loss"] for row in fitted.history] for fitted in (first, second)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


# ------------------------------------------------------------------------------------------- which epoch


class Fading(Dataset[Any]):
    """Two more of the 12 labels are wrong each time all were asked for, whatever `model` learns (it learns nothing)."""

    def __init__(self, model: nn.Module) -> None:
        self.images = Recorded(12).images
        with torch.no_grad():
            self.answers = model(self.images).argmax(1)
        self.asked = 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rounds, self.asked = self.asked // 12, self.asked + 1
        return self.images[index], (self.answers[index] + (index < 2 * rounds)) % 3


def gmp(end: float) -> GMP:
    """Gradual pruning of what is unimportant enough here: one weight in a hundred."""
    return GMP(0.01, GradualOptions.model_validate({"schedule": {"end": end, "updates": 3}}))


@pytest.mark.parametrize(
    ("pruner", "select", "epoch"),
    [
        (Pruner(), "best", 0),  # at final sparsity all the time
        (gmp(0.0), "best", 0),
        (gmp(0.5), "best", 1),  # the last update is at step 6 of 12, in epoch 1
        (gmp(2 / 3), "best", 2),  # at step 8, the first of epoch 2
        (gmp(1.0), "best", 2),  # at the last step
        (Pruner(), "last", 2),
    ],
)
def test_the_best_epoch_is_among_those_at_final_sparsity(pruner: Pruner, select: str, epoch: int) -> None:
    model = network()
    recipe = settings(lr=1e-12, weight_decay=0.0, select=select)
    fitted = fit(model, recipe, pruner, some_kept(model, 1.1, 0), val=Fading(model)).run()
    assert [round(12 * row["val_top1"]) for row in fitted.history] == [12, 10, 8]
    assert fitted.epoch == epoch
    assert fitted.mask.total - fitted.mask.kept == round(pruner.sparsity * fitted.mask.total)
    assert fitted.mask.holds(model)


def test_no_epochs_leave_the_network_as_it_is() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    mask = some_kept(model, 0.5, 0)
    fitted = fit(model, settings(epochs=0), Pruner(), mask).run()
    assert (fitted.history, fitted.epoch, fitted.mask) == ([], -1, mask)
    mask.apply_(before)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


# ------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize("what", ["rate", "image"])
def test_a_loss_that_is_not_finite_is_one_line(what: str) -> None:
    data = Recorded()
    if what == "image":
        data.images[7, 0, 0, 0] = math.inf
    recipe = settings(lr=1e30 if what == "rate" else 0.1)
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step \d+; lower the learning rate") as caught:
        fit(network(), recipe, Pruner(), some_kept(network(), 0.5, 0), train=data).run()
    assert "\n" not in str(caught.value)


def test_after_a_loss_that_is_not_finite_in_a_later_epoch_it_goes_on_from_the_one_before(tmp_path: Path) -> None:
    """The state of the epochs before stays; with the image mended the run ends as one that was never broken."""

    class Spoilt(Recorded):
        def set_epoch(self, epoch: int) -> None:
            if epoch == 2:
                self.images[7, 0, 0, 0] = math.inf

    mask, state, whole, mended = some_kept(network(), 0.5, 0), tmp_path / "state", network(), network()
    fit(whole, settings(), Pruner(), mask).run()
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step (8|9|10|11);"):
        fit(network(), settings(), Pruner(), mask, train=Spoilt(), state_path=state).run()
    assert load_state(state)[1]["step"] == 2 * IMAGES // BATCH
    fit(mended, settings(), Pruner(), mask, state_path=state).run()
    assert all(torch.equal(t, mended.state_dict()[n]) for n, t in whole.state_dict().items())


def test_weights_that_a_step_made_infinite_are_not_saved(tmp_path: Path) -> None:
    """Only the next loss tells of them; gone on with, the run would fail for ever."""

    class Overflows(Pruner):
        def backward(self, model: nn.Module, mask: Mask, step: int, closure: Callable[[], Tensor]) -> Tensor:
            loss = closure()
            if step == 5:
                gradient = model.get_parameter("0.weight").grad
                assert gradient is not None
                gradient.fill_(math.inf)
            return loss

    mask, state, whole, mended = some_kept(network(), 0.5, 0), tmp_path / "state", network(), network()
    fit(whole, settings(), Pruner(), mask).run()
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step 6;"):
        fit(network(), settings(), Overflows(), mask, state_path=state, save_seconds=-1.0).run()
    assert load_state(state)[1]["step"] == 5
    fit(mended, settings(), Pruner(), mask, state_path=state).run()
    assert all(torch.equal(t, mended.state_dict()[n]) for n, t in whole.state_dict().items())


def test_weights_that_overflow_in_the_very_last_step_are_one_line() -> None:
    """No later loss tells of it but the validation's."""
    recipe = settings(lr=1e30, epochs=1, batch_size=IMAGES)
    with pytest.raises(UserError, match=r"the validation loss became (nan|inf) in epoch 0; lower the learning rate"):
        fit(network(), recipe, Pruner(), some_kept(network(), 0.5, 0)).run()


def test_a_last_batch_of_one_image_is_left_out() -> None:
    def normed() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))

    with pytest.raises(ValueError, match="more than 1 value per channel"):
        normed().train()(torch.zeros(1, 3, 8, 8))
    data = Recorded(2 * BATCH + 1)
    model = normed()
    fit(model, settings(epochs=1), Pruner(), some_kept(model, 0.5, 0), train=data).run()
    assert len(set(data.seen)) == len(data.seen) == 2 * BATCH


@given(
    length=st.integers(1, 200), size=st.integers(1, 40), world=st.integers(1, 5),
    seed=st.integers(0, 99), epoch=st.integers(0, 99),
)  # fmt: skip
def test_the_shards_of_an_epoch(length: int, size: int, world: int, seed: int, epoch: int) -> None:
    plans = [batch_plan(length, size, seed, epoch, rank, world) for rank in range(world)]
    assert plans == [batch_plan(length, size, seed, epoch, rank, world) for rank in range(world)]
    shapes = {tuple(len(batch) for batch in plan) for plan in plans}
    assert len(shapes) == 1  # every process takes the same steps
    (shape,) = shapes
    least = 1 if size == 1 else max(2, size / 2)
    assert max(shape) <= size and (len(shape) == 1 or min(shape) >= least)
    used = [index for plan in plans for batch in plan for index in batch]
    assert set(used) <= set(range(length))
    if length >= world:
        assert len(set(used)) == len(used)  # disjoint
        missing = length - len(used)
        each = length // world
        rest = each % size if each > size else 0
        assert missing == length % world + world * rest * (rest < least)


def test_all_is_seen_where_it_divides_and_the_order_is_of_seed_and_epoch() -> None:
    plans = [batch_plan(96, 8, 3, 5, rank, 4) for rank in range(4)]
    assert sorted(i for plan in plans for batch in plan for i in batch) == list(range(96))
    orders = {tuple(map(tuple, batch_plan(96, 8, seed, epoch))) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    # two processes with half the batch see, step by step, what one sees
    one, two = batch_plan(96, 8, 3, 5), [batch_plan(96, 4, 3, 5, rank, 2) for rank in range(2)]
    assert [set(batch) for batch in one] == [set(a) | set(b) for a, b in zip(*two, strict=True)]


def test_the_plan_is_what_the_method_is_told() -> None:
    told: list[Plan] = []

    class Asking(Pruner):
        def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
            told.append(plan)
            return mask

    fit(network(), settings(), Asking(), some_kept(network(), 0.5, 0)).run()
    assert [(plan.epochs, plan.steps_per_epoch, plan.seed) for plan in told] == [(EPOCHS, IMAGES // BATCH, 0)]
    assert told[0].batches is not None and told[0].labelled


# -- through the engine ------------------------------------------------------------------------------------


def with_norms(share: float = 0.3) -> tuple[nn.Module, Mask]:
    """A network that the engine trains, and a mask."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    shapes = {n: p for n, p in model.named_parameters() if n in ("3.weight", "8.weight")}
    return model, Mask({n: torch.rand(p.shape, generator=generator) < share for n, p in shapes.items()})


@dataclass
class Trained:
    fit: Fit
    fitted: Fitted
    masks: list[Mask]
    """In force after each step."""

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.fit.model.state_dict()


def trained(recipe: Recipe, accelerate: bool, pruner: Pruner | None = None, **more: Any) -> Trained:
    model, mask = with_norms(more.pop("share", 0.3))
    data, masks, inner = Recorded(), [], more.pop("progress", None)
    fit = Fit(model, pruner or Pruner(), mask, data, data, recipe, accelerate=accelerate, **more)

    def after(step: int, steps: int, how: str) -> None:
        masks.append(fit.mask)
        if inner is not None:
            inner(step, steps, how)

    fit.progress = after
    return Trained(fit, fit.run(), masks)


def same_training(fast: Trained, plain: Trained) -> None:
    assert fast.masks == plain.masks and fast.fit.mask.holds(fast.fit.model)
    for key in ("train_loss", "val_loss"):
        wanted = [row[key] for row in plain.fit.history]
        assert [row[key] for row in fast.fit.history] == pytest.approx(wanted, rel=1e-4)
    for name, value in plain.weights.items():
        torch.testing.assert_close(fast.weights[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_through_the_engine_it_is_the_same_training(ema: float) -> None:
    recipe = Recipe(epochs=EPOCHS, batch_size=11, lr=0.1, ema=ema, accumulate=2)
    fast, plain = trained(recipe, True), trained(recipe, False)
    assert fast.fitted.notes == ["trained through the engine at 12 of 12 steps"] and plain.fitted.notes == []
    same_training(fast, plain)


GRADUAL = Recipe(epochs=6, batch_size=4, lr=0.05)
"""Sixty steps, in epochs of ten."""
SCHEDULE = {"start": 0.2, "end": 0.6, "updates": 3}
CHANGING: dict[str, tuple[dict[str, Any], float, dict[str, int]]] = {
    # 70, 86 and 90 % zeros from step 13, 25 and 37 on
    "gmp": ({"schedule": SCHEDULE | {"initial": 0.7}}, 1.0, {FEW: 13, ENGINE: 47}),
    "set": ({"every": 12, "initial": "magnitude"}, 0.3, {NEW: 8, ENGINE: 52}),
    "rigl": ({"every": 12, "initial": "magnitude"}, 0.3, {LOOKS: 4, NEW: 8, ENGINE: 48}),
    "snfs": ({"every": 12, "initial": "magnitude"}, 0.3, {LOOKS: 37, NEW: 8, ENGINE: 15}),
    "acdc": ({"first_dense": 1, "phase": 1, "last_dense": 1, "last_sparse": 2}, 1.0, {FEW: 21, ENGINE: 38, LOOKS: 1}),
    "lth": ({"share": 0.7}, 1.0, {FEW: 21, ENGINE: 39}),
    "cram": ({}, 0.3, {ENGINE: 60}),
    "l1": ({}, 0.3, {ENGINE: 60}),
    "woodfisher": ({"schedule": SCHEDULE | {"initial": 0.7}, "gradients": 8, "batch": 2}, 1.0, {FEW: 13, ENGINE: 47}),
}
"""Method -> options, share of weights kept at the start, and what the steps go through."""


def changing(method: str, accelerate: bool, **more: Any) -> Trained:
    options, share, _ = CHANGING[method]
    kind = methods.get(method)
    pruner = kind(0.9, kind.Options(**options | {"allocation": "uniform", "keep_dense": ()}))
    return trained(GRADUAL, accelerate, pruner, share=share, **more)


SLOW = ("l1", "woodfisher")


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in CHANGING])
def test_masks_that_change_go_through_the_engine(method: str) -> None:
    fast, plain = changing(method, True), changing(method, False)
    same_training(fast, plain)
    assert fast.fit.ways == CHANGING[method][2]


class Killed(Exception):
    pass


@pytest.mark.parametrize(("method", "at"), [("gmp", 28), ("set", 3), ("set", 14), ("rigl", 13), ("acdc", 22)])
def test_through_the_engine_a_killed_run_goes_on_exactly(method: str, at: int, tmp_path: Path) -> None:
    def kill(step: int, steps: int, how: str) -> None:
        if step == at:
            raise Killed

    whole, state = changing(method, True), tmp_path / "state"
    with pytest.raises(Killed):
        changing(method, True, state_path=state, save_seconds=-1.0, progress=kill)
    again = changing(method, True, state_path=state)
    assert again.fit.history == whole.fit.history and again.fit.ways == whole.fit.ways
    assert all(torch.equal(value, whole.weights[name]) for name, value in again.weights.items())


@pytest.mark.parametrize(
    ("recipe", "share"),
    [
        (Recipe(epochs=1, batch_size=12), 0.9),
        (Recipe(epochs=1, batch_size=12, amp=True), 0.3),
    ],
    ids=["few zeros", "bfloat16"],
)
def test_what_does_not_go_through_the_engine(recipe: Recipe, share: float) -> None:
    done = trained(recipe, True, share=share)
    assert ENGINE not in done.fit.ways and done.fitted.notes == []


def test_a_mask_that_changes_at_every_step_is_trained_through_pytorch() -> None:
    pruner = GMP(0.9, GMP.Options(schedule={"initial": 0.72, "end": 1.0, "updates": 20}))
    done = trained(Recipe(epochs=2, batch_size=4), True, pruner)
    assert done.fit.ways == {ENGINE: 1, NEW: 19}
    assert len(set(done.masks)) >= 18  # the curve is flat at its end
