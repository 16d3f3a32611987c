"""Files: written so that a reader never sees half of one, read with suspicion; and content named by its digest."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .errors import UserError

MAX_BYTES = 16 * 2**30
"""A file larger than this is refused unread: no CNN needs it."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` through a temporary file beside it: fsync, then rename.

    Raises UserError where the folder cannot be written or the disk is full; `path` then is as it was.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free space or choose another place") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the file `path` as a lock, which a killed process lets go of; it is gone afterwards. A process that is
    forked in the meantime (a loader of images) does not hold it.

    Raises UserError where another process holds it, unless told to wait.
    """
    while True:
        with _opened(path) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                raise UserError(
                    f"another process is at work in {path.parent}; wait for it, or name another folder with --out"
                ) from None
            if _is(file, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            # Another process has held this very file until now, and removed it.


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free space or choose another place") from None


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def read_bytes(path: Path, what: str = "checkpoint") -> bytes:
    """The file's content; UserError where it is missing, a folder, empty or absurdly large."""
    try:
        if not path.exists():
            raise UserError(f"no file at {path}; check the path")
        if path.is_dir():
            raise UserError(f"{path} is a folder; name the {what} file in it")
        size = path.stat().st_size
        if size == 0 or size > MAX_BYTES:
            raise UserError(f"{path} has {size} bytes: not a {what}; make or copy it again")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None


def metadata_of(data: bytes) -> dict[str, str] | None:
    """The `__metadata__` of a safetensors file's bytes, None where this is no safetensors file."""
    if len(data) < 8:
        return None
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(len(data) - 8, 100_000_000):
        return None
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.get("__metadata__", {})
        return metadata if isinstance(metadata, dict) else {}
    except (ValueError, AttributeError, RecursionError):
        return None


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV; the columns are those of any row, in the order in which they first appear."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 (hex) of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
