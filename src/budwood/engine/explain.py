"""Where a program's time goes, layer by layer: measured as rows, then written as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .graph import Shape

if TYPE_CHECKING:
    from .lower import StepInfo
    from .program import Program


@dataclass(frozen=True)
class Row:
    """A step of the plan. `ms` an image; `rate` in GFLOP/s of non-zero weights; `share` of the ceiling, 0 to 1.

    `name` is the value's in the graph, `source` the module that made it, where one is known.
    """

    name: str
    source: str
    op: str
    shape: Shape
    sparsity: float
    kernel: str
    reason: str
    flops: float
    ms: float
    rate: float
    share: float


@dataclass(frozen=True)
class Profile:
    """`ms` is the median of whole runs, an image; `ceiling` is the rate of multiply-adds alone, in GFLOP/s."""

    name: str
    batch: int
    threads: int
    isa: str
    rounds: int
    rows: tuple[Row, ...]
    ms: float
    flops: float
    ceiling: float

    @property
    def rate(self) -> float:
        """GFLOP/s of non-zero weights, of the whole."""
        return _rate(self.flops, self.ms)


def profile(program: Program, batch: int, rounds: int) -> Profile:
    """Run the plan for `batch` images `rounds` times, on random images, and take medians."""
    from .native import instruction_set, peak

    plan = program.plan(batch)
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((batch, *shape), np.float32) for shape in program.input_shapes]
    outputs = [np.empty((batch, *shape), np.float32) for shape in program.output_shapes]
    for _ in range(2):
        plan.run(inputs, outputs, program.threads)
    ceiling = peak(program.threads)
    times = np.array([plan.run(inputs, outputs, program.threads, timed=True) for _ in range(max(rounds, 1))])
    each = np.median(times, axis=0) * 1000 / batch
    whole = float(np.median(times.sum(axis=1))) * 1000 / batch
    return from_times(
        program, plan.steps, batch, [float(ms) for ms in each], whole, len(times), ceiling, instruction_set()
    )


def from_times(
    program: Program,
    steps: Sequence[StepInfo],
    batch: int,
    each: Sequence[float],
    whole: float,
    rounds: int,
    ceiling: float,
    isa: str,
) -> Profile:
    """Rows from times: milliseconds an image of each step, and of the whole."""
    rates = [_rate(step.flops, ms) for step, ms in zip(steps, each, strict=True)]
    sources = {node.name: node.source for node in program.graph}
    rows = tuple(
        Row(
            name=s.node,
            source=sources.get(s.node, ""),
            op=s.op,
            shape=s.shape,
            sparsity=s.sparsity,
            kernel=s.kernel,
            reason=s.reason,
            flops=s.flops,
            ms=ms,
            rate=rate,
            share=rate / ceiling,
        )
        for s, ms, rate in zip(steps, each, rates, strict=True)
    )
    flops = sum(s.flops for s in steps)
    return Profile(program.name, batch, program.threads, isa, rounds, rows, whole, flops, ceiling)


def _rate(flops: float, ms: float) -> float:
    return flops / ms / 1e6 if ms > 0 else 0.0


HEADINGS = ("layer", "op", "output", "zeros", "ms", "GFLOP/s", "ceiling", "kernel", "why")


def text(found: Profile) -> str:
    """The table, one line a step."""
    lines = [_cells(row) for row in found.rows]
    total = ("all", "", "", "", f"{found.ms:.3f}", f"{found.rate:.1f}", f"{found.rate / found.ceiling:.0%}", "", "")
    table = [HEADINGS, *lines, total]
    widths = [max(len(line[k]) for line in table) for k in range(len(HEADINGS))]
    drawn = ["  ".join(_aligned(cell, width, k) for k, (cell, width) in enumerate(zip(line, widths, strict=True)))
             for line in table]  # fmt: skip
    drawn = [line.rstrip() for line in drawn]
    rule = "-" * max(map(len, drawn))
    head = (
        f"{printable(found.name) or 'program'}: batch {found.batch}, {found.threads} threads, {found.isa}; "
        f"medians of {found.rounds} rounds, ms an image; GFLOP/s of non-zero weights; "
        f"ceiling {found.ceiling:.0f} GFLOP/s, the rate of multiply-adds alone"
    )
    return "\n".join([head, drawn[0], rule, *drawn[1:-1], rule, drawn[-1]])


def _cells(row: Row) -> tuple[str, ...]:
    weights = row.flops > 0
    return (
        printable(row.source or row.name),
        row.op,
        " x ".join(map(str, row.shape)),
        f"{row.sparsity:.1%}" if weights else "",
        f"{row.ms:.3f}",
        f"{row.rate:.1f}" if weights else "",
        f"{row.share:.0%}" if weights else "",
        row.kernel,
        printable(row.reason),
    )


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column in (3, 4, 5, 6) else cell.ljust(width)


def printable(text: str) -> str:
    """A name out of a file, fit for a screen: at most 60 characters, none of which moves the cursor."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:61])
    return shown if len(shown) <= 60 else shown[:57] + "..."
