"""The contract of a pruning method: what its tags say is true. Run it on your own with `check_pruner("name")`."""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Batches, Plan, Pruner
from ..core.registry import methods
from ..core.spec import Recipe
from ..models.network import prunable
from ..prune.structure import groups, parse
from ..train.data import batches_from
from ..train.fit import PRUNING, Fit

SPARSITY = 0.7
Make = Callable[..., Pruner]
"""A fresh instance of the method; its one argument is the sparsity."""
RECIPE = Recipe(epochs=4, batch_size=8, lr=0.05, momentum=0.9, weight_decay=1e-3, select="last")


def check_pruner(name: str, options: dict[str, Any] | None = None, sparsity: float = SPARSITY) -> None:
    """Assert that a registered method keeps the contract, on a network of 952 weights trained for 16 steps.

    `options` are the method's, over those that it names for a short training (`Pruner.brief`). AssertionError says
    what is broken.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only get in each other's way in a network this small
    try:
        _check(name, methods.get(name).brief | (options or {}), sparsity)
    finally:
        torch.set_num_threads(threads)


def _check(name: str, options: dict[str, Any], wanted: float) -> None:
    def make(sparsity: float = wanted) -> Pruner:
        kind = methods.get(name)
        pruner: Pruner = kind(sparsity, kind.Options(**options))
        return pruner

    tags, dense = make().tags, Mask.ones(prunable(toy_network(), head=True))
    traced = trace(make, dense)
    _check_tags(make(), traced)
    _check_density(make(), traced, dense)
    _check_settled(make(), traced)
    _check_ties(make, dense)
    _check_from_sparse(make, dense)
    again = trace(make, dense)
    assert again.masks == traced.masks, "two runs with the same seed make different masks"
    assert all(torch.equal(t, again.final[n]) for n, t in traced.final.items()), "two runs end at different weights"
    _check_gradients(make, traced, dense)
    _check_state(make, traced, dense)
    if tags.at_once:
        _check_at_once(make, dense)


def toy_network() -> nn.Sequential:
    """Two convolutions, batch norm and a linear head of 5 classes; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 5, bias=False),
        )  # fmt: skip


def toy_data(count: int = 32) -> TensorDataset:
    """Images (count, 3, 6, 6) whose class, one of 5, shifts their colours."""
    random = torch.Generator().manual_seed(1)
    targets = torch.arange(count) % 5
    images = torch.randn(count, 3, 6, 6, generator=random) + torch.randn(5, 3, 1, 1, generator=random)[targets]
    return TensorDataset(images, targets)


@dataclass
class Trace:
    """What happened to the mask and the weights in one training."""

    masks: list[Mask] = field(default_factory=list)
    """In force at the start, after each step, and at the end."""
    edits: list[str] = field(default_factory=list)
    """Where the method changed a weight that it keeps, other than through the optimizer."""
    settled: list[bool] = field(default_factory=list)
    """Whether the method says so at the end of each epoch."""
    sparsity: list[float] = field(default_factory=list)
    """Of the network as it would be deployed, at the end of each epoch."""
    parameters: int = 0
    final: dict[str, Tensor] = field(default_factory=dict)


def trace(make: Make, mask: Mask, model: nn.Module | None = None, **fit: Any) -> Trace:
    """Train the toy network (or `model`) from `mask` through the real `Fit`, watching the method."""
    model = toy_network() if model is None else model
    mask.apply_(model)
    pruner, traced = make(), Trace()
    recipe = RECIPE.model_copy(update={"epochs": pruner.cycles().fitting(RECIPE.epochs)})
    for moment in ("start", "update", "finish"):
        setattr(pruner, moment, _watched(pruner, moment, traced))
    data = toy_data()
    training = Fit(model, pruner, mask, data, data, recipe, **fit)

    def after_step(done: int, total: int, how: str) -> None:
        if how.startswith(PRUNING):
            return
        traced.masks.append(training.mask)
        assert training.mask.holds(training.model), f"a pruned weight is not zero after step {done - 1}"
        if inner is not None:
            inner(done, total, how)

    inner, training.progress = training.progress, after_step
    fitted = training.run()
    traced.masks.append(fitted.mask)
    traced.sparsity = [row["sparsity"] for row in fitted.history]
    per_epoch = training.plan.steps_per_epoch
    traced.settled = [pruner.settled((epoch + 1) * per_epoch - 1) for epoch in range(len(traced.sparsity))]
    traced.parameters = len(pruner.parameters())
    traced.final = {n: t.detach().clone() for n, t in model.state_dict().items()}
    assert fitted.mask.holds(model), "the final mask does not hold"
    return traced


def _watched(pruner: Pruner, moment: str, traced: Trace) -> Callable[..., Mask]:
    """The method's function, with the weights compared before and after; the first mask is noted. What is said to need
    no images is given none but those that it is trained on."""
    original = getattr(pruner, moment)

    def call(model: nn.Module, mask: Mask, *rest: Any) -> Mask:
        if moment == "start" and pruner.tags.data == "none":
            rest = (replace(rest[0], batches=None), *rest[1:])
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        found: Mask = original(model, mask, *rest)
        for n, p in model.named_parameters():
            kept = mask[n] & found[n] if n in mask and n in found else torch.ones_like(p, dtype=torch.bool)
            if not torch.equal(p.detach()[kept], before[n][kept]):
                traced.edits.append(f"{n} in {moment}")
        if moment == "start":
            traced.masks.append(found)
        return found

    return call


def _check_tags(pruner: Pruner, traced: Trace) -> None:
    tags, first = pruner.tags, traced.masks[0]
    told = {
        "gradual": any(mask != first for mask in traced.masks),
        "revives": any(b.revived_since(a) for a, b in zip(traced.masks, traced.masks[1:], strict=False)),
        "edits_weights": bool(traced.edits),
        "learns_thresholds": traced.parameters > 0,
        "patterns": "pattern" in pruner.Options.model_fields,
    }
    for name, true in told.items():
        details = f" ({', '.join(sorted(set(traced.edits)))})" if name == "edits_weights" and true else ""
        assert getattr(tags, name) == true, f"the tag says {name}={getattr(tags, name)}, seen was {true}{details}"
    assert tags.gradual or tags.at_once, "a method prunes at once or while the network is trained"


def _check_density(pruner: Pruner, traced: Trace, given: Mask) -> None:
    for mask in traced.masks:
        assert mask.shapes() == given.shapes(), "a mask must name the weights it was given, with their shapes"
    _check_mask(pruner, traced.masks[-1], given)


def _check_mask(pruner: Pruner, last: Mask, given: Mask) -> None:
    """The final mask has the density that the tag promises over the layers that take part, and the pattern."""
    pattern = parse(getattr(pruner.options, "pattern", "unstructured"))
    layers = pruner.layers(toy_network(), given)
    ours, others = last.restricted(layers), last.without(layers)
    if pruner.tags.density == "exact":
        missed = abs(ours.total - ours.kept - round(pruner.sparsity * ours.total))
        sparser = pattern.kind == "n:m" and given.kept < given.total and ours.sparsity >= pruner.sparsity
        assert missed < pruner.unit() or sparser, f"{ours} is not {pruner.sparsity:.0%} to one weight (or block)"
        assert others == given.restricted(others), "a layer that does not take part was pruned"
        if getattr(pruner.options, "allocation", "") == "uniform" and given.kept == given.total and pruner.unit() == 1:
            shares = {name: abs(k - (1 - pruner.sparsity) * ours[name].numel()) for name, k in ours.counts().items()}
            # The budget is met to one weight in all, so a layer may have a weight of another one.
            assert max(shares.values()) < 2, f"uniform, but some layers miss their share: {shares}"
    elif pruner.tags.density == "given":
        assert last == given, "the tag says density='given', but the mask is another one"
    else:
        assert 0 < last.sparsity < 1, f"the density is aimed at, but it came to {last}"
    for name in layers if pattern.kind != "single" else ():
        kept, before = (groups(mask[name], pattern.size) for mask in (ours, given))
        if pattern.kind == "n:m":
            assert int(kept.sum(1).max()) <= pattern.most, f"{name} has a group with too many weights"
        else:
            assert torch.equal(kept, kept.any(1, keepdim=True) & before), f"{name} has a block that went in part"


def _check_settled(pruner: Pruner, traced: Trace) -> None:
    """Where the method says that the sparsity is the final one, the network as it would be deployed has it; and it
    says so in the end."""
    assert traced.settled[-1], "settled() is False after the last epoch: none could be the best"
    last = traced.masks[-1]
    for epoch, (settled, sparsity) in enumerate(zip(traced.settled, traced.sparsity, strict=True)):
        if settled and pruner.tags.density == "exact":
            missed = abs(sparsity - last.sparsity) * last.total
            assert missed < pruner.unit(), f"settled() is True in epoch {epoch} at a sparsity of {sparsity:.2%}"


def _check_ties(make: Make, dense: Mask) -> None:
    """All weights equal: still exact, and the same weights each time."""

    def equal() -> nn.Module:
        model = toy_network()
        with torch.no_grad():
            for name in dense:
                model.get_parameter(name).fill_(0.1)
        return model

    one, other = (trace(make, dense, equal()) for _ in range(2))
    assert one.masks == other.masks, "equal weights are told apart by chance"
    _check_density(make(), one, dense)


def sparse_mask(dense: Mask, density: float = 0.6) -> Mask:
    """40 % of the weights pruned at random."""
    random = torch.Generator().manual_seed(2)
    return Mask({n: torch.rand(kept.shape, generator=random) < density for n, kept in dense.items()})


def _check_from_sparse(make: Make, dense: Mask) -> None:
    """From a network with 40 % zeros; and with more zeros than asked for."""
    tags, sparse = make().tags, sparse_mask(dense)
    traced = trace(make, sparse)
    _check_density(make(), traced, sparse)
    if tags.revives:
        return
    assert all(not mask.revived_since(sparse) for mask in traced.masks), "a weight pruned beforehand came back"
    if tags.density == "exact":
        pruner = make()
        try:
            pruner.start(toy_network(), sparse_mask(dense, 0.05), Plan(4, 4, batches=_draw()))
        except UserError:
            return
        raise AssertionError("a network that is sparser already must be refused with a UserError")


def _check_gradients(make: Make, traced: Trace, dense: Mask) -> None:
    """Where the method says that it does not look at gradients of pruned weights they may be anything."""
    sparse = sparse_mask(dense)
    for given, told in ((dense, traced), (sparse, trace(make, sparse))):
        spoilt = trace(lambda: _spoilt(make()), given)
        same = told.masks == spoilt.masks and all(torch.equal(t, spoilt.final[n]) for n, t in told.final.items())
        assert same, "gradients of pruned weights make a difference at steps where looks_at_gradients says they do not"


def _spoilt(pruner: Pruner) -> Pruner:
    """With large random numbers for the gradients of pruned weights, at steps where the method does not look."""
    backward = pruner.backward
    random = torch.Generator().manual_seed(3)

    def spoiling(model: nn.Module, mask: Mask, step: int, closure: Callable[[], Tensor]) -> Tensor:
        def spoil() -> Tensor:
            loss = closure()
            for name in mask if not pruner.looks_at_gradients(step) else ():
                if (gradient := model.get_parameter(name).grad) is not None:
                    noise = 1e3 * torch.randn(gradient.shape, generator=random)
                    gradient.copy_(torch.where(mask[name], gradient, noise))
            return loss

        return backward(model, mask, step, spoil)

    pruner.backward = spoiling  # type: ignore[method-assign]
    return pruner


def _draw(seed: int = 0, shift: int = 0) -> Any:
    """Batches of the toy's images, whose labels are moved on by `shift` classes."""
    images, targets = toy_data(64).tensors
    return batches_from(TensorDataset(images, (targets + shift) % 5), seed, 0, torch.device("cpu"))


class _Stop(Exception):
    pass


def _check_at_once(make: Make, dense: Mask) -> None:
    """Without a training: the density is met, seed and labels matter if the tags say so, and what the network is but
    for its weights stays as it was; without labels as well, and gone on with after it was broken off."""

    tags, drawn = make().tags, 0

    def prune(seed: int = 0, shift: int = 0, **plan: Any) -> tuple[Mask, nn.Module]:
        model, batches = toy_network(), _draw(seed, shift)
        if tags.edits_weights:
            model.eval()

        def draw(size: int, salt: int) -> Batches:
            nonlocal drawn
            drawn += 1
            return batches(size, salt)  # type: ignore[no-any-return]

        found = make().start(model, dense, Plan(0, 0, seed, None if tags.data == "none" else draw, **plan))
        _check_mask(make(), found, dense)
        return found, model

    def same(one: tuple[Mask, nn.Module], other: tuple[Mask, nn.Module]) -> bool:
        weights = zip(one[1].parameters(), other[1].parameters(), strict=True)
        return one[0] == other[0] and all(torch.equal(a, b) for a, b in weights)

    found, model = prune()
    assert same((found, model), prune()), "pruning at once with the same seed comes to another network"
    assert bool(drawn) == (tags.data != "none"), f"the tag says data={tags.data!r}, but no image was asked for"
    seeded = not same((found, model), prune(seed=1))
    assert seeded == tags.seeded, f"the tag says seeded={tags.seeded}, seen was {seeded}"
    labels = not same((found, model), prune(shift=1))
    assert labels == (tags.data == "labels"), (
        f"the tag says data={tags.data!r}, other labels made a difference: {labels}"
    )
    fresh = toy_network().state_dict()
    for name, value in model.state_dict().items():
        if name not in dense:
            assert torch.equal(value, fresh[name]), f"{name} is not a pruned weight, and was changed"
    assert all(p.grad is None for p in model.parameters()), "gradients are left over"
    if tags.data == "labels":
        assert same(prune(labelled=False), prune(shift=1, labelled=False)), "labels count that mean nothing"

    told: list[int] = []
    prune(progress=lambda done, total: told.append(done))
    assert told or tags.data == "none", "it looks at images, which takes long, and tells of no progress"
    last = 3 * len(told) // 4

    def stop(done: int, total: int) -> None:
        nonlocal last
        last -= 1
        if last < 0:
            raise _Stop

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(_Stop):
            prune(scratch=Path(folder), progress=stop)
        gone_on = prune(scratch=Path(folder))
    assert same((found, model), gone_on), "gone on with after it was broken off, it comes to another network"


def _check_state(make: Make, traced: Trace, dense: Mask) -> None:
    """Stopped in the middle of an epoch and gone on with from the file: the same masks and weights."""
    for stop in (1, 7, 14):

        def stopped(done: int, total: int, how: str, stop: int = stop) -> None:
            if done == stop + 1:  # the state of step `stop` is saved
                raise _Stop

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            with contextlib.suppress(_Stop):
                trace(make, dense, state_path=path, save_seconds=-1.0, progress=stopped)
            rest = trace(make, dense, state_path=path)
        expected = traced.masks[stop + 1 :]
        assert rest.masks[1:] == expected, f"gone on with after {stop} steps, the masks are different"
        same = all(torch.equal(t, rest.final[n]) for n, t in traced.final.items())
        assert same, f"gone on with after {stop} steps, the weights are different"
