"""The study's report: one HTML file that needs nothing else, its numbers as CSV, its plots as PDF for a paper."""

import base64
import gc
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

from markupsafe import Markup

from ...core.files import csv_text, write_atomic
from ...core.spec import RunSpec
from ..figure import Picture
from ..html import environments, templates
from ..words import NOTHING, count, sparsity
from . import headline, matrix, pictures, tables
from .cells import Backbone, Cell, Group, Labels, Table
from .numbers import Study
from .tables import Costs, Small

SCRIPT = Path(__file__).with_name("study.js")
"""The page's only script: without it the page is complete, but its tables cannot be sorted."""

TITLES = {
    "winners": "Best method at each sparsity",
    "sparsity": "Error against sparsity",
    "tasks": "Accuracy on each task",
    "ways": "Linear against full transfer",
    "grain": "Fine-grained against general tasks",
    "families": "Ranks of families",
    "lengths": "Length of the transfer",
    "upstream": "Accuracy up- and downstream",
    "speed": "Accuracy against speed",
    "size": "Accuracy against size",
    "networks": "The networks",
    "calibration": "Calibration",
    "harm": "Classes that pruning harms",
    "beside": "Beside the published results",
}
"""Section -> its title, in the order of the page; the accuracies stand after the second, one section a group."""

NONE_BESIDE = "No cell here has the network, sparsity, task and way of transfer of a published one."


class Known(TypedDict, total=False):
    """What is known beside the cells; sections without it are left out."""

    published: Table
    """Results to set this study's beside, where network, task and way of transfer coincide."""
    upstream: Mapping[Backbone, float]
    """Accuracy of the networks where they were pruned, a fraction."""
    speed: Mapping[Backbone, float]
    """Milliseconds an image."""
    size: Mapping[Backbone, float]
    """Bytes; by default the mean size of the checkpoints that the runs wrote."""
    fine_grained: Mapping[str, bool]
    """Task -> whether its classes are of one kind of thing."""
    families: Mapping[str, str]
    """Method -> family."""
    labels: Labels
    """Names of networks by the digest they start from, as given to `cells.table`."""
    task_names: Mapping[str, str]
    """Task -> its name on the page; by default what its results call it."""
    notes: Iterable[str]
    """Sentences on where the numbers come from."""


def write(table: Table, path: Path, title: str, **known: Unpack[Known]) -> list[Path]:
    """Write the page to `path`, and beside it NAME-cells.csv and NAME-runs.csv. Answers what was written.

    Raises UserError where a file cannot be written.
    """
    beside = {f"{path.stem}-cells.csv": cells_csv(table), f"{path.stem}-runs.csv": runs_csv(table)}
    with _results_set_aside():
        write_atomic(path, _render(_Page(table, title, known, tuple(beside))))
    for name, text in beside.items():
        write_atomic(path.with_name(name), text)
    return [path, *(path.with_name(name) for name in beside)]


def page(table: Table, title: str, **known: Unpack[Known]) -> str:
    """The page as HTML text."""
    return _render(_Page(table, title, known))


def figures(table: Table, folder: Path, **known: Unpack[Known]) -> list[Path]:
    """Write each of the page's plots as a PDF file. Raises UserError where a file cannot be written."""
    paths = []
    with _results_set_aside():
        for picture in (p for found in _Page(table, "", known).plots.values() for p in found):
            paths.append(folder / f"{picture.name}.pdf")
            write_atomic(paths[-1], picture.pdf())
    return paths


@contextmanager
def _results_set_aside() -> Iterator[None]:
    """Keep the garbage collector from going through ten thousand results after every plot."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# -- the page -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Page:
    table: Table
    title: str
    known: Known
    files: tuple[str, ...] = ()

    @cached_property
    def study(self) -> Study:
        return Study(self.table, self.known.get("labels", {}))

    @cached_property
    def ids(self) -> dict[tuple[Group, Backbone, str], str]:
        return {(c.group, c.backbone, c.task): f"r{i}" for i, c in enumerate(self.table.cells, 1)}

    @cached_property
    def task_names(self) -> dict[str, str]:
        found = {c.task: str(r.task["name"]) for c in self.table.cells for r in c.results[:1] if r.task.get("name")}
        return found | dict(self.known.get("task_names", {}))

    @cached_property
    def costs(self) -> Costs:
        return Costs(
            self.known.get("upstream", {}), self.known.get("speed", {}), self.known.get("size") or sizes(self.table)
        )

    @cached_property
    def plots(self) -> dict[str, list[Picture]]:
        """Section -> its plots."""
        study, costs = self.study, self.costs
        return {
            "sparsity": pictures.against_sparsity(study),
            "tasks": pictures.by_task(study, self.task_names),
            "ways": pictures.linear_full(study),
            "upstream": pictures.upstream(study, costs.upstream),
            "speed": pictures.fronts(study, costs.speed, "speed", "milliseconds an image"),
            "size": pictures.fronts(study, costs.megabytes, "size", "megabytes"),
            "networks": pictures.layers(study),
            "calibration": pictures.calibration(study),
        }

    @cached_property
    def tables(self) -> dict[str, list[Small]]:
        """Section -> its smaller tables."""
        study, known = self.study, self.known
        return {
            "winners": tables.winners(study),
            "grain": tables.grain(study, known.get("fine_grained", {})),
            "families": tables.families(study, known.get("families", {})),
            "lengths": tables.lengths(study),
            "networks": tables.networks(study, self.costs),
            "calibration": tables.calibrations(study),
            "harm": tables.harm(study, self.task_names),
            "beside": tables.beside_published(study, known["published"], self.ids, self.task_names)
            if "published" in known
            else [],
        }

    def sections(self) -> list["_Section"]:
        """Those with something to show, in the order of the page."""
        found = []
        for name, title in TITLES.items():
            found.append(_Section(name, title, plots=self.plots.get(name, []), tables=self.tables.get(name, [])))
            if name == "sparsity":
                found += [_matrices(self, group, first=group == self.study.groups[0]) for group in self.study.groups]
        if "published" in self.known and not self.tables["beside"]:
            found.append(_Section("beside", TITLES["beside"], NONE_BESIDE))
        return [s for s in found if s.plots or s.tables or s.matrices or s.said]


@dataclass(frozen=True)
class _Section:
    id: str
    title: str
    said: str = ""
    plots: Sequence[Picture] = ()
    matrices: Sequence[matrix.Matrix] = ()
    tables: Sequence[Small] = ()


def _render(of: _Page) -> str:
    script = SCRIPT.read_text(encoding="utf-8")
    return (
        templates()
        .get_template("study/study.html.j2")
        .render(
            title=of.title,
            script=Markup(script),  # ours, and without a closing tag in it
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            opening=headline.opening(of.study),
            findings=headline.findings(of.study),
            cautions=[*headline.cautions(of.study), *of.known.get("notes", ())],
            sections=of.sections(),
            svg=lambda picture: Markup(picture.svg()),  # built by us, its texts escaped
            runs=[_runs(of, cell) for cell in of.table.cells],
            with_ids=any(cell.run_ids for cell in of.table.cells),
            missing=_missing(of),
            task_names=of.task_names,
            environment=environments([r for cell in of.table.cells for r in cell.results]),
            files=[(f"./{quote(name)}", name) for name in of.files],
            count=count,
        )
    )


def _matrices(of: _Page, group: Group, first: bool) -> _Section:
    found = [matrix.matrix(of.study, group, model, of.ids) for model in of.study.models]
    return _Section(
        pictures.slug(group),
        headline.sentence(headline.way(group)),
        matrix.EXPLAINED if first else "",
        matrices=[part for part in found if part],
    )


def _runs(of: _Page, cell: Cell) -> dict[str, Any]:
    """One row of the list of runs: what the cell is, and the runs it is the mean of."""
    backbone = cell.backbone
    pruned = "" if backbone.dense else f" {sparsity(backbone.sparsity)}"
    return {
        "id": of.ids[cell.group, backbone, cell.task],
        "what": f"{backbone.model} {matrix.method_name(backbone)}{pruned}, {headline.way(cell.group)}",
        "task": of.task_names.get(cell.task, cell.task),
        "mean": f"{matrix.accuracy(cell)} {matrix.spread(cell)}".strip(),
        "runs": [(seed, f"{100 * score:.2f}", cell.run_ids.get(seed, "")) for seed, score in cell.scores.items()],
    }


def _missing(of: _Page) -> list[dict[str, str]]:
    """Failed runs one by one, the others counted by their reason."""
    rows = [
        {"run": r.run_id, "what": _spec(of, r.spec), "status": r.status, "reason": r.reason or NOTHING}
        for r in of.table.missing
        if r.status == "failed"
    ]
    others = Counter((r.status, r.reason or NOTHING) for r in of.table.missing if r.status != "failed")
    return rows + [
        {"run": count(n, "run"), "what": NOTHING, "status": status, "reason": reason}
        for (status, reason), n in others.most_common()
    ]


def _spec(of: _Page, spec: RunSpec) -> str:
    pruned = f", {sparsity(spec.sparsity)}" if spec.sparsity else ""
    way = "pruning" if spec.transfer == "none" else f"{spec.transfer} transfer"
    return f"{spec.model} {spec.method}{pruned} on {of.task_names.get(spec.task, spec.task)}, {way}, seed {spec.seed}"


def sizes(table: Table) -> dict[Backbone, float]:
    """Mean bytes of the checkpoints that the transfers of a network wrote; networks without any are left out."""
    found: dict[Backbone, list[int]] = {}
    for cell in table.cells:
        found.setdefault(cell.backbone, []).extend(r.checkpoint_bytes for r in cell.results if r.checkpoint_bytes)
    return {backbone: sum(n) / len(n) for backbone, n in found.items() if n}


# -- the numbers as files -----------------------------------------------------------------------------------


def cells_csv(table: Table) -> str:
    """One row a cell: accuracies as fractions; run ids in the order of the seeds."""
    return _csv(
        {
            **_place(cell), "mean": cell.mean, "std": cell.std, "n": cell.n,
            "seeds": " ".join(map(str, cell.scores)), "run_ids": " ".join(cell.run_ids.values()),
        }
        for cell in table.cells
    )  # fmt: skip


def runs_csv(table: Table) -> str:
    """One row a run, those without a result too; of published numbers just the accuracy of each seed."""
    rows: list[dict[str, Any]] = [result.row() for cell in table.cells for result in cell.results]
    rows += [result.row() for result in table.missing]
    if not rows:
        rows = [
            {**_place(cell), "seed": seed, "accuracy": score}
            for cell in table.cells
            for seed, score in cell.scores.items()
        ]
    return _csv(rows)


def _place(cell: Cell) -> dict[str, Any]:
    group, backbone = cell.group, cell.backbone
    return {
        "transfer": group.transfer, "protocol": group.protocol, "epochs": group.epochs, "model": backbone.model,
        "method": backbone.method, "sparsity": backbone.sparsity, "task": cell.task,
    }  # fmt: skip


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    return csv_text({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()} for row in rows)
