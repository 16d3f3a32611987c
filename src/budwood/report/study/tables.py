"""The page's smaller tables: each a title row, rows of entries, and what its caption has to say."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..words import NOTHING, count, number, percent, short, signed, sparsity
from .behaviour import class_shifts
from .cells import Backbone, Group, Table
from .headline import error, sentence, way
from .matrix import Entry, accuracy, method_name, p_value, spread
from .network import Shares, shares
from .numbers import Best, Study
from .relate import training_length
from .summary import RelativeError, against_dense, by_grain

WORST = 20
"""Classes listed of those that pruning harms."""


@dataclass(frozen=True)
class Small:
    """`heads` after the first columns, which are text and name the row."""

    caption: str
    names: tuple[str, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Entry, ...]], ...]


def _named(backbone: Backbone) -> tuple[str, str, str]:
    return backbone.model, method_name(backbone), NOTHING if backbone.dense else sparsity(backbone.sparsity)


NETWORK = ("Network", "Method", "Pruned")


def winners(study: Study) -> list[Small]:
    """The best method at each sparsity, one column a group."""
    rows = []
    for model in study.models:
        found = [study.best(group, model) for group in study.groups]
        for level in sorted({level for best in found for level in best}):
            cells = [best.get(level) for best in found]
            told = (
                Entry(short(c.backbone.method, 40), f"{error(c.error)}, of {c.rivals}") if c else Entry() for c in cells
            )
            rows.append(((model, sparsity(level)), tuple(told)))
    caption = (
        "The method with the least mean relative increase in error against dense, that increase, and from how many "
        "methods it was chosen. Compared are networks that were run on the same tasks."
    )
    heads = tuple(sentence(way(group)) for group in study.groups)
    return [Small(caption, ("Network", "Pruned"), heads, tuple(rows))] if rows else []


def _best(found: Best | None) -> Entry:
    return Entry(short(found.backbone.method, 40), f"{error(found.error)}, of {found.rivals}") if found else Entry()


def grain(study: Study, fine: Mapping[str, bool]) -> list[Small]:
    """Relative error on fine-grained and on general tasks, two columns a group."""
    rows = []
    for backbone in (b for b in study.backbones if not b.dense):
        both = [by_grain(study.table, group, backbone, fine) for group in study.groups]
        if any(any(pair) for pair in both):
            rows.append((_named(backbone), tuple(_relative(e) for pair in both for e in pair)))
    kinds = [", ".join(t for t in study.tasks if fine.get(t) is kind) for kind in (True, False)]
    caption = (
        "Mean relative increase in error against dense, %, with 95 % intervals. "
        f"Fine-grained: {kinds[0] or 'none'}. General: {kinds[1] or 'none'}."
    )
    heads = tuple(f"{kind}, {way(group)}" for group in study.groups for kind in ("Fine-grained", "General"))
    return [Small(caption, NETWORK, heads, tuple(rows))] if rows else []


def _relative(found: RelativeError | None) -> Entry:
    if found is None:
        return Entry()
    ends = found.interval
    return Entry(
        signed(100 * found.value), f"{signed(100 * ends[0])} to {signed(100 * ends[1])}" if ends else "one task"
    )


def families(study: Study, of: Mapping[str, str]) -> list[Small]:
    """Mean rank of the methods of each family, at each sparsity."""
    found = []
    for group in study.table.groups:
        ranked = [(r, r.by_family(of)) for r in study.numbers[group].ranks]
        names = sorted({family for _, means in ranked for family in means})
        rows = tuple(
            ((r.model, sparsity(r.sparsity)), tuple(Entry(f"{m[n]:.1f}") if n in m else Entry() for n in names))
            for r, m in ranked
            if m
        )
        if rows:
            caption = f"{sentence(way(group))}: mean rank of each family's methods, 1 is best."
            found.append(Small(caption, ("Network", "Pruned"), tuple(names), rows))
    return found


def lengths(study: Study) -> list[Small]:
    """Accuracy by the length of the transfer."""
    found = training_length(study.table)
    epochs = sorted({n for lengths in found for n in lengths.accuracy})
    rows = tuple(
        (
            (*_named(one.backbone), f"{one.transfer}, {one.protocol}"),
            tuple(Entry(f"{100 * one.accuracy[n]:.2f}") if n in one.accuracy else Entry() for n in epochs),
        )
        for one in found
    )
    heads = tuple(count(n, "epoch") if n else "L-BFGS" for n in epochs)
    caption = "Mean accuracy over the tasks that were run for every length, in per cent."
    return [Small(caption, (*NETWORK, "Transfer"), heads, rows)] if rows else []


def calibrations(study: Study) -> list[Small]:
    found = []
    for group in study.table.groups:
        rows, tasks = [], set[int]()
        for model in study.models:
            for backbone, own in study.calibrated.get((group, model), {}).items():
                nll = NOTHING if own.nll is None else f"{own.nll:.3f}"
                rows.append((_named(backbone), (Entry(f"{100 * own.ece:.2f}"), Entry(nll))))
                tasks.add(len(own.tasks))
        if rows:
            over = " or ".join(count(n, "task") for n in sorted(tasks))
            caption = (
                f"{sentence(way(group))}: expected calibration error in per cent and negative log-likelihood in "
                f"nats an image, on the test images; means over {over}. Lower is better."
            )
            found.append(Small(caption, NETWORK, ("ECE", "NLL"), tuple(rows)))
    return found


def harm(study: Study, task_names: Mapping[str, str]) -> list[Small]:
    """How many classes each network harms on each task, and the classes that are harmed most."""
    found = []
    for group in study.table.groups:
        counts: dict[Backbone, dict[str, Entry]] = {}
        worst = []
        for cell in study.in_group[group]:
            pair = None if cell.backbone.dense else against_dense(study.table, group, cell.backbone, cell.task)
            shifts = class_shifts(*pair) if pair else []
            if shifts:
                harmed = [s for s in shifts if s.harmed]
                tested = any(s.test.adjusted is not None for s in shifts)
                text = f"{len(harmed)} of {len(shifts)}" if tested else "untested"
                counts.setdefault(cell.backbone, {})[cell.task] = Entry(text)
                worst += [(s, cell.backbone, cell.task) for s in harmed]
        found += _harm_tables(study, group, counts, task_names)
        worst.sort(key=lambda item: item[0].net)
        rows = tuple(
            (
                (short(s.name, 60), task_names.get(task, task), *_named(b)),
                (Entry(signed(100 * s.shift)), Entry(signed(100 * s.net)), Entry(p_value(s.test.adjusted or 0.0))),
            )
            for s, b, task in worst[:WORST]
        )
        if rows:
            caption = (
                f"{sentence(way(group))}: the {count(len(rows), 'class')} most harmed of {len(worst):,}. Shift of "
                "the class's accuracy against dense, and the same less the mean shift of all classes, in points; "
                "p corrected."
            )
            found.append(Small(caption, ("Class", "Task", *NETWORK), ("Shift", "Net of mean", "p"), rows))
    return found


def _harm_tables(
    study: Study, group: Group, counts: Mapping[Backbone, Mapping[str, Entry]], task_names: Mapping[str, str]
) -> list[Small]:
    if not counts:
        return []
    tasks = [t for t in study.tasks if any(t in row for row in counts.values())]
    rows = tuple((_named(b), tuple(row.get(t, Entry()) for t in tasks)) for b, row in counts.items())
    caption = (
        f"{sentence(way(group))}: classes that lose significantly more accuracy than the others do (Welch's t-test "
        "over seeds of the class's accuracy less the mean over classes, corrected over the classes of a task)."
    )
    return [Small(caption, NETWORK, tuple(task_names.get(t, t) for t in tasks), rows)]


@dataclass(frozen=True)
class Costs:
    """Of each network: upstream accuracy (a fraction), milliseconds an image, bytes."""

    upstream: Mapping[Backbone, float]
    speed: Mapping[Backbone, float]
    size: Mapping[Backbone, float]

    @property
    def megabytes(self) -> dict[Backbone, float]:
        return {backbone: n / 1e6 for backbone, n in self.size.items()}


def networks(study: Study, costs: Costs) -> list[Small]:
    """What was transferred: zeros, work, size, speed; columns without any number are left out."""
    heads = ("Zeros", "FLOPs of dense", "Filters empty", "Channels empty", "Upstream top-1, %", "MB", "ms an image")
    rows = []
    for backbone in study.backbones:
        runs = study.runs_with_layers.get(backbone)
        own = shares(layer for run in runs for layer in run.layers) if runs else None
        rows.append((_named(backbone), _network(backbone, own, costs)))
    used = [i for i in range(len(heads)) if any(entries[i].text != NOTHING for _, entries in rows)]
    if not used:
        return []
    caption = "The networks that were transferred. Zeros are measured, of all layers the masks cover and fresh heads."
    kept = tuple((names, tuple(entries[i] for i in used)) for names, entries in rows)
    return [Small(caption, NETWORK, tuple(heads[i] for i in used), kept)]


def _network(backbone: Backbone, own: Shares | None, costs: Costs) -> tuple[Entry, ...]:
    def share(value: float | None) -> Entry:
        return Entry() if value is None else Entry(percent(value, 2))

    layers = (own.sparsity, own.flops, own.filters, own.channels) if own else (None,) * 4
    upstream, size, speed = (found.get(backbone) for found in (costs.upstream, costs.size, costs.speed))
    return (
        *map(share, layers),
        Entry() if upstream is None else Entry(f"{100 * upstream:.2f}"),
        Entry() if size is None else Entry(number(size / 1e6)),
        Entry() if speed is None else Entry(number(speed)),
    )


def beside_published(
    study: Study, published: Table, ids: Mapping[tuple[Group, Backbone, str], str], task_names: Mapping[str, str]
) -> list[Small]:
    """Cells of the same network, task and way of transfer in both: here, published, the difference."""
    known = {(c.group.transfer, c.backbone, c.task): c for c in published.cells}
    found = []
    for group in study.table.groups:
        pairs = [
            (cell, other)
            for backbone in study.backbones
            for task in study.tasks
            if (cell := study.table.at(group, backbone, task))
            and (other := known.get((group.transfer, backbone, task)))
        ]
        if pairs:
            rows = tuple(
                (
                    (*_named(cell.backbone), task_names.get(cell.task, cell.task)),
                    (
                        Entry(accuracy(cell), spread(cell), at=ids[group, cell.backbone, cell.task]),
                        Entry(accuracy(other), spread(other)),
                        Entry(f"{100 * (cell.mean - other.mean):+.2f}".replace("-", "−")),
                    ),
                )
                for cell, other in pairs
            )  # fmt: skip
            theirs = " and ".join(sorted({way(other.group) for _, other in pairs}))
            caption = (
                f"This study's {way(group)} beside the published {theirs}: accuracies in per cent, the difference in "
                "points. Weights, splits and versions may differ even where names agree."
            )
            found.append(Small(caption, (*NETWORK, "Task"), ("Here", "Published", "Difference"), rows))
    return found
