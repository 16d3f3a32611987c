"""Nodes as JSON and back, by the types of their fields: a new kind of node, or a new field, needs nothing here.

Arrays stand apart: JSON holds the name under which one is kept. Numbers that JSON does not have are written as the
strings "inf", "-inf" and "nan".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

from . import graph as g

LONGEST_TEXT = 4096
LARGEST_NUMBER = 1 << 31
_SPECIAL = ("inf", "-inf", "nan")

Put = Callable[[g.Array, str], Any]
"""Keeps an array (the second is a hint for its name) and gives the JSON that stands for it."""
Get = Callable[[Any], g.Array]
"""The array that such JSON stands for. Raises ValueError."""


@functools.cache
def kinds() -> dict[str, type[g.Node]]:
    """Every kind of node of graph.py by its name."""
    members = [value for value in vars(g).values() if isinstance(value, type) and issubclass(value, g.Node)]
    return {kind.__name__: kind for kind in members if kind is not g.Node}


def node_to_json(node: g.Node, put: Put) -> dict[str, Any]:
    """{"op": ..., field: value, ...}; fields that have their default are left out."""
    if kinds().get(node.op) is not type(node):
        raise ValueError(f"{node.name}: a node of the kind {node.op} cannot be saved")
    return {"op": node.op} | _fields_to_json(node, put)


def node_from_json(value: Any, get: Get) -> g.Node:
    """The node. Raises ValueError where an entry is missing, unknown, or of the wrong type."""
    if not isinstance(value, dict) or not isinstance(value.get("op"), str):
        raise ValueError("a node is not an object with an op")
    kind = kinds().get(value["op"])
    if kind is None:
        raise ValueError(f"a node is of the unknown kind {value['op'][:40]!r}")
    node: g.Node = _fields_from_json(kind, {k: v for k, v in value.items() if k != "op"}, get)
    return node


def _fields_to_json(item: Any, put: Put) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if isinstance(value, np.ndarray):
            found[field.name] = put(value, f"{getattr(item, 'name', '')}.{field.name}")
        elif not _same(value, field.default):
            found[field.name] = _to_json(value, put)
    return found


def _same(value: Any, default: Any) -> bool:
    """Equal in type too, and -0.0 is not 0.0."""
    return type(value) is type(default) and repr(value) == repr(default)


def _to_json(value: Any, put: Put) -> Any:
    if dataclasses.is_dataclass(value):
        return _fields_to_json(value, put)
    if isinstance(value, tuple | list):
        return [_to_json(part, put) for part in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else _SPECIAL[0 if number > 0 else 1 if number < 0 else 2]


@functools.cache
def _types(kind: Any) -> dict[str, Any]:
    """Field -> its type, as an object."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fields_from_json(kind: Any, value: Any, get: Get) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"a {kind.__name__} is not an object")
    wanted: dict[str, Any] = _types(kind)
    unknown = value.keys() - wanted.keys()
    if unknown:
        raise ValueError(f"a {kind.__name__} has an unknown entry {min(unknown)[:40]!r}")
    found = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            try:
                found[field.name] = _from_json(wanted[field.name], value[field.name], get)
            except ValueError as error:
                raise ValueError(f"{field.name} of a {kind.__name__}: {error}") from None
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"a {kind.__name__} lacks its {field.name}")
    return kind(**found)


def _from_json(wanted: Any, value: Any, get: Get) -> Any:
    """The value of that type, or ValueError."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _fields_from_json(wanted, value, get)
    origin = typing.get_origin(wanted)
    if origin is np.ndarray:
        return get(value)
    if origin in (typing.Union, types.UnionType):
        other = next(part for part in typing.get_args(wanted) if part is not type(None))
        return None if value is None else _from_json(other, value, get)
    if origin is tuple:
        return _tuple(typing.get_args(wanted), value, get)
    return _plain(wanted, value)


def _tuple(parts: tuple[Any, ...], value: Any, get: Get) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError("is not a list")
    if parts[-1] is Ellipsis:
        return tuple(_from_json(parts[0], item, get) for item in value)
    if len(parts) != len(value):
        raise ValueError(f"has {len(value)} entries, not {len(parts)}")
    return tuple(_from_json(part, item, get) for part, item in zip(parts, value, strict=True))


def _plain(wanted: type[Any], value: Any) -> Any:
    if wanted is float:
        if isinstance(value, str) and value in _SPECIAL:
            return float(value)
        if type(value) in (int, float) and abs(value) < 1e300:
            return float(value)
    elif type(value) is wanted:
        if wanted is str and len(value) > LONGEST_TEXT:
            raise ValueError("is too long")
        if wanted is int and abs(value) > LARGEST_NUMBER:
            raise ValueError("is too large")
        return value
    raise ValueError(f"is not a {wanted.__name__}")
