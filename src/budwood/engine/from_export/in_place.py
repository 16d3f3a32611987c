"""Whether a program can be walked as it was exported, though some of its operators work in place.

PyTorch can rid a program of them, but traces it once more for that, which takes longer than the export did. In nearly
every network they are harmless: an activation or a sum overwrites what was just made, and nobody else reads that.
"""

import operator
from typing import Any

import torch
from torch.export import ExportedProgram

from .build import HANDLERS

FRESH = frozenset(("conv2d", "linear", "batch_norm", "layer_norm", "add", "mul"))
"""Operators whose result shares its memory with nothing; few, as those that stand before one in place are few."""
IDLE = frozenset(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"))
"""Operators that change nothing in evaluation, in place or not."""
TRAINING = dict.fromkeys(IDLE, 2) | {"batch_norm": 5, "native_batch_norm": 5}
"""Which argument says that an operator is in training: then a batch norm writes to its statistics, too."""


def name_of(target: Any) -> str:
    """The name without the overload: `conv2d` of aten.conv2d.padding. Operators of others bear their namespace."""
    if not isinstance(target, torch._ops.OpOverload):
        return str(target)
    space, _, name = target.name().partition("::")
    name = name.split(".")[0]
    return name if space == "aten" else f"{space}::{name}"


def meant_by(target: Any) -> str:
    """The name of the operator that gives the same and leaves its input alone."""
    return name_of(target).removesuffix("_") if _in_place(target) else name_of(target)


def readable(program: ExportedProgram) -> bool:
    """Whether each operator is known, and one in place changes nothing that another reads."""
    return all(_readable(node) for node in program.graph.nodes)


def _readable(node: torch.fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    name = meant_by(node.target)
    if name not in HANDLERS or (name in TRAINING and _argument(node, TRAINING[name]) is not False):
        return False
    return not _changes_something(node.target) or name in IDLE or _overwrites_its_own(node)


def _overwrites_its_own(node: torch.fx.Node) -> bool:
    """Whether what an operator in place writes over was made for it alone."""
    written = node.args[0] if _in_place(node.target) else None
    if not isinstance(written, torch.fx.Node) or len(written.users) > 1 or written.op != "call_function":
        return False
    return _overwrites_its_own(written) if _changes_something(written.target) else name_of(written.target) in FRESH


def _argument(node: torch.fx.Node, number: int) -> Any:
    return node.args[number] if number < len(node.args) else node.kwargs.get(node.target._schema.arguments[number].name)  # type: ignore[union-attr]


def _in_place(target: Any) -> bool:
    """Whether an operator writes over its first argument; another may write to an argument `out`."""
    return _changes_something(target) and name_of(target).endswith("_")


def _changes_something(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
