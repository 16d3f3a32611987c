"""Plots as inline SVG that takes its colours and its font from the page, and as PDF for a paper. The only file that
imports matplotlib."""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.6
"""Inches of 72 units: narrow, so that the type is still readable when a phone shrinks the plot to its screen."""

COLOURS = {"fg": "#000001", "muted": "#000002", "grid": "#000003", "bg": "#000004"}
SERIES = tuple(f"c{i}" for i in range(1, 7))
COLOURS |= {name: f"#0000{index:02x}" for index, name in enumerate(SERIES, 0x11)}
"""Stand-ins: each occurs nowhere else, and becomes the page's CSS variable of that name."""

MORE = {"c7": "#000017", "c8": "#000018"}
"""Stand-ins for two more series, which only the study's page has."""

PAPER = {
    "fg": "#1d2320", "muted": "#5c6660", "grid": "#d9ddd6", "bg": "#ffffff",
    "c1": "#2f7d4a", "c2": "#b4531c", "c3": "#3a67b0", "c4": "#8a4a9e",
    "c5": "#8a6d00", "c6": "#b03060", "c7": "#00809c", "c8": "#75503a",
}  # fmt: skip
"""The page's light colours, on white."""

MARKERS = "osD^vPXp"


def _style(colours: dict[str, str]) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none", "svg.hashsalt": "budwood", "pdf.fonttype": 42, "text.parse_math": False,
        "font.family": "sans-serif", "font.size": 9.5, "axes.labelsize": 9.5, "axes.titlesize": 9.5,
        "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
        "text.color": colours["fg"], "axes.labelcolor": colours["muted"], "axes.edgecolor": colours["grid"],
        "axes.titlecolor": colours["fg"], "xtick.color": colours["grid"], "ytick.color": colours["grid"],
        "xtick.labelcolor": colours["muted"], "ytick.labelcolor": colours["muted"],
        "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
        "grid.color": colours["grid"], "grid.linewidth": 0.6, "axes.linewidth": 0.8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
        "lines.linewidth": 1.6, "lines.markersize": 4.5, "lines.markeredgewidth": 1.3, "patch.linewidth": 0,
    }  # fmt: skip


class Plot:
    """A figure with its style: draw on `axes` inside `with Plot(...) as plot`, then take `plot.svg(...)`.

    `heights` in inches, one a row of panels, top to bottom; the panels share the x axis. With `paper` the colours are
    real ones, and `plot.pdf()` is taken instead.
    """

    def __init__(self, *heights: float, columns: int = 1, paper: bool = False) -> None:
        self.colours = PAPER if paper else COLOURS | MORE
        self._context = mpl.rc_context(_style(self.colours))
        self._heights = heights
        self._columns = columns

    def __enter__(self) -> "Plot":
        self._context.__enter__()
        self.figure = Figure(figsize=(WIDTH, sum(self._heights)), layout="constrained")
        ratios: dict[str, Any] = {"height_ratios": self._heights}
        panels = self.figure.subplots(len(self._heights), self._columns, sharex=True, squeeze=False, gridspec_kw=ratios)
        self.axes: list[Axes] = list(panels.flat)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    def fixed(self, left: float, right: float, top: float, bottom: float, across: float, down: float) -> None:
        """Margins, and gaps between panels, in inches: many panels are laid out by hand in half the time."""
        wide, high = self.figure.get_size_inches()
        rows, columns = len(self._heights), self._columns
        panel_wide = (wide - left - right - across * (columns - 1)) / columns
        panel_high = (high - top - bottom - down * (rows - 1)) / rows
        self.figure.set_layout_engine(None)
        self.figure.subplots_adjust(
            left / wide, bottom / high, 1 - right / wide, 1 - top / high, across / panel_wide, down / panel_high
        )

    def legend(self, columns: int) -> None:
        """Below the panels, one entry a label."""
        entries: dict[str, Any] = {}
        for axes in self.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        outside = self.figure.get_layout_engine() is not None
        self.figure.legend(
            [*entries.values()], [*entries], loc="outside lower left" if outside else "lower left",
            ncols=columns, handlelength=1.8,
        )  # fmt: skip

    def svg(self, prefix: str, label: str) -> str:
        """The figure as an <svg> element: `prefix` keeps its ids apart from other plots', `label` is read aloud."""
        buffer = io.StringIO()
        self._save(buffer, "svg", dict.fromkeys(("Creator", "Date", "Format", "Type")))
        return _inline(buffer.getvalue(), prefix, label)

    def pdf(self) -> bytes:
        """The figure as a PDF file; equal plots give equal bytes."""
        buffer = io.BytesIO()
        self._save(buffer, "pdf", dict.fromkeys(("Creator", "Producer", "CreationDate")))
        return buffer.getvalue()

    def _save(self, buffer: Any, kind: str, metadata: dict[str, None]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the font that counts
            self.figure.savefig(buffer, format=kind, metadata=metadata)


@dataclass(frozen=True)
class Picture:
    """A plot that is drawn when it is asked for: for the page, or for a paper.

    `name` is that of its file and goes before its ids; `label` is read aloud; `caption` stands below it.
    """

    name: str
    label: str
    caption: str
    heights: tuple[float, ...]
    draw: Callable[[Plot], None]
    columns: int = 1

    def svg(self) -> str:
        with Plot(*self.heights, columns=self.columns) as plot:
            self.draw(plot)
            return plot.svg(self.name, self.label)

    def pdf(self) -> bytes:
        with Plot(*self.heights, columns=self.columns, paper=True) as plot:
            self.draw(plot)
            return plot.pdf()


def _inline(svg: str, prefix: str, label: str) -> str:
    """One <svg> element without prolog, own size, own font or own style sheet (which would style the whole page)."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)  # a hundredth of a unit is enough
    svg = re.sub(r"\n\s+", "\n", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", svg)
    for name, colour in (COLOURS | MORE).items():
        svg = svg.replace(colour, f"var(--{name})")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} class="plot" role="img" aria-label="{escape(label)}">{rest}'
