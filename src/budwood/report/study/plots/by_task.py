"""Test accuracy against sparsity, one small panel a task."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ...accuracy import position
from ...figure import Picture, Plot
from ...words import short
from ..cells import DENSE, Backbone, Group, Table
from .common import Legend, Looks, by_method, drawn, sparsity_axis

COLUMNS = 3
PANEL = 1.25
"""Inches from one row of panels to the next."""
FLOOR = 20
"""Points below dense at which a panel ends, so that one failed network does not press the others together."""


def by_task_plot(
    name: str, table: Table, group: Group, model: str, seen: Looks, task_names: Mapping[str, str]
) -> Picture | None:
    """One panel for each task on which a pruned network of this architecture was run; None if there is none."""
    cells = [c for c in table.cells if c.group == group and c.backbone.model == model]
    lines = by_method({c.backbone for c in cells})
    tasks = [t for t in table.tasks if any(c.task == t and not c.backbone.dense for c in cells)]
    if not tasks:
        return None
    legend, across = Legend([*(seen[m].label for m in lines), "Dense"]), min(COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / across)

    def draw(plot: Plot) -> None:
        for axes, task in zip(plot.axes, tasks, strict=False):
            _panel(plot, axes, table, group, task, lines, seen)
            axes.set_title(short(task_names.get(task, task), 16), loc="left", y=1, pad=3)
        for axes in plot.axes[len(tasks) :]:
            axes.set_axis_off()
        bottom = plot.axes[max(0, len(tasks) - across) : len(tasks)]  # some above an empty place
        for axes in plot.axes[: len(tasks)]:
            axes.xaxis.set_visible(axes in bottom)
            axes.tick_params(labelbottom=True)
        sparsity_axis(plot.axes[0], [b.sparsity for bs in lines.values() for b in bs], gap=0.28, unit="")
        last = plot.axes[across * (rows - 1) : len(tasks)]
        last[len(last) // 2].set_xlabel("Weights pruned, %")
        legend.place(plot, left=0.36, top=0.22, across=0.42, down=0.36)

    return Picture(
        name,
        f"Test accuracy of pruned {model} against sparsity on {len(tasks)} tasks, {group.transfer} transfer; "
        "numbers in the table",
        f"{model}, {group.transfer} transfer: test accuracy in per cent, a panel a task. The grey line is dense; bars "
        f"are standard deviations over seeds. What is more than {FLOOR} points below dense is cut off.",
        ((rows * PANEL - 0.14 + legend.height) / rows,) * rows,
        draw,
        across,
    )


def _panel(
    plot: Plot, axes: Axes, table: Table, group: Group, task: str, lines: Mapping[str, Sequence[Backbone]], seen: Looks
) -> None:
    model = next(iter(lines.values()))[0].model
    dense = table.at(group, Backbone(model, DENSE, 0.0), task)
    lowest = 100.0
    if dense:
        axes.axhline(100 * dense.mean, color=plot.colours["muted"], linewidth=1, label="Dense")
    for method, backbones in lines.items():
        cells = [cell for b in backbones if (cell := table.at(group, b, task))]
        if cells:
            lowest = min(lowest, *(100 * c.mean for c in cells))
            axes.errorbar(
                [position(c.backbone.sparsity) for c in cells],
                [100 * c.mean for c in cells],
                yerr=[100 * (c.std or 0) for c in cells],
                **drawn(plot, seen[method]),
                linewidth=1.1, markersize=3, elinewidth=0.8, label=seen[method].label,
            )  # fmt: skip
    bottom, top = axes.get_ylim()
    if dense and lowest < 100 * dense.mean - FLOOR:
        bottom = 100 * dense.mean - FLOOR
    apart = max(0.0, 2 - (top - bottom)) / 2  # two points at least, so that whole numbers are at hand for the ticks
    axes.set_ylim(bottom - apart, top + apart)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(axis="y")
