"""Test accuracy against sparsity, with the dense accuracy and its uncertainty as a band."""

import math
from collections import defaultdict

from matplotlib.axes import Axes

from .figure import COLOURS, MARKERS, SERIES, Plot
from .frame import Row, TaskFrame, wilson
from .words import METRICS, TRANSFERS, WHERE, short, sparsity

Series = dict[tuple[str, ...], list[Row]]


def accuracy_plot(frame: TaskFrame, prefix: str) -> str:
    """An SVG element, or "" if nothing pruned was tested."""
    lines = series(frame)
    if not lines:
        return ""
    colours = {name: i for i, name in enumerate(dict.fromkeys((key[0], *key[2:]) for key in lines))}
    with Plot(2.9 + 0.16 * math.ceil(len(lines) / 2)) as plot:
        axes = plot.axes[0]
        _dense_lines(axes, frame)
        for key, rows in lines.items():
            _line(axes, key, rows, colours[key[0], *key[2:]], several=len(frame.models) > 1)
        _sparsity_axis(axes, [row for rows in lines.values() for row in rows])
        axes.set_ylabel("Test accuracy, %")
        axes.grid(axis="y")
        plot.legend(columns=2 if max(len(str(key)) for key in lines) < 60 else 1)
        return plot.svg(prefix, f"{METRICS[frame.metric]} on {frame.name} against sparsity; numbers in the table")


def series(frame: TaskFrame) -> Series:
    """(model, transfer, method, where) -> its pruned rows by rising sparsity."""
    lines: Series = defaultdict(list)
    for row in frame.rows:
        if not row.dense and row.test:
            s = row.spec
            lines[s.model, s.transfer, s.method, s.where].append(row)
    return {key: sorted(rows, key=lambda r: r.average("sparsity")) for key, rows in lines.items()}


def position(fraction: float) -> float:
    """Sparsity on the axis: by the weights that are left, so that 90, 99 and 99.9 % are evenly spaced."""
    return -math.log10(max(1 - fraction, 1e-4))


def _line(axes: Axes, key: tuple[str, ...], rows: list[Row], index: int, several: bool) -> None:
    model, transfer, method, where = key
    name = " ".join(part for part in (short(method, 24), WHERE[where], f"({transfer})") if part)
    colour = COLOURS[SERIES[index % len(SERIES)]]
    axes.errorbar(
        [position(r.average("sparsity")) for r in rows],
        [100 * r.test.mean for r in rows if r.test],
        yerr=[100 * (r.test.std or 0) for r in rows if r.test],
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        markerfacecolor=colour if transfer == "full" else COLOURS["bg"],
        linestyle="-" if transfer == "full" else "--",
        elinewidth=1,
        label=f"{short(model, 24)} {name}" if several else name,
    )


def _dense_lines(axes: Axes, frame: TaskFrame) -> None:
    """The accuracy of each dense row; around it what the number of test images leaves open."""
    for row in (r for r in frame.rows if r.dense and r.test):
        mean, full = row.test.mean if row.test else 0.0, row.spec.transfer == "full"
        label = f"Dense ({TRANSFERS[row.spec.transfer].split()[0].lower()})"
        axes.axhline(100 * mean, color=COLOURS["muted"], linestyle="-" if full else "--", linewidth=1.1, label=label)
        if frame.sizes.get("test"):
            low, high = wilson(mean, frame.sizes["test"])
            axes.axhspan(100 * low, 100 * high, color=COLOURS["muted"], alpha=0.1, linewidth=0)


def _sparsity_axis(axes: Axes, rows: list[Row]) -> None:
    """Ticks where measurements are, as long as their labels do not run into each other."""
    ticks: list[float] = []
    for fraction in sorted({_tick(r) for r in rows}):
        if not ticks or position(fraction) - position(ticks[-1]) > 0.12:
            ticks.append(fraction)
    axes.set_xticks([position(t) for t in ticks], [sparsity(t) for t in ticks])
    places = [position(r.average("sparsity")) for r in rows]
    axes.set_xlim(min(places) - 0.15, max(places) + 0.15)
    axes.set_xlabel("Weights pruned")


def _tick(row: Row) -> float:
    """The sparsity asked for, where what was measured is as good as that."""
    asked, measured = row.spec.sparsity, row.average("sparsity")
    return asked if abs(asked - measured) < 0.1 * (1 - asked) else round(measured, 3)
