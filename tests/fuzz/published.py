"""Damaged checkpoints of the pruning papers: each must give tensors that fit its masks, or a UserError of one line."""

from __future__ import annotations

import functools
import io
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budwood.models.files import read
from budwood.models.published import deep_compression as dc

from .mutations import EXTREMES, mutations


def targets() -> dict[str, Callable[[random.Random], None]]:
    return {
        "net-bytes": lambda rng: read_as("w.net", mutations(squeezenet(), rng)),
        "net-structure": lambda rng: read_as("w.net", damaged_squeezenet(rng)),
        "npz-bytes": lambda rng: read_as("w.npz", mutations(arrays(), rng)),
        "bundle-bytes": lambda rng: read_as("w.index", mutations(bundled(), rng)),
        "layout-structure": lambda rng: read_as("w.pth", damaged_layout(rng)),
    }


def read_as(name: str, data: bytes) -> None:
    torch.set_num_threads(1)  # this is a forked process, and the threads of its parent are not in it
    path = Path(folder().name, name)
    path.write_bytes(data)
    found = read(path)
    for weight, kept in found.kept.items():
        assert kept.dtype == torch.bool and kept.shape == found.state[weight].shape, weight


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def squeezenet() -> bytes:
    """Every layer stores some entries, in the first bytes of its places."""
    rng = random.Random(0)
    counts, bodies = [], []
    for layer in dc.LAYERS:
        outputs, count = dc._shapes()[f"{layer}.weight"][0], rng.randint(1, 40)
        values = [0.0, *(rng.uniform(-1, 1) for _ in range(255))]
        counts.append(count)
        bodies.append(struct.pack("<256f", *values) + bytes(4 * outputs) + rng.randbytes(count + (count + 1) // 2))
    return struct.pack("<26I", *counts) + b"".join(bodies)


def damaged_squeezenet(rng: random.Random) -> bytes:
    """Of the length that its damaged counts ask for, as far as that is below 4 MB."""
    made = bytearray(squeezenet())
    for _ in range(rng.choice((1, 1, 2))):
        count = rng.choice((*EXTREMES, rng.randrange(200_000))) % (1 << 32)
        struct.pack_into("<I", made, 4 * rng.randrange(26), count)
    claimed = dc._claimed(bytes(made)) or 0
    filler = rng.choice((b"\0", b"\xff", b"\x5a"))
    return bytes(made[:claimed]) + filler * max(0, min(claimed, 1 << 22) - len(made))


@functools.cache
def arrays() -> bytes:
    buffer = io.BytesIO()
    generator = np.random.default_rng(0)
    names = ("layer/conv1.weight", "fc.weight", "global_step")
    shapes = ((7, 7, 3, 4), (3, 4, 1, 1), ())
    np.savez(buffer, **{n: np.asarray(generator.random(s), np.float32) for n, s in zip(names, shapes, strict=True)})
    return buffer.getvalue()


@functools.cache
def bundled() -> bytes:
    """The index of a checkpoint of TensorFlow's, its values written beside what is read."""
    prefix = Path(__file__).parents[1] / "golden/tensorflow/model.ckpt-7"
    index, values = (prefix.with_name(prefix.name + end).read_bytes() for end in (".index", ".data-00000-of-00001"))
    Path(folder().name, "w.data-00000-of-00001").write_bytes(values)
    return index


ODD: tuple[Callable[[], Any], ...] = (
    lambda: torch.zeros(()), lambda: torch.zeros(0), lambda: torch.ones(4, 3), lambda: torch.ones(4, 3, 1, 1),
    lambda: torch.full((4, 3, 1, 1), float("nan")), lambda: torch.ones(4, 3, 1, 1, dtype=torch.int64),
    lambda: torch.ones(4, 3, 1, 1, dtype=torch.bool), lambda: torch.ones(4, 3, 1, 1, dtype=torch.complex64),
    lambda: torch.ones(4, 3).to_sparse(), lambda: torch.ones(1).expand(1 << 20, 1 << 20), lambda: {}, lambda: "x",
    lambda: torch.ones(4, 3, device="meta"), lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    lambda: torch.ones(4, 3, 1, 1, dtype=torch.float8_e4m3fn), lambda: torch.ones(4, 3, 1, 1, dtype=torch.bfloat16),
)  # fmt: skip
NAMES = (
    "conv1._layer.weight", "conv1._weight_mask", "conv1._bias_mask", "conv1._layer.bias", "conv1.weight",
    "conv1.sparseThreshold", "fc.weight", "fc.bias", "fc.sparseThreshold", "fc._layer.weight", "input.conv.weight",
    "sections.0.0.conv1.weight", "sections.9.x.identity.bn.weight", "initial_conv.conv.weight",
    "layer1.block.0.conv1.conv.weight", "resnet_model/initial_conv/weights", "resnet_model/initial_conv/mask",
    "model.13.3.weight", "model.0.0.weight", "model.14.0.weight", "features.12.3.weight", "conv1.0.weight",
)  # fmt: skip


def damaged_layout(rng: random.Random) -> bytes:
    """Some of the names of every layout, with what does not belong to them."""
    state = {name: torch.ones(4, 3, 1, 1) for name in rng.sample(NAMES, rng.randint(1, 6))}
    for name in rng.sample(NAMES, rng.randint(1, 4)):
        state[name] = rng.choice(ODD)()
    buffer = io.BytesIO()
    wrapper = {rng.choice(("state_dict", "model_state_dict")): state, "recipe": rng.choice((3, "!x"))}
    torch.save(rng.choice((wrapper, state)), buffer)
    return buffer.getvalue()
