"""A program on disk: one safetensors file of the graph's numbers, with the graph itself as JSON in its header.

Weights with zeros are stored as one bit each and the non-zero values. The file is not trusted: whatever it holds, the
answer is a program or a UserError, and memory is taken for what the file holds, not for what it claims.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UserError
from ..core.files import canonical_json, metadata_of, read_bytes, write_atomic
from . import graph as g
from .limits import check_size
from .program import Program, at_least_one, default_threads
from .typed_json import LONGEST_TEXT, node_from_json, node_to_json

VERSION = 1
KEY = "budwood-program"
"""The one entry of the header's metadata (of several, the order would be left to chance): digest, space, JSON."""
MOST_NODES = 20_000
MOST_CLASSES = 1_000_000

Tensors = dict[str, NDArray[Any]]


def save(program: Program, path: str | os.PathLike[str]) -> int:
    """Write `path` atomically and return its size in bytes. UserError where it cannot be written."""
    data = pack(program)
    write_atomic(Path(path), data)
    return len(data)


def load_program(path: str | os.PathLike[str], threads: int | None = None) -> Program:
    """The program in a file that `save` wrote; UserError where it is missing, foreign or damaged."""
    return unpack(read_bytes(Path(path), "program"), str(path), threads)


def is_program(data: bytes) -> bool:
    """True if these bytes claim to be a saved program."""
    return KEY in (metadata_of(data) or {})


# -- writing ------------------------------------------------------------------------------------------------


def pack(program: Program) -> bytes:
    """The file's bytes. An array without zeros is the tensor `dense:NAME`; one with, `values:NAME` (the non-zero
    values in row-major order) and `bits:NAME` (np.packbits of which they are). -0.0 counts as a value."""
    tensors: Tensors = {}

    def put(array: g.Array, hint: str) -> dict[str, Any]:
        name = hint if f"dense:{hint}" not in tensors and f"bits:{hint}" not in tensors else f"{hint}#{len(tensors)}"
        plain = np.ascontiguousarray(array, np.float32)
        kept = plain.reshape(-1).view(np.uint32) != 0
        count = int(np.count_nonzero(kept))
        if 4 * count + plain.size // 8 + 64 < 4 * plain.size:
            tensors[f"values:{name}"] = plain.reshape(-1)[kept]
            tensors[f"bits:{name}"] = np.packbits(kept)
        else:
            tensors[f"dense:{name}"] = plain
        return {"array": name, "shape": list(plain.shape)}

    graph, preprocessing = program.graph, program.preprocessing
    content = {
        "version": VERSION,
        "inputs": [[name, list(shape)] for name, shape in graph.inputs.items()],
        "nodes": [node_to_json(node, put) for node in graph],
        "outputs": list(graph.outputs),
        "classes": program.classes,
        "preprocessing": None if preprocessing is None else preprocessing.model_dump(mode="json"),
        "name": program.name,
        "source": program.source,
    }
    return seal(content, tensors)


def seal(content: Mapping[str, Any], tensors: Tensors) -> bytes:
    """The file of this JSON and these tensors, with its digest."""
    from safetensors.numpy import save as to_bytes

    text = canonical_json(content)
    return to_bytes(tensors, metadata={KEY: f"{digest(text, tensors)} {text}"})


def fingerprint(graph: g.Graph) -> str:
    """sha256 (hex): equal for graphs that are equal in every name, setting and number."""
    arrays = hashlib.sha256()

    def put(array: g.Array, hint: str) -> list[int]:
        arrays.update(np.ascontiguousarray(array).data)
        return list(array.shape)

    nodes = [node_to_json(node, put) for node in graph]
    text = canonical_json([[[name, list(shape)] for name, shape in graph.inputs.items()], nodes, list(graph.outputs)])
    return hashlib.sha256(text.encode() + arrays.digest()).hexdigest()


def digest(text: str, tensors: Tensors) -> str:
    """sha256 (hex) over the JSON and every tensor's name, type, shape and bytes."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        sha.update(array.data if array.size else b"")
    return sha.hexdigest()


# -- reading ------------------------------------------------------------------------------------------------


def unpack(data: bytes, where: str, threads: int | None = None) -> Program:
    """Bytes -> Program, every claim of the file checked. `where` names it in the message."""
    threads = default_threads() if threads is None else at_least_one(threads, "threads")
    metadata = metadata_of(data)
    if metadata is None or not isinstance(metadata.get(KEY), str):
        raise UserError(f"{where} is not a program that Budwood saved, or is damaged; make it with `budwood compile`")
    try:
        claimed, _, text = metadata[KEY].partition(" ")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("its content is no object")
        if (version := content.get("version")) != VERSION:
            shown = version if isinstance(version, int) and abs(version) < 10**9 else "unknown"
            raise UserError(f"{where} has format version {shown}, this Budwood reads {VERSION}; compile it again")
        tensors = _tensors(data)
        if claimed != digest(text, tensors):
            raise ValueError("its digest differs")
        return _program(content, tensors, threads)
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        reason = "".join(c if c.isprintable() else " " for c in str(error)[:300])
        raise UserError(f"{where} is damaged ({reason or type(error).__name__}); make or copy it again") from None


def _tensors(data: bytes) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that NumPy does not have
        raise ValueError(f"its tensors: {error}") from None


def _program(content: dict[str, Any], tensors: Tensors, threads: int) -> Program:
    wanted = {"version", "inputs", "nodes", "outputs", "classes", "preprocessing", "name", "source"}
    if content.keys() != wanted:
        raise ValueError("its entries are not those of a program")
    arrays = _Arrays(tensors)
    nodes = _list(content["nodes"], "nodes", MOST_NODES)
    inputs = _inputs(content["inputs"])
    outputs = tuple(_text(name, "an output") for name in _list(content["outputs"], "outputs", MOST_NODES))
    graph = g.Graph(inputs, tuple(node_from_json(node, arrays.get) for node in nodes), outputs)
    arrays.finish()
    check_size(graph, sum(a.nbytes for a in tensors.values()))
    classes = content["classes"]
    if classes is not None:
        classes = [_text(name, "a class") for name in _list(classes, "classes", MOST_CLASSES)]
    preprocessing = content["preprocessing"]
    if preprocessing is not None:
        preprocessing = _preprocessing(preprocessing)
    name, source = _text(content["name"], "its name"), _text(content["source"], "its source")
    return Program(graph, classes=classes, preprocessing=preprocessing, name=name, source=source, threads=threads)


def _preprocessing(value: Any) -> Any:
    from pydantic import ValidationError

    from ..core.task import Preprocessing

    try:
        return Preprocessing.model_validate(value)
    except ValidationError:
        raise ValueError("its preprocessing is not valid") from None


def _list(value: Any, what: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"its {what} are no list of at most {most:,}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise ValueError(f"{what} is no text")
    return value


def _inputs(value: Any) -> dict[str, g.Shape]:
    found: dict[str, g.Shape] = {}
    for entry in _list(value, "inputs", 64):
        if not isinstance(entry, list) or len(entry) != 2:
            raise ValueError("an input is no name with a shape")
        name, shape = _text(entry[0], "an input"), entry[1]
        if not isinstance(shape, list) or not shape or any(type(n) is not int or n > 1 << 31 for n in shape):
            raise ValueError("an input has an impossible shape")
        if name in found:
            raise ValueError("two inputs have one name")
        found[name] = tuple(shape)
    return found


class _Arrays:
    """The arrays of a file, each taken once. Sizes are compared before anything of that size is made."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.taken: set[str] = set()

    def get(self, value: Any) -> g.Array:
        if not isinstance(value, dict) or value.keys() != {"array", "shape"}:
            raise ValueError("is no array")
        name, shape = value["array"], value["shape"]
        if not isinstance(name, str) or not isinstance(shape, list) or not 1 <= len(shape) <= 4:
            raise ValueError("is no array of 1 to 4 dimensions")
        if any(type(size) is not int or not 1 <= size <= 1 << 31 for size in shape):
            raise ValueError("has an impossible shape")
        dense = self.tensors.get(f"dense:{name}")
        if dense is None:
            return self._sparse(name, shape)
        self._take(f"dense:{name}")
        if dense.dtype != np.float32 or list(dense.shape) != shape:
            raise ValueError("does not have the shape or type it claims")
        return dense

    def _sparse(self, name: str, shape: Sequence[int]) -> g.Array:
        values, bits = self.tensors.get(f"values:{name}"), self.tensors.get(f"bits:{name}")
        if values is None or bits is None:
            raise ValueError("is missing")
        self._take(f"values:{name}")
        self._take(f"bits:{name}")
        count = math.prod(shape)
        if values.dtype != np.float32 or bits.dtype != np.uint8 or bits.shape != ((count + 7) // 8,):
            raise ValueError("does not have the bits its shape needs")
        kept = np.unpackbits(bits)
        if kept[count:].any() or values.shape != (int(np.count_nonzero(kept)),):
            raise ValueError("does not have as many values as bits")
        dense = np.zeros(count, np.float32)
        dense[kept[:count].view(np.bool_)] = values
        dense.flags.writeable = False
        return dense.reshape(shape)

    def _take(self, key: str) -> None:
        if key in self.taken:
            raise ValueError("is used twice")
        self.taken.add(key)

    def finish(self) -> None:
        if len(self.taken) != len(self.tensors):
            raise ValueError("there are tensors that nothing uses")
