"""Accuracy against what a network costs, with those that no other beats in both."""

from collections.abc import Collection, Mapping

from ...figure import Picture, Plot
from ..cells import Backbone, Group
from .common import Legend, Looks, by_method, cloud


def front_plot(
    name: str, group: Group, points: Mapping[Backbone, tuple[float, float]], front: Collection[Backbone],
    cost: str, seen: Looks,
) -> Picture:  # fmt: skip
    """`points`: (cost, lower is better; mean accuracy, a fraction). `cost` names it with its unit."""
    models = sorted({b.model for b in points})
    legend = Legend([*(seen[m].label for m in by_method(points)), "Dense", "Pareto front"])

    def draw(plot: Plot) -> None:
        axes = plot.axes[0]
        cloud(plot, {b: (x, 100 * y) for b, (x, y) in points.items()}, seen)
        edge = sorted(points[b] for b in front)
        x, y = [x for x, _ in edge], [100 * y for _, y in edge]
        axes.step(x, y, where="post", color=plot.colours["fg"], linewidth=0.9, linestyle=":", label="Pareto front")
        axes.set_xlim(left=0)
        axes.set_xlabel(cost[0].upper() + cost[1:])
        axes.set_ylabel("Mean over tasks, %")
        axes.grid()
        legend.place(plot)

    return Picture(
        name,
        f"Mean accuracy over tasks against {cost}, {group.transfer} transfer",
        f"{', '.join(models)}, {group.transfer} transfer: {cost}, lower is better, against mean accuracy. No network "
        "is better in both than one on the dotted line.",
        (2.1 + legend.height,),
        draw,
    )
