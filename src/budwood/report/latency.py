"""Milliseconds an image, backend by backend, one bar a network."""

from .figure import COLOURS, SERIES, Plot
from .frame import LatencyFrame
from .words import conditions, number, short

BAR = 0.17
"""Inches a bar takes."""


def latency_plot(frame: LatencyFrame, prefix: str) -> str:
    """An SVG element, or "" if nothing was timed."""
    if not frame.done:
        return ""
    labels = [label for label in frame.labels if any(r["label"] == label for r in frame.done)]
    backends = [name for name in frame.backends if any(r["backend"] == name for r in frame.done)]
    height = 0.8 + BAR * (len(labels) + 1) * len(backends) + BAR * len(labels)
    with Plot(height) as plot:
        axes = plot.axes[0]
        for index, label in enumerate(labels):
            rows = [r for r in frame.done if r["label"] == label]
            places = [backends.index(str(r["backend"])) * (len(labels) + 1) + index for r in rows]
            times = [r["ms_per_image"] for r in rows]
            spread = [[r["ms_per_image"] - r["q1"] for r in rows], [r["q3"] - r["ms_per_image"] for r in rows]]
            colour = COLOURS["muted"] if index == 0 else COLOURS[SERIES[(index - 1) % len(SERIES)]]
            whisker = {"ecolor": COLOURS["fg"], "elinewidth": 1}
            axes.barh(places, times, 0.82, xerr=spread, color=colour, label=short(label, 52), error_kw=whisker)
            for place, row in zip(places, rows, strict=True):
                axes.annotate(number(row["ms_per_image"]), (row["q3"], place), (4, 0), textcoords="offset points",
                              va="center", fontsize=8.5)  # fmt: skip
        middle = (len(labels) - 1) / 2
        axes.set_yticks([i * (len(labels) + 1) + middle for i in range(len(backends))], backends)
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["fg"])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.set_xlabel("Milliseconds an image; whiskers: middle half")
        axes.grid(axis="x")
        plot.legend(columns=1)
        return plot.svg(prefix, f"Milliseconds an image, {conditions(frame)}; the numbers are in the table")
