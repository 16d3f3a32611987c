"""python -m tests.fuzz [TARGET ...] --count N: what damaged files come to.

A file that is read is accepted; a UserError of one line refuses it. All else is a failure: any other exception,
a crash, ten seconds, or a gigabyte. Cases are numbered, and a number always makes the same file:

    python -m tests.fuzz onnx-structure --first 1234 --count 1
"""

from __future__ import annotations

import argparse
import collections
import importlib
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from budwood.core.errors import UserError

Target = Callable[[random.Random], None]
SECONDS = 10
BYTES = 1 << 30
CHUNK = 500  # cases a process


class TooLong(BaseException):
    """Not an Exception, lest what is tested should catch it."""


def all_targets() -> dict[str, Target]:
    """Those of every module beside this one that has any."""
    found: dict[str, Target] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in ("__init__", "__main__", "mutations") or path.stem.startswith("test_"):
            continue
        module = importlib.import_module(f".{path.stem}", __package__)
        found.update(module.targets())
    return found


def outcome(name: str, target: Target, number: int) -> tuple[str, str]:
    """("accepted" | "refused" | "failed", what is to be said about a failure)."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target(random.Random(f"{name}:{number}"))
        return "accepted", ""
    except UserError as error:
        text = str(error)
        if isinstance(error.__context__, MemoryError):
            return "failed", f"out of memory: {text}"
        plain = text.isprintable() and 0 < len(text) < 4000
        return ("refused", text) if plain else ("failed", f"a message of {len(text)} characters: {text[:200]!r}")
    except (Exception, TooLong):
        return "failed", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(name: str, target: Target, first: int, count: int) -> Iterator[tuple[int, str, str]]:
    """(number, outcome, text) of every case; each few hundred in a process of their own, which may crash."""
    number = first
    while number < first + count:
        last = min(number + CHUNK, first + count)
        at = mmap.mmap(-1, 8)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _in_child(name, target, range(number, last), at, writing)
        os.close(writing)
        with os.fdopen(reading, errors="replace") as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        for record in text.split("\0"):
            if record:
                case, kind, said = record.split("\t", 2)
                yield int(case), kind, said
        number = last
        if status:
            (case,) = struct.unpack("q", at[:8])
            yield case, "failed", f"the process ended with status {status}"
            number = case + 1


def _in_child(name: str, target: Target, numbers: range, at: mmap.mmap, pipe: int) -> None:
    """Runs the cases and ends the process."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, _too_long)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        for number in numbers:
            at[:8] = struct.pack("q", number)
            kind, text = outcome(name, target, number)
            os.write(pipe, f"{number}\t{kind}\t{text}\0".encode(errors="replace"))
        status = 0
    finally:
        os._exit(status)


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise TooLong(f"after {SECONDS} seconds")


def main() -> int:
    targets = all_targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"begins of {', '.join(targets)}; all by default")
    parser.add_argument("--count", type=int, default=1000, help="damaged files a target")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where failures are written")
    parser.add_argument("--show", action="store_true", help="print the refusals, most frequent first")
    options = parser.parse_args()
    failures = 0
    for name, target in targets.items():
        if options.targets and not any(name.startswith(wanted) for wanted in options.targets):
            continue
        start, counts, said = time.monotonic(), collections.Counter[str](), collections.Counter[str]()
        for number, kind, text in run(name, target, options.first, options.count):
            counts[kind] += 1
            said[text[:160]] += kind == "refused"
            if kind == "failed":
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / f"{name}-{number}.txt").write_text(f"{name} {number}\n{text}\n")
        rate = sum(counts.values()) / max(time.monotonic() - start, 1e-9)
        told = ", ".join(f"{counts[kind]} {kind}" for kind in ("accepted", "refused", "failed"))
        print(f"{name}: {told}; {rate:.0f} a second", flush=True)
        for text, times in said.most_common(60 if options.show else 0):
            print(f"  {times:6d}  {text}")
        failures += counts["failed"]
    if failures:
        print(f"failures are in {options.out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
