"""Sparse or dense: the kernel of a product of a convolution, measured where its density alone does not tell.

Both kernels take turns, warm, on one thread and one group of images. What was measured is kept for this machine in
`kernels.json` in the user's cache, so that a later run, or one that goes on, takes the same kernels and gives the same
bits.
"""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import UserError
from ...core.files import canonical_json, locked, write_atomic
from .. import _native
from ..lowering.conv import Kind
from ..lowering.operand import Operand
from ..storage import Buffer, View

MEASURED = 0.4, 0.9
"""Densities between which the faster kernel is measured. Up to the first the sparse one was faster for every layer of
ResNet-50 and EfficientNet-Lite0 in both passes, from the second on the dense one."""
_ROUNDS = 10

Emit = Callable[["_native.Plan", Kind, Operand, View], None]
"""Adds the step of a kind that makes a view out of an operand; its weights stand at the arena's beginning."""


@dataclass(frozen=True)
class Choice:
    kind: Kind
    reason: str = ""  # beside the density


def chosen(isa: str, density: float, weights: int, source: Operand, out: View, emit: Emit) -> Choice:
    """The faster kernel for a product of so many packed weights at the most."""
    if not MEASURED[0] < density < MEASURED[1]:
        return Choice("sparse" if density <= MEASURED[0] else "dense")
    key = _key(density, source, out)
    sparse, dense = known(isa).get(key) or _remembered(isa, key, _timed(isa, weights, source, out, emit))
    if sparse < dense:
        return Choice("sparse", f"{dense / sparse:.2f} times as fast as dense")
    return Choice("dense", f"{sparse / dense:.2f} times as fast as sparse")


def _key(density: float, source: Operand, out: View) -> str:
    made = out.buffer.layout
    assert made is not None
    sizes = f"{out.channels}x{source.channels}x{len(source.taps)}", f"{made.plane[0]}x{made.plane[1]}"
    return " ".join([*sizes, f"{source.phases} phases", f"{made.images} images", f"{round(density * 20) / 20:.2f}"])


def _timed(isa: str, weights: int, source: Operand, out: View, emit: Emit) -> tuple[float, float]:
    """The least seconds of the sparse and of the dense kernel."""
    room = -(-weights // 16) * 16
    read = _alone(source.view, room)
    made = _alone(out, room + read.buffer.floats)
    floats = room + read.buffer.floats + made.buffer.floats
    plans = []
    kinds: tuple[Kind, ...] = ("sparse", "dense")
    for kind in kinds:
        plan = _native.Plan(isa, floats, [], [])
        plan.segment(1)
        emit(plan, kind, replace(source, view=read), made)
        plan.order([(0, 0)])
        plans.append(plan)
    rounds = [[plan.run([], [], 1, True)[0] for plan in plans] for _ in range(_ROUNDS)]
    sparse, dense = (min(taken) for taken in zip(*rounds[1:], strict=True))
    return sparse, dense


def _alone(view: View, offset: int) -> View:
    """The same view of a buffer that holds one group only."""
    b = view.buffer
    return replace(view, buffer=Buffer(b.layout, b.channels, b.images, b.halo, offset=offset))


# -- what this machine remembers ----------------------------------------------------------------------------


def file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "budwood" / "kernels.json"


@functools.cache
def machine() -> str:
    """The processor's name, as far as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{platform.machine()} {platform.processor()}".strip()


Seconds = dict[str, tuple[float, float]]
"""Of the sparse and of the dense kernel, by the kind of product."""
_here: dict[tuple[Path, str], Seconds] = {}


KERNELS = 2
"""Raised where they or their tilings change so much that other times are to be expected."""


def _name(isa: str) -> str:
    return f"{machine()}, {isa}, kernels {KERNELS}"


def known(isa: str) -> Seconds:
    """What was measured on this machine with an instruction set."""
    path, name = file(), _name(isa)
    if (path, name) not in _here:
        _here[path, name] = _read(path).get(name, {})
    return _here[path, name]


def _remembered(isa: str, key: str, seconds: tuple[float, float]) -> tuple[float, float]:
    """What is kept from now on: the same, or what another process has measured meanwhile."""
    path, name = file(), _name(isa)
    with suppress(UserError, OSError):  # a cache that cannot be written: then for this process alone
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), wait=True):
            every = _read(path)
            seconds = every.setdefault(name, {}).setdefault(key, seconds)
            write_atomic(path, canonical_json(every))
    known(isa)[key] = seconds
    return seconds


def _read(path: Path) -> dict[str, Seconds]:
    """What is sound in the file."""
    try:
        every = json.loads(path.read_text())
        named = {name: dict(seen) for name, seen in every.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    found: dict[str, Seconds] = {name: {} for name in named}
    for name, seen in named.items():
        for key, pair in seen.items():
            with suppress(TypeError, ValueError):
                sparse, dense = map(float, pair)
                if sparse > 0 and dense > 0:
                    found[name][key] = sparse, dense
    return found
