"""The contract of a pruning method: what its tags say is true. Run it on your own with `check_pruner("name")`."""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Plan, Pruner, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from ..models.network import prunable
from ..train.fit import Fit

SPARSITY = 0.7
Make = Callable[..., Pruner]
"""A fresh instance of the method; its one argument is the sparsity."""
RECIPE = Recipe(epochs=4, batch_size=8, lr=0.05, momentum=0.9, weight_decay=1e-3, select="last")


def check_pruner(name: str, options: dict[str, Any] | None = None) -> None:
    """Assert that a registered method keeps the contract, on a network of 332 weights trained for 16 steps.

    `options` are the method's, where its defaults do nothing in so short a training. AssertionError says what is
    broken.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only get in each other's way in a network this small
    try:
        _check(name, options or {})
    finally:
        torch.set_num_threads(threads)


def _check(name: str, options: dict[str, Any]) -> None:
    def make(sparsity: float = SPARSITY) -> Pruner:
        kind = methods.get(name)
        pruner: Pruner = kind(sparsity, kind.Options(**options))
        return pruner

    tags, dense = make().tags, Mask.ones(prunable(toy_network(), head=True))
    traced = trace(make, dense)
    _check_tags(tags, traced)
    _check_density(tags, traced, dense)
    _check_ties(tags, make, dense)
    _check_from_sparse(tags, make, dense)
    again = trace(make, dense)
    assert again.masks == traced.masks, "two runs with the same seed make different masks"
    assert all(torch.equal(t, again.final[n]) for n, t in traced.final.items()), "two runs end at different weights"
    _check_state(make, traced, dense)


def toy_network() -> nn.Sequential:
    """Two convolutions, batch norm and a linear head of 5 classes; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 5, bias=False),
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
    parameters: int = 0
    final: dict[str, Tensor] = field(default_factory=dict)


def trace(make: Make, mask: Mask, model: nn.Module | None = None, **fit: Any) -> Trace:
    """Train the toy network (or `model`) from `mask` through the real `Fit`, watching the method."""
    model = toy_network() if model is None else model
    mask.apply_(model)
    pruner, traced = make(), Trace()
    for moment in ("start", "update", "finish"):
        setattr(pruner, moment, _watched(pruner, moment, traced))
    data = toy_data()
    training = Fit(model, pruner, mask, data, data, RECIPE, **fit)

    def after_step(done: int, total: int, loss: float) -> None:
        traced.masks.append(training.mask)
        assert training.mask.holds(training.model), f"a pruned weight is not zero after step {done - 1}"
        if inner is not None:
            inner(done, total, loss)

    inner, training.progress = training.progress, after_step
    fitted = training.run()
    traced.masks.append(fitted.mask)
    traced.parameters = len(pruner.parameters())
    traced.final = {n: t.detach().clone() for n, t in model.state_dict().items()}
    assert fitted.mask.holds(model), "the final mask does not hold"
    return traced


def _watched(pruner: Pruner, moment: str, traced: Trace) -> Callable[..., Mask]:
    """The method's function, with the weights compared before and after; the first mask is noted."""
    original = getattr(pruner, moment)

    def call(model: nn.Module, mask: Mask, *rest: Any) -> Mask:
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


def _check_tags(tags: Tags, traced: Trace) -> None:
    first = traced.masks[0]
    told = {
        "gradual": any(mask != first for mask in traced.masks),
        "revives": any(b.revived_since(a) for a, b in zip(traced.masks, traced.masks[1:], strict=False)),
        "edits_weights": bool(traced.edits),
        "learns_thresholds": traced.parameters > 0,
    }
    for name, true in told.items():
        details = f" ({', '.join(sorted(set(traced.edits)))})" if name == "edits_weights" and true else ""
        assert getattr(tags, name) == true, f"the tag says {name}={getattr(tags, name)}, seen was {true}{details}"


def _check_density(tags: Tags, traced: Trace, given: Mask) -> None:
    last = traced.masks[-1]
    for mask in traced.masks:
        assert mask.shapes() == given.shapes(), "a mask must name the weights it was given, with their shapes"
    if tags.density == "exact":
        assert last.total - last.kept == round(SPARSITY * last.total), f"{last} is not {SPARSITY:.0%} to one weight"
    elif tags.density == "given":
        assert last == given, "the tag says density='given', but the mask is another one"
    else:
        assert 0 < last.sparsity < 1, f"the density is steered, but to {last}"


def _check_ties(tags: Tags, make: Make, dense: Mask) -> None:
    """All weights equal: still exact, and the same weights each time."""

    def equal() -> nn.Module:
        model = toy_network()
        with torch.no_grad():
            for name in dense:
                model.get_parameter(name).fill_(0.1)
        return model

    one, other = (trace(make, dense, equal()) for _ in range(2))
    assert one.masks == other.masks, "equal weights are told apart by chance"
    _check_density(tags, one, dense)


def _check_from_sparse(tags: Tags, make: Make, dense: Mask) -> None:
    """From a network with 40 % zeros; and with more zeros than asked for."""
    random = torch.Generator().manual_seed(2)
    sparse = Mask({n: torch.rand(kept.shape, generator=random) < 0.6 for n, kept in dense.items()})
    traced = trace(make, sparse)
    _check_density(tags, traced, sparse)
    if tags.revives:
        return
    assert all(not mask.revived_since(sparse) for mask in traced.masks), "a weight pruned beforehand came back"
    if tags.density == "exact":
        try:
            make(0.1).start(toy_network(), sparse, Plan(4, 4))
        except UserError:
            return
        raise AssertionError("a network that is sparser already must be refused with a UserError")


class _Stop(Exception):
    pass


def _check_state(make: Make, traced: Trace, dense: Mask) -> None:
    """Stopped in the middle of an epoch and gone on with from the file: the same masks and weights."""
    for stop in (1, 7, 14):

        def stopped(done: int, total: int, loss: float, stop: int = stop) -> None:
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
