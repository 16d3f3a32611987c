"""Relative increase in error against sparsity, with its interval."""

from collections.abc import Mapping

from ...accuracy import position
from ...figure import Picture, Plot
from ..cells import Backbone, Group
from ..summary import RelativeError
from .common import Legend, Looks, by_method, drawn, relative_axis, sparsity_axis, zero_line

Errors = Mapping[Backbone, RelativeError]


def relative_error_plot(name: str, group: Group, model: str, errors: Errors, seen: Looks) -> Picture | None:
    """Of the pruned networks of one architecture; None if there is none."""
    lines = by_method(b for b in errors if b.model == model)
    if not lines:
        return None
    legend = Legend([seen[m].label for m in lines])
    return Picture(
        name,
        f"Relative increase in error of pruned {model} against sparsity, {group.transfer} transfer; "
        "numbers in the table",
        f"{model}, {group.transfer} transfer: mean relative increase in error over tasks, below 0 is better than "
        "dense; bars are 95 % intervals.",
        (2.1 + legend.height,),
        lambda plot: _draw(plot, lines, errors, seen, legend),
    )


def _draw(plot: Plot, lines: Mapping[str, list[Backbone]], errors: Errors, seen: Looks, legend: Legend) -> None:
    axes = plot.axes[0]
    zero_line(plot, axes)
    for index, (method, backbones) in enumerate(lines.items()):
        aside = 0.012 * (index - (len(lines) - 1) / 2)  # so that intervals stand beside each other
        found = [errors[b] for b in backbones]
        x, y = [position(b.sparsity) + aside for b in backbones], [100 * e.value for e in found]
        ends = [e.interval or (e.value, e.value) for e in found]
        axes.plot(x, y, **drawn(plot, seen[method]), label=seen[method].label)
        colour = plot.colours[seen[method].colour]
        axes.vlines(x, [100 * e[0] for e in ends], [100 * e[1] for e in ends], color=colour, linewidth=0.9, alpha=0.75)
    shown = [b for backbones in lines.values() for b in backbones]
    relative_axis(axes, [100 * v for b in shown for v in (errors[b].value, *(errors[b].interval or ()))])
    sparsity_axis(axes, [b.sparsity for b in shown])
    axes.set_xlabel("Weights pruned")
    axes.set_ylabel("Error against dense, %")
    axes.grid(axis="y")
    legend.place(plot)
