"""Expected calibration error against sparsity."""

from collections.abc import Mapping

from ...accuracy import position
from ...figure import Picture, Plot
from ..cells import Backbone, Group
from .common import Legend, Looks, by_method, drawn, sparsity_axis


def calibration_plot(name: str, group: Group, model: str, ece: Mapping[Backbone, float], seen: Looks) -> Picture | None:
    """`ece`: mean over tasks, a fraction. None if no pruned network of this architecture has one."""
    lines = by_method(b for b in ece if b.model == model)
    if not lines:
        return None
    legend = Legend([*(seen[m].label for m in lines), "Dense"])

    def draw(plot: Plot) -> None:
        axes = plot.axes[0]
        for dense in (b for b in ece if b.dense and b.model == model):
            axes.axhline(100 * ece[dense], color=plot.colours["muted"], linewidth=1.1, label="Dense")
        for method, backbones in lines.items():
            x, y = [position(b.sparsity) for b in backbones], [100 * ece[b] for b in backbones]
            axes.plot(x, y, **drawn(plot, seen[method]), label=seen[method].label)
        sparsity_axis(axes, [b.sparsity for backbones in lines.values() for b in backbones])
        axes.set_ylim(0, 110 * max(e for b, e in ece.items() if b.model == model))
        axes.set_xlabel("Weights pruned")
        axes.set_ylabel("ECE, %")
        axes.grid(axis="y")
        legend.place(plot)

    return Picture(
        name,
        f"Expected calibration error of pruned {model} against sparsity, {group.transfer} transfer",
        f"{model}, {group.transfer} transfer: expected calibration error, mean over tasks; lower is better.",
        (1.7 + legend.height,),
        draw,
    )
