"""Looking once at every file: is it an image, how is it stored, and what is the digest of its bytes."""

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from .images import Fault, ImageError, decode


@dataclass(frozen=True)
class Inspected:
    """What one file is. `sha256` is of its bytes; `fault` is None for a usable image, and `reason` says more.

    `format` and `mode` are Pillow's words, `orientation` is EXIF's 1..8, `deep` means more than 8 bits a channel.
    """

    sha256: str
    fault: Fault | None = None
    reason: str = ""
    format: str = ""
    mode: str = ""
    orientation: int = 1
    deep: bool = False


def inspect(paths: Sequence[Path]) -> list[Inspected]:
    """Read, hash and decode every file once, on all processors, in the order given.

    A file already seen by this process, with the same size and time of change, is not read again.
    """
    with ThreadPool(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
        return pool.map(_inspect, paths, chunksize=16)


def hashed(paths: Sequence[Path]) -> list[str]:
    """sha256 (hex) of every file's bytes, on all processors, in the order given; quicker than decoding them.

    OSError where one cannot be read.
    """
    with ThreadPool(os.cpu_count()) as pool:
        return pool.map(_sha256, paths, chunksize=16)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inspect(path: Path) -> Inspected:
    try:
        status = path.stat()
        return _inspect_once(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        return Inspected("", "unreadable", error.strerror or str(error))


@functools.lru_cache(maxsize=1 << 18)
def _inspect_once(path: Path, size: int, mtime_ns: int) -> Inspected:
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        found = decode(data, path)
    except ImageError as error:
        return Inspected(sha256, error.fault, error.reason)
    return Inspected(sha256, None, "", found.format, found.mode, found.orientation, found.deep)
