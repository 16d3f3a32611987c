"""SqueezeNet 1.0 pruned and quantised by Deep Compression.

Source: songhan/SqueezeNet-Deep-Compression, decode.py, SqueezeNet_deploy.prototxt, compressed_SqueezeNet.net.

Little endian, without any signature; layers in the order conv1; of fire2 to fire9 squeeze, expand 1x1, expand 3x3;
the last convolution (26 in all):

    26 x uint32                counts: how many entries each layer stores
    and for each layer
      256 x float32            its code book; value 0 is zero
      outputs x float32        biases
      count x uint8            entries: indices into the code book
      (count + 1) // 2 bytes   a gap of 4 bits for each entry, the low half first

The place of an entry in the flat weight (outputs, inputs, height, width) is that of the one before plus gap plus 1,
from -1 on. An entry with index 0 is filler, where a gap takes more than 4 bits. What has no entry is pruned.

The network is Caffe's, for BGR images of 0 to 255 minus (104, 117, 123), 227 pixels. Here conv1's input channels are
turned round to RGB, and mean and deviation say the rest. Caffe pads the last, 1x1, convolution by one pixel and so
averages a border of ReLU(bias) in; torchvision's does not, which changes the answer for 4 of 1000 photographs.
"""

import functools
import math
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from ...core.errors import UserError
from ...core.task import Preprocessing
from .contents import Contents

VALUES = 256
FIRE = (3, 4, 5, 7, 8, 9, 10, 12)
"""Where torchvision's `features` has fire2 to fire9."""
LAYERS = (
    "features.0",
    *(f"features.{at}.{part}" for at in FIRE for part in ("squeeze", "expand1x1", "expand3x3")),
    "classifier.1",
)
PREPROCESSING = Preprocessing(size=227, resize=256, mean=(123 / 255, 117 / 255, 104 / 255), std=(1 / 255,) * 3)


def fits(data: bytes, path: Path) -> bool:
    """By its suffix or, since it has no signature, by a size that its own counts account for."""
    named = path.suffix.lower() == ".net" and not data.startswith((b"PK\x03\x04", b"\x80"))  # as PyTorch's begin
    return named or (len(data) < 1 << 24 and _claimed(data) == len(data))


def read(data: bytes, where: str) -> Contents:
    state, kept = decode(data, where)
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    kept["features.0.weight"] = kept["features.0.weight"].flip(1)
    return Contents(
        state, where, kept=kept, architecture="torchvision:squeezenet1_0", preprocessing=PREPROCESSING,
        method="deep-compression",
    )  # fmt: skip


def decode(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors in torchvision's names, masks by the weights' names); conv1 still takes BGR.

    Raises UserError where the bytes are not exactly such a file. All sizes are checked before a layer is made.
    """
    shapes = _shapes()
    counts = _counts(data)
    if counts is None or _claimed(data) != len(data):
        raise UserError(f"{where} is not a whole file of Deep Compression's SqueezeNet; make or copy it again")
    state: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    stream = memoryview(data)[4 * len(LAYERS) :]
    for layer, count in zip(LAYERS, counts, strict=True):
        shape = shapes[f"{layer}.weight"]
        parts = []
        for size in (4 * VALUES, 4 * shape[0], count, (count + 1) // 2):
            parts.append(stream[:size])
            stream = stream[size:]
        values, biases = np.frombuffer(parts[0], "<f4"), np.frombuffer(parts[1], "<f4")
        codes = _codes(np.frombuffer(parts[2], "u1"), np.frombuffer(parts[3], "u1"), math.prod(shape))
        if codes is None:
            raise UserError(f"{where} is damaged (entries past the end of {layer}); make or copy it again")
        if values[0] != 0 or not np.isfinite(values).all() or not np.isfinite(biases).all():
            raise UserError(f"{where} is damaged (the values of {layer}); make or copy it again")
        state[f"{layer}.weight"] = torch.from_numpy(values.astype(np.float32)[codes]).reshape(shape)
        state[f"{layer}.bias"] = torch.from_numpy(biases.astype(np.float32))
        kept[f"{layer}.weight"] = torch.from_numpy(codes != 0).reshape(shape)
    return state, kept


def _codes(entries: np.ndarray, gaps: np.ndarray, total: int) -> np.ndarray | None:
    """Index into the code book of each of `total` weights; None where an entry lies past the last."""
    if len(entries) > total:
        return None
    each = np.stack([gaps & 15, gaps >> 4], axis=1).reshape(-1)[: len(entries)]
    places = np.cumsum(each.astype(np.int64) + 1) - 1
    if len(places) and places[-1] >= total:
        return None
    codes = np.zeros(total, np.uint8)
    codes[places] = entries
    return codes


def _counts(data: bytes) -> list[int] | None:
    head = data[: 4 * len(LAYERS)]
    return [int(count) for count in np.frombuffer(head, "<u4")] if len(head) == 4 * len(LAYERS) else None


def _claimed(data: bytes) -> int | None:
    """How many bytes a file with these counts has."""
    counts = _counts(data)
    if counts is None:
        return None
    fixed = sum(4 + 4 * VALUES + 4 * _shapes()[f"{layer}.weight"][0] for layer in LAYERS)
    return fixed + sum(count + (count + 1) // 2 for count in counts)


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """Of the weights of torchvision's squeezenet1_0."""
    with torch.device("meta"):
        module = torchvision.models.squeezenet1_0()
    return {name: tuple(value.shape) for name, value in module.named_parameters()}
