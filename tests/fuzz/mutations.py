"""Damage to the bytes of a file, as transmission, a bad disk or an ill will might do it."""

from __future__ import annotations

import random
from collections.abc import Callable

EXTREMES = (
    *(-(2**63), -(2**40), -(2**31), -(2**16), -129, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 64, 255, 256, 1000),
    *(2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1),
)


def mutations(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four damages; may be empty, and at most 64 kB longer."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(DAMAGES)(made, rng)
    return bytes(made)


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _random_bytes(data: bytearray, rng: random.Random) -> None:
    at, size = _piece(data, rng, 16)
    data[at : at + size] = rng.randbytes(size)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randint(0, len(data)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at, size = _piece(data, rng, 256)
    del data[at : at + size]


def _splice(data: bytearray, rng: random.Random) -> None:
    """A piece from elsewhere, written over or put in between."""
    at, size = _piece(data, rng, 512)
    there = rng.randint(0, len(data))
    data[there : there + rng.choice((0, size))] = data[at : at + size]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at, size = _piece(data, rng, 512)
    times = rng.choice((1, 2, 10, 100))
    data[at:at] = data[at : at + size] * times


def _extreme(data: bytearray, rng: random.Random) -> None:
    """A whole number of 1 to 8 bytes, in either order of bytes, as large or as small as it can be."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(EXTREMES) % (1 << 8 * size)
    at = rng.randint(0, len(data))
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _varint(data: bytearray, rng: random.Random) -> None:
    """The same in protobuf's notation, over as many bytes as it takes."""
    value, code = rng.choice(EXTREMES) % (1 << 64), bytearray()
    while value > 127:
        code.append(value & 127 | 128)
        value >>= 7
    code.append(value)
    at = rng.randint(0, len(data))
    data[at : at + rng.choice((0, 1, len(code)))] = code


def _digits(data: bytearray, rng: random.Random) -> None:
    """A number written in text, as JSON has it."""
    places = [i for i, byte in enumerate(data[: 1 << 16]) if 48 <= byte <= 57]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = str(rng.choice(EXTREMES)).encode()


def _piece(data: bytearray, rng: random.Random, longest: int) -> tuple[int, int]:
    at = rng.randint(0, len(data))
    return at, rng.randint(0, min(longest, len(data) - at))


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _flip,
    _random_bytes,
    _truncate,
    _remove,
    _splice,
    _repeat,
    _extreme,
    _varint,
    _digits,
)
