"""Linear against full transfer: which networks do well in one and not in the other."""

from ...figure import Picture, Plot
from .common import Legend, Looks, by_method, cloud, relative_axis, zero_line
from .relative_error import Errors


def linear_full_plot(name: str, protocol: str, model: str, linear: Errors, full: Errors, seen: Looks) -> Picture | None:
    """Relative errors of one architecture in both; None if no pruned network was run in both."""
    points = {
        b: (100 * linear[b].value, 100 * full[b].value)
        for b in linear
        if b in full and b.model == model and not b.dense
    }
    if not points:
        return None
    legend = Legend([seen[m].label for m in by_method(points)])

    def draw(plot: Plot) -> None:
        axes = plot.axes[0]
        zero_line(plot, axes)
        zero_line(plot, axes, vertical=True)
        cloud(plot, points, seen)
        relative_axis(axes, [x for x, _ in points.values()], horizontal=True)
        relative_axis(axes, [y for _, y in points.values()])
        axes.set_xlabel("Error against dense, linear transfer, %")
        axes.set_ylabel("Full transfer, %")
        axes.grid()
        legend.place(plot)

    return Picture(
        name,
        f"Relative increase in error of pruned {model}, linear against full transfer; numbers in the tables",
        f"{model} ({protocol}): a point is a pruned network, larger the fewer weights are left; further left it is "
        "better in linear, further down in full transfer.",
        (2.3 + legend.height,),
        draw,
    )
