"""Damaged programs and checkpoints: each must be refused by a UserError of one line, or be one that works."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch

from budwood.core import checkpoint as c
from budwood.core.files import digest_of, metadata_of
from budwood.core.mask import Mask
from budwood.core.task import Preprocessing
from budwood.engine import graph as g
from budwood.engine import saved
from budwood.engine.program import Program
from budwood.testing.graphs import random_graph

from .mutations import EXTREMES, mutations

RUNNABLE = 1 << 18
"""Multiplications and numbers in all values of a graph that is run for a test."""


def targets() -> dict[str, Callable[[random.Random], None]]:
    return {
        "program-bytes": lambda rng: read_program(mutations(rng.choice(programs()), rng)),
        "program-structure": lambda rng: read_program(damaged_program(rng)),
        "checkpoint-bytes": lambda rng: read_checkpoint(mutations(rng.choice(checkpoints()), rng)),
        "checkpoint-structure": lambda rng: read_checkpoint(damaged_checkpoint(rng)),
    }


# -- programs -------------------------------------------------------------------------------------------------


def read_program(data: bytes) -> None:
    """Reads a program, makes a plan of it, and runs it if it is small."""
    program = saved.unpack(data, "the file", threads=1)
    program.plan(1)
    graph = program.graph
    if sum(math.prod(shape) * _work(graph.node(name)) for name, shape in graph.shapes.items()) > RUNNABLE:
        return
    found = program(*(np.ones((2, *shape), np.float32) for shape in program.input_shapes))
    for value, shape in zip(found if isinstance(found, list) else [found], program.output_shapes, strict=True):
        assert value.shape == (2, *shape), (value.shape, shape)


def _work(node: g.Node | None) -> int:
    """About how many numbers one number of a value takes."""
    if isinstance(node, g.Conv):
        return math.prod(node.weight.shape[1:]) + sum(node.padding)
    if isinstance(node, g.Pool):
        return math.prod(node.kernel) + sum(node.padding)
    return 1


@functools.cache
def programs() -> tuple[bytes, ...]:
    """Small ones that hold every kind of node."""
    preprocessing = Preprocessing(size=8, resize=9)
    graphs = [random_graph(seed, steps=4) for seed in range(12)]
    graphs = sorted(graphs, key=lambda graph: len(graph.nodes))[:8]
    made = [saved.pack(Program(graph, preprocessing=preprocessing, name="net")) for graph in graphs]
    weight = np.eye(3, 12, dtype=np.float32)
    nodes = (g.Flatten("f", ("x",)), g.Linear("fc", ("f",), weight, weight[0, :3]))
    classifier = g.Graph({"x": (3, 2, 2)}, nodes, ("fc",))
    return (*made, saved.pack(Program(classifier, classes=("a", "b", "c"))))


def damaged_program(rng: random.Random) -> bytes:
    """Behind an intact header, and with a digest that is right."""
    data = rng.choice(programs())
    text = (metadata_of(data) or {})[saved.KEY].partition(" ")[2]
    content, tensors = json.loads(text), {name: array.copy() for name, array in saved._tensors(data).items()}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if tensors and rng.random() < 0.3:
            _damage_array(tensors, rng)
        else:
            content = _damage_json(content, rng)
    try:
        return saved.seal(content, tensors)
    except ValueError:  # NaN, which our JSON does not have
        return data


def _damage_array(tensors: dict[str, np.ndarray], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    array = tensors[name]
    match rng.randrange(8):
        case 0:
            del tensors[name]
        case 1:
            tensors[rng.choice(["dense:", "values:", "bits:", ""]) + name.partition(":")[2]] = tensors.pop(name)
        case 2:
            with np.errstate(invalid="ignore", over="ignore"):
                tensors[name] = array.astype(rng.choice(["f4", "f8", "i4", "u1", "f2", "?"]))
        case 3:
            tensors[name] = array.reshape(-1)[: rng.randint(0, array.size)]
        case 4:
            tensors[name] = np.concatenate([array.reshape(-1)] * 2)
        case 5 if array.size:
            flat = array.reshape(-1).view(np.uint8)
            flat[rng.randrange(flat.size)] ^= 1 << rng.randrange(8)
        case 6:
            tensors[f"dense:{rng.randrange(3)}"] = array
        case _ if array.size and array.dtype == np.float32:
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice((math.nan, math.inf, -0.0, 0.0, 1e38))


# -- checkpoints ----------------------------------------------------------------------------------------------


def read_checkpoint(data: bytes) -> None:
    """Reads a checkpoint and writes it again."""
    found = c.unpack(data, "the file")
    assert found.mask.holds(found.state)
    assert c.unpack(c.pack(found), "the file").digest() == found.digest()


@functools.cache
def checkpoints() -> tuple[bytes, ...]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for dtype, density in ((torch.float32, 0.3), (torch.bfloat16, 0.6), (torch.float64, 1.0)):
        state = {
            "conv.weight": torch.randn(4, 3, 3, 3, generator=generator).to(dtype),
            "bn.num_batches_tracked": torch.tensor(17),
            "fc.weight": torch.randn(3, 4, generator=generator).to(dtype),
        }
        mask = Mask(
            {n: torch.rand(state[n].shape, generator=generator) < density for n in ("conv.weight", "fc.weight")}
        )
        mask.apply_(state)
        lineage = c.Lineage(
            architecture="torchvision:resnet18", num_classes=3, classes=("a", "b", "c"), method="gmp",
            preprocessing=Preprocessing(), options={"schedule": {"end": 0.5}},
        )  # fmt: skip
        made.append(c.pack(c.Checkpoint(state, mask, lineage)))
    return tuple(made)


def damaged_checkpoint(rng: random.Random) -> bytes:
    """Behind an intact header; most with digests that are right, where there can be any."""
    data = rng.choice(checkpoints())
    stored, tensors = json.loads((metadata_of(data) or {})["budwood"]), safetensors.torch.load(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.5:
            _damage_tensor(tensors, rng)
        else:
            stored = _damage_json(stored, rng)
    if rng.random() < 0.8 and isinstance(stored, dict):
        _sign(stored, tensors)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(tensors, metadata={"budwood": json.dumps(stored)})


def _sign(stored: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    try:
        state, entries = c._unpack_tensors(tensors, stored["shapes"], ValueError)
        mask = Mask(entries)
        stored["mask_digest"], stored["sparsity"] = mask.digest(), mask.sparsity
        stored["content_digest"] = c.content_digest(state, mask)
        stored["lineage_digest"] = digest_of(c.Lineage(**stored["lineage"]).model_dump(mode="json"))
    except Exception:
        return  # what is damaged so far has no digests


def _damage_tensor(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors) or [""])
    tensor = tensors.get(name, torch.zeros(1))
    match rng.randrange(7):
        case 0:
            tensors.pop(name, None)
        case 1:
            kind = rng.choice(["dense:", "values:", "bits:", ""])
            tensors[kind + name.partition(":")[2]] = tensors.pop(name, tensor)
        case 2:
            kinds = (torch.float32, torch.float64, torch.uint8, torch.bool, torch.bfloat16, torch.int64, torch.float16)
            tensors[name] = tensor.to(rng.choice(kinds))
        case 3:
            tensors[name] = tensor.reshape(-1)[: rng.randint(0, tensor.numel())]
        case 4:
            tensors[name] = torch.cat([tensor.reshape(-1)] * 2)
        case 5 if tensor.numel():
            flat = tensor.contiguous().reshape(-1).view(torch.uint8)
            flat[rng.randrange(len(flat))] ^= 1 << rng.randrange(8)
            tensors[name] = tensor
        case _:
            tensors[f"dense:{rng.randrange(3)}"] = tensor


# -- JSON -----------------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    *EXTREMES, None, True, False, "", "x", "\x1b[2J\n", "é" * 5000, [], {}, [[]], 0.5, -0.0, 1e308, "inf", "nan",
    {"array": "x", "shape": [1]}, {"kind": "clamp"},
)  # fmt: skip


def _damage_json(value: Any, rng: random.Random) -> Any:
    """The value with one change somewhere: another value, an entry less or more, two of them changed round."""
    places: list[tuple[Any, Any]] = []
    _collect(value, places)
    if not places:
        return rng.choice(ODD)
    holder, key = rng.choice(places)
    other, other_key = rng.choice(places)
    match rng.randrange(8):
        case 0 | 1 | 2:
            holder[key] = rng.choice(ODD)
        case 3:
            del holder[key]
        case 4:
            holder[key] = json.loads(json.dumps(other[other_key]))
        case 5 if isinstance(holder, list):
            holder.insert(key, json.loads(json.dumps(holder[key])))
        case 6 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] += rng.choice((-1, 1, -2, 7))
        case _ if isinstance(holder, dict):
            holder[rng.choice(("op", "name", "weight", "groups", "size", "shape", "x"))] = holder[key]
    return value


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    """Every (list or object, index or key) in the value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        places.append((value, key))
        _collect(value[key], places)
