"""Plots as inline SVG that takes its colours and its font from the page. The only file that imports matplotlib."""

import io
import re
import warnings
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

MARKERS = "osD^vP"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "budwood", "text.parse_math": False, "font.family": "sans-serif",
    "font.size": 9.5, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "text.color": COLOURS["fg"], "axes.labelcolor": COLOURS["muted"], "axes.edgecolor": COLOURS["grid"],
    "xtick.color": COLOURS["grid"], "ytick.color": COLOURS["grid"], "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"], "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none", "grid.color": COLOURS["grid"], "grid.linewidth": 0.6, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.6, "lines.markersize": 4.5, "lines.markeredgewidth": 1.3, "patch.linewidth": 0,
}  # fmt: skip


class Plot:
    """A figure with its style: draw on `axes` inside `with Plot(...) as plot`, then take `plot.svg(...)`.

    `heights` in inches, one a panel, top to bottom; the panels share the x axis.
    """

    def __init__(self, *heights: float) -> None:
        self._context = mpl.rc_context(_STYLE)
        self._heights = heights

    def __enter__(self) -> "Plot":
        self._context.__enter__()
        self.figure = Figure(figsize=(WIDTH, sum(self._heights)), layout="constrained")
        ratios: dict[str, Any] = {"height_ratios": self._heights}
        panels = self.figure.subplots(len(self._heights), 1, sharex=True, squeeze=False, gridspec_kw=ratios)
        self.axes: list[Axes] = list(panels[:, 0])
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    def legend(self, columns: int) -> None:
        """Below the panels, one entry a label."""
        entries: dict[str, Any] = {}
        for axes in self.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        self.figure.legend(entries.values(), entries.keys(), loc="outside lower left", ncols=columns, handlelength=1.8)

    def svg(self, prefix: str, label: str) -> str:
        """The figure as an <svg> element: `prefix` keeps its ids apart from other plots', `label` is read aloud."""
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the font that counts
            self.figure.savefig(buffer, format="svg", metadata=metadata)
        return _inline(buffer.getvalue(), prefix, label)


def _inline(svg: str, prefix: str, label: str) -> str:
    """One <svg> element without prolog, own size, own font or own style sheet (which would style the whole page)."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} class="plot" role="img" aria-label="{escape(label)}">{rest}'
