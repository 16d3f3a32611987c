"""TensorFlow's checkpoints: PREFIX.index, a table of names, beside PREFIX.data-00000-of-00001, their values.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc, core/protobuf/tensor_bundle.proto, core/lib/io/format.cc
and table_builder.cc.

The table is LevelDB's. Its last 48 bytes are two handles (of a block that is not used here, and of the block of blocks;
offset and length as varints), zeros, and a magic number. A block holds entries, then the places of some of them and
their number (32 bits each); behind it a byte says how it is packed (0: not), and 4 are a checksum, which is not looked
at. An entry is three varints: how many bytes of its key are those of the key before, how many others follow, how long
its value is. The values in the block of blocks are handles.

The first key is empty, and its value a BundleHeaderProto: 1 number of data files, 2 byte order (0: little). The others
are names of variables, and their values BundleEntryProtos: 1 type, 2 shape (2 dimension (1 size)), 3 number of the data
file, 4 offset, 5 bytes; 7 if the variable is stored in slices.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
FOOTER = 48
SUFFIX = ".index"
LONGEST = 1024
"""Bytes of a name. With keys of any length a small file could make many long ones."""
MOST_AXES = 8
Message = dict[int, list[int | bytes]]
TYPES = {
    1: torch.float32, 2: torch.float64, 3: torch.int32, 4: torch.uint8, 5: torch.int16, 6: torch.int8, 9: torch.int64,
    10: torch.bool, 14: torch.bfloat16, 19: torch.float16,
}  # fmt: skip
"""TensorFlow's numbers of its types; variables of others (texts) are left out."""


def fits(data: bytes) -> bool:
    """A table of TensorFlow's, or of LevelDB's."""
    return len(data) >= FOOTER and data.endswith(MAGIC)


def read(data: bytes, path: Path) -> dict[str, Tensor]:
    """Every variable of numbers by its name. `data` is the content of `path`, the .index file.

    Raises UserError where a file is missing or damaged.
    """
    try:
        entries = dict(_entries(data))
        if b"" not in entries:
            raise ValueError("it has no header")
        header = _message(entries.pop(b""))
        shards = _number(header, 1)
        if _number(header, 2) or not 0 < shards < 10**5:
            raise ValueError("it is of another byte order, or has no data file")
        files = [_data_file(path, shard, shards) for shard in range(shards if entries else 0)]
        room = sum(len(file) for file in files)
        found: dict[str, Tensor] = {}
        for name, value in entries.items():
            entry = _message(value)
            if (kind := TYPES.get(_number(entry, 1))) is None:
                continue
            if (room := room - _number(entry, 5)) < 0 or _number(entry, 3) >= shards:
                raise ValueError("it claims more than its data files hold")
            found[name.decode()] = _tensor(entry, files[_number(entry, 3)], kind)
        return found
    except ValueError as error:
        raise UserError(f"{path} is a damaged checkpoint of TensorFlow's ({error}); copy it again") from None


def _data_file(path: Path, shard: int, shards: int) -> np.ndarray:
    place = path.with_name(f"{path.name.removesuffix(SUFFIX)}.data-{shard:05}-of-{shards:05}")
    try:
        return np.fromfile(place, np.uint8)
    except OSError as error:
        raise UserError(f"{path} needs {place.name} beside it: {error.strerror or error}") from None


def _tensor(entry: Message, values: np.ndarray, kind: torch.dtype) -> Tensor:
    if 7 in entry:
        raise ValueError("a variable is stored in slices")
    sides = [part for shape in entry.get(2, []) for part in _message(_text(shape)).get(2, [])]
    shape = [_number(_message(_text(side)), 1) for side in sides]
    if len(shape) > MOST_AXES or math.prod(max(side, 1) for side in shape) >= 2**40:
        raise ValueError("a variable is of no shape")
    offset, size = _number(entry, 4), _number(entry, 5)
    if math.prod(shape) * kind.itemsize != size or len(part := values[offset : offset + size]) != size:
        raise ValueError("a variable is not of its size")
    return torch.from_numpy(part.copy()).view(kind).reshape(shape) if size else torch.empty(shape, dtype=kind)


# -- the table ------------------------------------------------------------------------------------------------


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    _, _, at = _handle(data, len(data) - FOOTER)
    offset, size, _ = _handle(data, at)
    room = len(data)
    for _, handle in _block(data, offset, size):
        offset, size, _ = _handle(handle, 0)
        if (room := room - size) < 0:
            raise ValueError("its blocks overlap")
        yield from _block(data, offset, size)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of every entry."""
    block, packed = data[offset : offset + size], data[offset + size : offset + size + 1]
    if len(block) < max(size, 4) or packed != b"\0":
        raise ValueError("a block is cut short, or packed")
    at, end, key = 0, size - 4 - 4 * int.from_bytes(block[-4:], "little"), b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or shared + fresh > LONGEST or at + fresh + length > end:
            raise ValueError("an entry is not of its length")
        key = key[:shared] + block[at : at + fresh]
        at += fresh + length
        yield key, block[at - length : at]


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Offset and length of a block, and where the handle ends."""
    offset, at = _varint(data, at)
    return offset, *_varint(data, at)


# -- the messages ---------------------------------------------------------------------------------------------


def _message(data: bytes) -> Message:
    """The fields of a protocol buffer, each with all its values."""
    found: Message = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: int | bytes
        if (wire := tag & 7) == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            size, at = (8, at) if wire == 1 else (4, at) if wire == 5 else _varint(data, at)
            if at + size > len(data):
                raise ValueError("a message is cut short")
            value, at = data[at : at + size], at + size
        else:
            raise ValueError("a message is of no known kind")
        found.setdefault(tag >> 3, []).append(value)
    return found


def _number(message: Message, field: int) -> int:
    """Of a field that is a number; 0 where it is not there. The last one counts."""
    value = message.get(field, [0])[-1]
    if not isinstance(value, int):
        raise ValueError("a message holds a text for a number")
    return value


def _text(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a message holds a number for a text")
    return value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        value |= (data[at] & 127) << shift
        at += 1
        if not data[at - 1] & 128:
            return value, at
    raise ValueError("a number does not end")
