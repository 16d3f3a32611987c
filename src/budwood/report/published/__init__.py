"""The results of "How Well Do Sparse ImageNet Models Transfer?" (CVPR 2022), run by run, as cells of a study.

README.md beside this file has the source, the licence and what was renamed.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from rich.table import Table as TextTable

from ..study.cells import Backbone, Cell, Group, Table
from ..study.compare import STILL
from ..study.summary import relative_error
from ..words import NOTHING

TITLE = "How Well Do Sparse ImageNet Models Transfer? (CVPR 2022)"
FILES = ("resnet50_linear", "resnet50_full", "mobilenet_v1_linear", "mobilenet_v1_full")
MODELS = ("torchvision:resnet50", "published:mobilenet_v1")
EPOCHS = 150
"""Of every linear head and full transfer."""
AGAIN = 1000
"""Added to the seed of a cell's second run that states the same one, so that both count."""

NOTES = (
    "The accuracies are the authors' own, run by run, from raw_results of "
    "https://github.com/IST-DASLab/sparse-imagenet-transfer (Apache-2.0). It does not say whether they are of the best "
    "epoch on the test images or of the last.",
    "MobileNetV1, str at 75 %, full transfer: two runs state the same seed; to the second 1000 was added.",
)
"""For whoever reads the page."""

FINE_GRAINED = {
    "birdsnap": True, "caltech101": False, "caltech256": False, "cifar10": False, "cifar100": False, "dtd": False,
    "fgvcaircraft": True, "flowers102": True, "food101": True, "oxfordiiitpet": True, "stanfordcars": True,
    "sun397": False,
}  # fmt: skip
"""Task -> whether its classes are of one kind of thing."""

FAMILIES = {
    "acdc": "re-growth", "rigl erk 1x": "re-growth", "rigl erk 5x": "re-growth", "str": "regularisation",
    "woodfisher": "second-order", "mfac": "second-order", "lth-t": "lottery-ticket",
}  # fmt: skip
"""Method -> family, called as the methods' tags are."""


@dataclass(frozen=True)
class Row:
    """One network in one way of transfer. Fractions: `means` over seeds of each task, `mean` over the tasks."""

    group: Group
    backbone: Backbone
    means: Mapping[str, float]
    mean: float
    relative_error: float
    no_worse: int
    """Tasks on which the mean is at least the dense network's."""

    def row(self) -> dict[str, Any]:
        """For JSON: group and network unfolded."""
        flat = asdict(self)
        return {**flat.pop("group"), **flat.pop("backbone"), **flat}


@cache
def table() -> Table:
    """Every cell; `results` and `run_ids` are empty."""
    scores: dict[tuple[Group, Backbone, str], dict[int, float]] = defaultdict(dict)
    for row in (row for name in FILES for row in _rows(name)):
        backbone = Backbone(row["model"], row["method"], float(row["sparsity"]))
        cell = scores[Group(row["transfer"], "cvpr22", EPOCHS), backbone, row["task"]]
        seed = int(row["seed"])
        cell[seed if seed not in cell else seed + AGAIN] = float(row["accuracy"])
    order = sorted(scores, key=lambda key: (key[0], key[1].model, not key[1].dense, key[1], key[2]))
    return Table(tuple(Cell(*key, scores[key]) for key in order))


@cache
def upstream() -> Mapping[Backbone, float]:
    """ImageNet top-1 accuracy, a fraction, of the networks of which it is known that they are the transferred ones."""
    rows = [row for row in _rows("upstream") if row["transferred"] == "yes"]
    return {Backbone(r["model"], r["method"], float(r["sparsity"])): float(r["accuracy"]) for r in rows}


def rows() -> list[Row]:
    """The study's tables: by architecture, way of transfer, sparsity and method."""
    cells = table()
    return [
        _row(cells, group, backbone)
        for model in MODELS
        for group in cells.groups
        for backbone in cells.backbones
        if backbone.model == model
    ]


def markdown() -> str:
    """The tables in percent: means over seeds, their mean over the tasks, the relative error against dense, and on how
    many tasks the network is no worse than dense."""
    tables: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows():
        tables[row.backbone.model, row.group.transfer].append(row)
    return f"# {TITLE}\n" + "".join(
        f"\n## {model}, {transfer} transfer\n\n{_markdown(found)}" for (model, transfer), found in tables.items()
    )


def text_tables() -> list[TextTable]:
    """The same without the single tasks, narrow enough for a terminal: one table an architecture, both ways beside each
    other."""
    found: dict[str, dict[Backbone, list[Row]]] = {model: defaultdict(list) for model in MODELS}
    for row in rows():
        found[row.backbone.model][row.backbone].append(row)
    tables = []
    for model, networks in found.items():
        title = f"{model}: mean accuracy in percent, error against dense"
        text = TextTable(title=title, title_justify="left", title_style="", caption_justify="left")
        text.caption = "≥: tasks on which it is no worse than dense"
        text.add_column("Method", no_wrap=True)
        for name in ("Pruned", "Linear", "Error", "≥", "Full", "Error", "≥"):
            text.add_column(name, justify="right", no_wrap=True)
        for backbone, ways in networks.items():
            numbers = [cell for row in ways for cell in _ends(row)]
            text.add_row(backbone.method, NOTHING if backbone.dense else f"{100 * backbone.sparsity:g} %", *numbers)
        tables.append(text)
    return tables


def _markdown(found: Sequence[Row]) -> str:
    tasks = table().tasks
    lines = [["method", "sparsity", *tasks, "mean", "error", "no worse"], ["---"] * (len(tasks) + 5)]
    for row in found:
        means = [f"{100 * row.means[task]:.2f}" for task in tasks]
        lines.append([row.backbone.method, f"{100 * row.backbone.sparsity:g}", *means, *_ends(row)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _ends(row: Row) -> tuple[str, str, str]:
    """Mean over the tasks, error against dense, tasks that are no worse."""
    no_worse = NOTHING if row.backbone.dense else f"{row.no_worse}/{len(row.means)}"
    return f"{100 * row.mean:.2f}", f"{100 * row.relative_error:+.1f}%", no_worse


def _row(cells: Table, group: Group, backbone: Backbone) -> Row:
    own = {task: cell for task in cells.tasks if (cell := cells.at(group, backbone, task))}
    error = relative_error(cells, group, backbone, resamples=0)
    differences = [cell.mean - dense.mean for cell in own.values() if (dense := cells.reference(cell))]
    assert error is not None, backbone  # the tables are whole
    return Row(
        group, backbone, {task: cell.mean for task, cell in own.items()},
        statistics.fmean(cell.mean for cell in own.values()), error.value,
        sum(difference >= -STILL for difference in differences),
    )  # fmt: skip


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = resources.files(__package__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
