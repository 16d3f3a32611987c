"""Where in the network weights were removed, layer by layer."""

from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from ..core.result import Result
from .figure import COLOURS, Plot


def layers_plot(result: Result, prefix: str) -> str:
    """Two panels over the layers in network order: sparsity, and the number of weights (log). "" without layers."""
    layers = result.layers
    if not layers:
        return ""
    places = range(1, len(layers) + 1)
    width = 0.75 if len(layers) < 80 else 0.9
    with Plot(1.6, 1.5) as plot:
        top, bottom = plot.axes
        top.bar(places, [100 * (1 - x.kept / x.total) for x in layers], width, color=COLOURS["c1"])
        top.axhline(100 * result.sparsity, color=COLOURS["fg"], linewidth=1, linestyle=":", label="Whole network")
        top.set_ylim(0, 104)
        top.set_ylabel("Pruned, %")
        kept, total = [max(x.kept, 1) for x in layers], [x.total for x in layers]  # the scale has no zero
        bottom.vlines(places, kept, total, color=COLOURS["grid"], linewidth=1)
        bottom.plot(places, total, "_", color=COLOURS["fg"], label="Weights")
        bottom.plot(places, kept, ".", color=COLOURS["c1"], label="Weights kept")
        bottom.set_yscale("log")
        bottom.set_ylabel("Weights")
        bottom.set_xlabel("Layer, from input to output")
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
        bottom.yaxis.set_minor_locator(NullLocator())
        bottom.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        bottom.set_xlim(0.3, len(layers) + 0.7)
        for axes in plot.axes:
            axes.grid(axis="y")
        plot.legend(columns=3)
        return plot.svg(prefix, f"Sparsity and number of weights of {len(layers)} layers; the numbers are in the table")


def thousands(value: float) -> str:
    """A count of weights in few characters: 864, 1.2 k, 2.36 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
