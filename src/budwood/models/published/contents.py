"""What a file of weights holds, and what a layout is: a known way of writing a network down, and the way back."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.task import Preprocessing

IMAGENET = Preprocessing()
"""As most of the papers have it: shorter side 256, bilinear, crop 224, the usual mean and deviation."""


@dataclass(frozen=True)
class Contents:
    """Tensors by name, as far as they are understood.

    `where` names the file in messages, `beside` is what it holds beside the weights (an epoch, a recipe).
    `kept` has the masks that the file carries (bool, True = kept) by the weight's name.
    `architecture`, `preprocessing` and `method` are None where the layout does not tell them; a network asked for as
    one of `instead_of` is built as `architecture`. `notes` says, a line each, what was done.
    """

    state: dict[str, Tensor]
    where: str
    beside: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    architecture: str | None = None
    instead_of: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    method: str | None = None
    notes: tuple[str, ...] = ()
    stored: "Contents | None" = None
    """What it was before prefixes and layouts were undone."""

    def renamed(self, name_of: Callable[[str], str]) -> "Contents":
        """The same with other names for tensors and masks; UserError where two would have the same."""
        state = {name_of(name): value for name, value in self.state.items()}
        if len(state) != len(self.state):
            raise UserError(f"{self.where} holds a tensor under two names; make or copy it again")
        return replace(self, state=state, kept={name_of(name): kept for name, kept in self.kept.items()})

    def noted(self, line: str) -> "Contents":
        return replace(self, notes=(*self.notes, f"{self.where}: {line}"))

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.where} cannot be read: {what}; make or copy it again")


@dataclass(frozen=True)
class Layout:
    """`fits` looks at names and shapes alone; `convert` takes what it undoes out of the contents.

    `convert` raises UserError where the file only begins like this layout.
    """

    name: str
    fits: Callable[[Contents], bool]
    convert: Callable[[Contents], Contents]


def as_kept(mask: Tensor, weight: Tensor, name: str, found: Contents) -> Tensor:
    """A stored mask of zeros and ones as bool; UserError where it is another thing or has another shape."""
    if mask.shape != weight.shape:
        raise found.damaged(f"the mask of {name} has shape {tuple(mask.shape)}, the weight {tuple(weight.shape)}")
    kept = mask == 1
    if not bool((kept | (mask == 0)).all()):
        raise found.damaged(f"the mask of {name} holds other values than 0 and 1")
    return kept


def plain_bias(classes: int, like: Tensor) -> Tensor:
    """Of a classifier that is stored without one."""
    return torch.zeros(classes, dtype=like.dtype)
