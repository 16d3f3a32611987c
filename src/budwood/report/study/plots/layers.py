"""How much of each layer was pruned, method by method."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from ...figure import Picture, Plot
from ...words import count, sparsity
from ..cells import Backbone
from .common import Legend, Looks, by_method


def layers_plot(name: str, model: str, pruned: Mapping[Backbone, Sequence[float]], seen: Looks) -> Picture | None:
    """`pruned`: share of each layer, in forward order. One panel for each sparsity of one architecture; None if no
    pruned network has layers."""
    found = {b: of for b, of in pruned.items() if b.model == model and of and not b.dense}
    if not found:
        return None
    levels = sorted({b.sparsity for b in found})
    lines = by_method(found)
    legend, deep = Legend([seen[m].label for m in lines]), max(len(of) for of in found.values())

    def draw(plot: Plot) -> None:
        for axes, level in zip(plot.axes, levels, strict=True):
            for method, backbones in lines.items():
                for backbone in (b for b in backbones if b.sparsity == level):
                    shares = [100 * share for share in found[backbone]]
                    look = seen[method]
                    axes.plot(
                        range(1, len(shares) + 1), shares, color=plot.colours[look.colour], linestyle=look.line,
                        drawstyle="steps-mid", linewidth=1.1, label=seen[method].label,
                    )  # fmt: skip
            axes.axhline(100 * level, color=plot.colours["muted"], linewidth=0.8, linestyle=":")
            axes.set_title(f"{sparsity(level)} of all weights", loc="left", y=1, pad=3)
            axes.set_ylabel("Pruned, %")
            axes.set_ylim(0, 103)
            axes.grid(axis="y")
        plot.axes[-1].set_xlim(0.5, deep + 0.5)
        plot.axes[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True))
        plot.axes[-1].set_xlabel("Layer, from input to output")
        for axes in plot.axes[:-1]:
            axes.xaxis.set_visible(False)
        legend.place(plot, left=0.6, top=0.22, down=0.36)

    return Picture(
        name,
        f"Share pruned of each of {count(deep, 'layer')} of {model}",
        f"{model}: share of each layer's weights that is pruned; the dotted line is the share of all weights.",
        ((1.25 * len(levels) - 0.14 + legend.height) / len(levels),) * len(levels),
        draw,
    )
