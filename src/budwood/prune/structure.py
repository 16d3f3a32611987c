"""What is pruned together: single weights, N of every M (N:M), or blocks of B (1xB), along the input channels.

Input channels are a weight's second axis, of convolutions (O, I, kh, kw) and linear layers (O, I) alike: the axis that
a product sums over, so the one along which 2:4 sparse units and the dot products of int8 (1x4) and bf16 (1x2) read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from ..core.errors import UserError

SINGLE = "unstructured"


@dataclass(frozen=True)
class Structure:
    """`size` weights beside each other are a group: of which `most` may stay (N:M), or which goes as a whole."""

    kind: Literal["single", "n:m", "block"]
    size: int = 1
    most: int = 1

    @property
    def unit(self) -> int:
        """How many weights go together."""
        return self.size if self.kind == "block" else 1


def parse(pattern: str) -> Structure:
    """`unstructured`, `2:4` or `1x4`; ValueError for what is none of these."""
    if pattern == SINGLE:
        return Structure("single")
    if (found := re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern)) is not None:
        most, size = int(found[1]), int(found[2])
        if not 0 < most < size:
            raise ValueError(f"of {size} weights between 1 and {size - 1} can be kept, not {most}")
        return Structure("n:m", size, most)
    if (found := re.fullmatch(r"1x(\d{1,3})", pattern)) is not None and int(found[1]) > 1:
        return Structure("block", int(found[1]))
    raise ValueError("write unstructured, N:M as 2:4, or 1xB as 1x4")


def _known(pattern: str) -> str:
    parse(pattern)
    return pattern


Pattern = Annotated[str, AfterValidator(_known)]
"""`unstructured`, `N:M` or `1xB`."""


def groups(values: Tensor, size: int) -> Tensor:
    """(O, I, ...) -> (groups, size), neighbours along I in a row."""
    return values.movedim(1, -1).reshape(-1, size)


def ungroup(rows: Tensor, shape: Iterable[int]) -> Tensor:
    """The inverse of `groups`, for a weight of `shape`."""
    outputs, inputs, *rest = shape
    return rows.reshape(outputs, *rest, inputs).movedim(-1, 1)


def require_divisible(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> None:
    """Raise UserError for the first layer whose input channels do not fall into whole groups."""
    size = parse(pattern).size
    for name, shape in shapes.items():
        if size > 1 and shape[1] % size:
            fit = ", ".join(str(n) for n in range(2, min(shape[1], 64) + 1) if shape[1] % n == 0)
            raise UserError(
                f"{pattern} does not divide the {shape[1]} input channels of {name.removesuffix('.weight')}, which "
                f"fall into groups of {fit or 'one alone'}; choose another pattern, or keep such layers dense: "
                "--option keep_dense=first,depthwise,undivided (and classifier, where it is left out now)"
            )


def protected(score: Tensor, most: int, size: int) -> Tensor:
    """True at the `most` highest scores of every group of `size`; among equal ones the first. Shape of `score`."""
    rows = groups(score, size)
    order = rows.sort(dim=1, descending=True, stable=True).indices[:, :most]
    best = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True)
    return ungroup(best, score.shape)
