"""Every registered method keeps the methods' contract, and the contract finds those that do not."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan, Pruner, Tags
from budwood.core.registry import methods
from budwood.prune.allocation import mask_by_score
from budwood.prune.gmp import GMP
from budwood.prune.magnitude import Magnitude
from budwood.prune.random_mask import Random
from budwood.prune.rigl import RigL
from budwood.prune.wanda import Wanda
from budwood.testing.pruners import check_pruner


@pytest.mark.parametrize("name", methods.names())
def test_pruner(name: str) -> None:
    check_pruner(name)


PATTERNS = {"2:4": 0.5, "1x4": 0.7, "4:8": 0.5, "1:4": 0.75, "1x2": 0.7}
"""And the sparsity that goes with it. The last three are the first two in other sizes: slow but for one method."""


def cases(option: str, values: list[str], quick: int) -> list[Any]:
    """Every method that has the option, with every value of it; the first `quick` values are tested by default."""
    return [
        pytest.param(name, value, marks=[] if k < quick or name == "magnitude" else pytest.mark.slow)
        for name in methods
        if option in methods.get(name).Options.model_fields
        for k, value in enumerate(values)
    ]


@pytest.mark.parametrize(("name", "pattern"), cases("pattern", list(PATTERNS), 2))
def test_patterns(name: str, pattern: str) -> None:
    check_pruner(name, {"pattern": pattern}, PATTERNS[pattern])


@pytest.mark.parametrize(("name", "allocation"), cases("allocation", ["uniform", "erk"], 1))
def test_allocations(name: str, allocation: str) -> None:
    check_pruner(name, {"allocation": allocation, "keep_dense": ()})


def choices() -> list[Any]:
    """Every method with every choice of its own that is not the default; rewinding and FLOPs have a number. Not the
    control `random-mask`: its places are drawn last, so weights come back, which tickets' never do."""
    numbers = [("lth", "rewind_epoch", 1), ("woodfisher", "flops_power", 0.5)]
    for name in methods:
        for option, field in methods.get(name).Options.model_fields.items():
            offered = (True, False) if field.annotation is bool else get_args(field.annotation)
            if option != "allocation" and all(isinstance(value, bool | str) for value in offered):
                numbers += [(name, option, value) for value in offered if value not in (field.default, "random-mask")]
    return [pytest.param(*choice, id="-".join(map(str, choice))) for choice in numbers]


@pytest.mark.parametrize(("name", "option", "value"), choices())
def test_choices(name: str, option: str, value: Any) -> None:
    check_pruner(name, {option: value})


class OneTooMany(Magnitude):
    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        return super().prune_to(model, mask, self.sparsity + 1 / mask.total)


class OtherKeys(Magnitude):
    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        found = super().start(model, mask, plan)
        return Mask({f"module.{name}": kept for name, kept in found.items()} | dict(found))


class ByChance(Magnitude):
    def prune_to(self, model: nn.Module, mask: Mask, sparsity: float) -> Mask:
        noise = torch.Generator()
        noise.seed()
        random = {name: torch.rand(kept.shape, generator=noise) for name, kept in mask.items()}
        return mask_by_score(random, mask, sparsity, "global")


class Edits(Magnitude):
    @torch.no_grad()
    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        model.get_parameter("0.weight").mul_(1.01)
        return super().start(model, mask, plan)


class Late(Magnitude):
    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        super().start(model, mask, plan)
        return mask

    def finish(self, model: nn.Module, mask: Mask, step: int) -> Mask:
        found = self.prune_to(model, mask, self.sparsity)
        found.apply_(model)
        return found


class Revives(Magnitude):
    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        """Swap the first pruned weight for the first kept one."""
        kept = mask["0.weight"].flatten()
        kept[[int(kept.int().argmin()), int(kept.int().argmax())]] ^= True
        return Mask(dict(mask) | {"0.weight": kept.reshape(mask["0.weight"].shape)})


class Forgets(Magnitude):
    """Prunes at its fifth update, and counts them where a resumed run does not find it."""

    tags = Tags(gradual=True, patterns=True)

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        super().start(model, mask, plan)
        self.count_ = 0
        return mask

    def update(self, model: nn.Module, mask: Mask, step: int, batch: tuple[Tensor, Tensor]) -> Mask:
        self.count_ += 1
        return self.prune_to(model, mask, self.sparsity) if self.count_ == 5 else mask

    def settled(self, step: int) -> bool:
        return step >= 4


class Hasty(GMP):
    """Would have an epoch before the last update be the best."""

    def settled(self, step: int) -> bool:
        return True


class Draws(Random):
    tags = Tags(patterns=True)


class Blind(Magnitude):
    """Says that it goes by images."""

    tags = Tags(data="images", patterns=True)


class Reads(Wanda):
    """Says that it goes by labels, and goes by images alone."""

    tags = replace(Wanda.tags, data="labels")


class Looks(RigL):
    """At gradients that it says it does not look at."""

    def looks_at_gradients(self, step: int) -> bool:
        return False


class Boasts(Magnitude):
    tags = Tags(edits_weights=True, patterns=True)


class Dense(Pruner):
    tags = Tags()


LIARS: list[tuple[type[Pruner], str]] = [
    (OneTooMany, "to one weight"),
    (OtherKeys, "does not have|must name"),
    (ByChance, "chance|different masks"),
    (Edits, r"edits_weights=False.*0\.weight in start"),
    (Late, "gradual=False"),
    (Revives, "gradual=False|revives=False"),
    (Forgets, "gone on with"),
    (Hasty, "settled"),
    (Draws, "seeded=False"),
    (Reads, "data='labels'"),
    (Blind, "no image was asked for"),
    (Looks, "looks_at_gradients"),
    (Boasts, "edits_weights=True"),
    (Dense, "to one weight"),
]


@pytest.mark.parametrize(("kind", "complaint"), LIARS)
def test_the_contract_can_be_broken(kind: type[Pruner], complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    members: dict[str, Any] = methods._members
    monkeypatch.setitem(members, "liar", kind)
    with pytest.raises((AssertionError, UserError), match=complaint):
        check_pruner("liar")
