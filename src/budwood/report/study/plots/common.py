"""What the study's plots share: one look for each method everywhere, lines over sparsity, clouds of networks."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ...accuracy import position
from ...figure import MARKERS, MORE, SERIES, Plot
from ...words import signed, sparsity
from ..cells import Backbone

NAMES = (*SERIES, *MORE)
LONGEST = 28
"""Letters of a name in a legend."""
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
BEND = 20.0
"""Per cent: beyond it the axis of relative errors is logarithmic, where one network fails so badly that a straight
axis would hide the others."""


@dataclass(frozen=True)
class Look:
    """`colour` is a name of the palette, `label` the method's name in a legend: short, and no other's."""

    colour: str
    marker: str
    line: Any
    label: str


Looks = Mapping[str, Look]


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """One for each pruning method, different up to 24 of them."""
    found, labels = dict[str, Look](), set[str]()
    for i, method in enumerate(sorted(set(methods), key=lambda name: (name.casefold(), name))):
        turn = i // len(NAMES)
        label = _short(method) if _short(method) not in labels else f"{_short(method)} {i}"
        labels.add(label)
        look = Look(NAMES[i % len(NAMES)], MARKERS[(i + turn) % len(MARKERS)], LINES[turn % len(LINES)], label)
        found[method] = look
    return found


def _short(method: str) -> str:
    """Cut in the middle: the ends of its options tell it apart from others."""
    return method if len(method) <= LONGEST else f"{method[:17]}…{method[18 - LONGEST :]}"


def by_method(backbones: Iterable[Backbone]) -> dict[str, list[Backbone]]:
    """The pruned ones, by rising sparsity; methods in the order of their looks."""
    found: dict[str, list[Backbone]] = defaultdict(list)
    for backbone in sorted(backbones, key=lambda b: (b.method.casefold(), b.sparsity)):
        if not backbone.dense:
            found[backbone.method].append(backbone)
    return found


def drawn(plot: Plot, look: Look) -> dict[str, Any]:
    """matplotlib's arguments for a line with this look; its label is for the caller to give."""
    colour = plot.colours[look.colour]
    return {"color": colour, "marker": look.marker, "markerfacecolor": colour, "linestyle": look.line}


def sparsity_axis(axes: Axes, fractions: Iterable[float], gap: float = 0.12, unit: str = "\u00a0%") -> None:
    """Ticks at these shares of weights pruned, as long as their labels do not run into each other."""
    known, ticks = sorted(set(fractions)), list[float]()
    for fraction in known:
        if not ticks or position(fraction) - position(ticks[-1]) > gap:
            ticks.append(fraction)
    axes.set_xticks([position(t) for t in ticks], [sparsity(t).removesuffix("\u00a0%") + unit for t in ticks])
    axes.set_xlim(position(known[0]) - 0.12, position(known[-1]) + 0.12)


def relative_axis(axes: Axes, values: Sequence[float], horizontal: bool = False) -> None:
    """The axis of relative increases in error, in per cent; bent beyond `BEND` where values go far beyond."""
    axis = axes.xaxis if horizontal else axes.yaxis
    if max(map(abs, values)) > 3 * BEND:
        (axes.set_xscale if horizontal else axes.set_yscale)("symlog", linthresh=BEND, linscale=1.2)
        marks = [0, 10, 20, 50, 100, 200, 500, 1000, 2000]
        low, high = min(values), max(values)
        shown = [m for m in [*(-m for m in reversed(marks[1:])), *marks] if low * 1.2 - 5 <= m <= high * 1.2]
        axis.set_major_locator(FixedLocator(shown))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: signed(value).removesuffix(".0")))


def zero_line(plot: Plot, axes: Axes, vertical: bool = False) -> None:
    """Where the dense network is."""
    (axes.axvline if vertical else axes.axhline)(0, color=plot.colours["fg"], linewidth=1, zorder=1)


def cloud(plot: Plot, points: Mapping[Backbone, tuple[float, float]], seen: Looks) -> None:
    """Networks as points, those of a method joined by rising sparsity; larger the fewer weights are left."""
    axes = plot.axes[0]
    for method, backbones in by_method(points).items():
        style = drawn(plot, seen[method])
        x, y = zip(*(points[b] for b in backbones), strict=True)
        axes.plot(x, y, **style | {"marker": ""}, linewidth=0.8, alpha=0.7)
        for backbone in backbones:
            axes.plot(*points[backbone], **style | {"linestyle": ""}, markersize=_size(backbone.sparsity))
        axes.plot([], [], **style | {"linestyle": ""}, label=seen[method].label)
    for dense in (b for b in points if b.dense):
        axes.plot(*points[dense], "o", color=plot.colours["fg"], label="Dense")


def _size(fraction: float) -> float:
    return 3.5 + 1.6 * min(-math.log10(max(1 - fraction, 1e-3)), 3)


@dataclass(frozen=True)
class Legend:
    """Below the panels: as many columns as the names leave room for."""

    names: Sequence[str]

    @property
    def columns(self) -> int:
        longest = max(len(name) for name in self.names)
        return 3 if longest <= 14 else 2 if longest <= 24 else 1

    @property
    def height(self) -> float:
        """In inches, with the x axis' labels above it."""
        return 0.54 + 0.19 * math.ceil(len(self.names) / self.columns)

    def place(self, plot: Plot, left: float = 0.7, top: float = 0.1, across: float = 0.0, down: float = 0.0) -> None:
        """Lay out the panels above it, margins and gaps in inches."""
        plot.fixed(left, right=0.16, top=top, bottom=self.height, across=across, down=down)
        plot.legend(self.columns)
