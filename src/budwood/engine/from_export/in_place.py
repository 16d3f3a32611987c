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
"""Operators that change nothing in evaluation, in place or not; in training they are refused."""


def name_of(target: Any) -> str:
    """The name without the overload: `conv2d` of aten.conv2d.padding. Operators of others bear their namespace."""
    if not isinstance(target, torch._ops.OpOverload):
        return str(target)
    space, _, name = target.name().partition("::")
    name = name.split(".")[0]
    return name if space == "aten" else f"{space}::{name}"


def meant_by(target: Any) -> str:
    """The name of the operator that gives the same and leaves its input alone."""
    return name_of(target).removesuffix("_") if _changes_something(target) else name_of(target)


def readable(program: ExportedProgram) -> bool:
    """Whether each operator is known, and one in place changes nothing that another reads."""
    return all(_readable(node) for node in program.graph.nodes)


def _readable(node: torch.fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function" or (meant_by(node.target) not in HANDLERS and node.target is not operator.getitem):
        return False
    return not _changes_something(node.target) or meant_by(node.target) in IDLE or _overwrites_its_own(node)


def _overwrites_its_own(node: torch.fx.Node) -> bool:
    """Whether what an operator in place writes over was made for it alone."""
    written = node.args[0]
    if not isinstance(written, torch.fx.Node) or len(written.users) > 1 or written.op != "call_function":
        return False
    return _overwrites_its_own(written) if _changes_something(written.target) else name_of(written.target) in FRESH


def _changes_something(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
