"""Accuracy downstream against accuracy on ImageNet."""

from collections.abc import Mapping

from ...figure import Picture, Plot
from ..cells import Backbone, Group
from .common import Legend, Looks, by_method, cloud


def upstream_plot(
    name: str, group: Group, model: str, points: Mapping[Backbone, tuple[float, float]], said: str, seen: Looks
) -> Picture:
    """`points`: (upstream, mean downstream) accuracy, fractions. `said` of the correlation, in the caption."""
    legend = Legend([*(seen[m].label for m in by_method(points)), "Dense"])

    def draw(plot: Plot) -> None:
        axes = plot.axes[0]
        cloud(plot, {b: (100 * x, 100 * y) for b, (x, y) in points.items()}, seen)
        axes.set_xlabel("Upstream top-1 accuracy, %")
        axes.set_ylabel("Mean over tasks, %")
        axes.grid()
        legend.place(plot)

    return Picture(
        name,
        f"Mean accuracy over tasks against upstream accuracy of {model}, {group.transfer} transfer",
        f"{model}, {group.transfer} transfer. {said}",
        (2.1 + legend.height,),
        draw,
    )
