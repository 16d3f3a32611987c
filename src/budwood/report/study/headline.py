"""What a study shows and how far it can be trusted, in sentences made from the numbers alone."""

import statistics
from collections.abc import Iterable, Sequence

from ..frame import wilson
from ..words import METRICS, count, percent, short, signed, sparsity
from .cells import Backbone, Cell, Group
from .numbers import Best, Study
from .summary import RelativeError

ON_TEST = {"cvpr22"}
"""Protocols under which our own runs choose the epoch by its accuracy on the test images."""

ENOUGH_TASKS = 6
"""With fewer, a signed-rank test over tasks cannot be significant at 5 %."""


def opening(study: Study) -> str:
    """What was run."""
    cells = study.table.cells
    if not cells:
        return "No run of this study has a result."
    pruned = [b for b in study.table.backbones if not b.dense]
    models = [short(m, 40) for m in dict.fromkeys(b.model for b in study.table.backbones)]
    whole = len(cells) + study.gaps.total()
    ways = " and ".join(dict.fromkeys(g.transfer for g in study.table.groups))
    return (
        f"{count(len(pruned), 'pruned network')} of {listed(models)} on {count(len(study.table.tasks), 'task')}, "
        f"{ways} transfer: {len(cells):,} of {count(whole, 'cell')} filled, from "
        f"{count(sum(c.n for c in cells), 'run')}."
    )


def findings(study: Study) -> list[tuple[str, str]]:
    """(network and way of transfer, what came out), one each."""
    several = len({g.protocol for g in study.groups}) > 1 or len(study.groups) > 2
    return [
        (f"{short(model, 40)}, {way(group, several)}", _finding(study, group, model))
        for model in study.models
        for group in study.groups
        if study.rows(group, model)
    ]


def way(group: Group, fully: bool = True) -> str:
    """ "linear transfer (protocol cvpr22, 150 epochs)"."""
    if not fully:
        return f"{group.transfer} transfer"
    epochs = f", {count(group.epochs, 'epoch')}" if group.epochs else ""
    return f"{group.transfer} transfer (protocol {group.protocol}{epochs})"


def sentence(text: str) -> str:
    """The same with a capital."""
    return text[:1].upper() + text[1:]


def _finding(study: Study, group: Group, model: str) -> str:
    errors = {b: e for b, e in study.numbers[group].errors.items() if b.model == model and not b.dense}
    if not errors:
        return "there is no dense network to compare with, or nothing pruned."
    return " ".join([*_winners(study.best(group, model)), _matched(errors)])


def _winners(best: dict[float, Best]) -> list[str]:
    if not best:
        return []
    by_method: dict[str, list[Best]] = {}
    for found in best.values():
        by_method.setdefault(found.backbone.method, []).append(found)
    parts = []
    for method, wins in by_method.items():
        told = listed([f"{sparsity(w.backbone.sparsity)} ({error(w.error)})" for w in wins])
        parts.append(f"{short(method, 40)} at {told}")
    return [f"Best method at each sparsity, by mean relative error against dense: {'; '.join(parts)}."]


def _matched(errors: dict[Backbone, RelativeError]) -> str:
    """The sparsest that makes no more errors than dense on average, of those run on all tasks; or the nearest."""
    tasks = max((e.tasks for e in errors.values()), key=len)
    whole = {b: e for b, e in errors.items() if e.tasks == tasks}
    as_good = [b for b, e in whole.items() if round(100 * e.value, 1) <= 0]
    if as_good:
        found = max(as_good, key=lambda b: (b.sparsity, -whole[b].value))
        opening = f"Dense is matched on average up to {sparsity(found.sparsity)} pruned"
    else:
        found = min(whole, key=lambda b: whole[b].value)
        opening = f"No pruned network matches dense on average; the nearest has {sparsity(found.sparsity)} pruned"
    detail = f"{short(found.method, 40)}, {error(whole[found])}{interval(whole[found])}"
    return f"{opening} ({detail}; {count(len(tasks), 'task')})."


def error(found: RelativeError) -> str:
    return f"{signed(100 * found.value)}\u00a0%"


def interval(found: RelativeError) -> str:
    if found.interval is None:
        return ""
    low, high = found.interval
    return f", 95 % interval {signed(100 * low)} to {signed(100 * high)}"


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def cautions(study: Study) -> list[str]:
    """What keeps the numbers from being as sure as they look."""
    if not study.table.cells:
        return []
    return [*_holes(study), *_seeds(study.table.cells), *_images(study.table.cells), *_tasks(study), *_choice(study)]


def _holes(study: Study) -> list[str]:
    total = study.gaps.total()
    if not total:
        return []
    why = listed([f"{n:,} {what}" for what, n in study.gaps.most_common()])
    return [
        f"{count(total, 'cell')} {'is' if total == 1 else 'are'} missing ({why}). They are shown as a dash and are in "
        "no mean; a relative error over fewer tasks says so."
    ]


def _seeds(cells: Iterable[Cell]) -> list[str]:
    counts: dict[tuple[Group, str], list[int]] = {}
    for cell in cells:
        counts.setdefault((cell.group, cell.backbone.model), []).append(cell.n)
    usual = {f"{short(model, 30)} {group.transfer}": statistics.mode(n) for (group, model), n in counts.items()}
    single = [name for name, n in usual.items() if n == 1]
    low = [name for name, n in usual.items() if 1 < n < 5]
    told = []
    if single:
        told.append(
            f"One seed a cell ({', '.join(single)}): the spread over seeds is unknown, and no difference on a task can "
            "be tested."
        )
    if low:
        told.append(f"Fewer than five seeds ({', '.join(low)}): the spread over seeds is hardly known.")
    return told


def _images(cells: Iterable[Cell]) -> list[str]:
    """The uncertainty that the smallest test split leaves."""
    sizes = {
        (c.task, r.task["sizes"]["test"]): c.mean
        for c in cells
        for r in c.results[:1]
        if r.task.get("sizes", {}).get("test")
    }
    if not sizes:
        return []
    task, n = min(sizes, key=lambda key: key[1])
    low, high = wilson(sizes[task, n], n)
    return [
        f"The smallest test split has {count(n, 'image')} ({short(task, 40)}): an accuracy of "
        f"{percent(sizes[task, n])} on it is uncertain by about ±{50 * (high - low):.1f} points "
        "(95 % Wilson interval), whatever the seeds say."
    ]


def _tasks(study: Study) -> list[str]:
    n, told = len(study.table.tasks), []
    if n < ENOUGH_TASKS:
        told.append(f"A test over {count(n, 'task')} can find nothing at 5 %: it takes {ENOUGH_TASKS} tasks at least.")
    metrics = {r.spec.metric for c in study.table.cells for r in c.results[:1]}
    if len(metrics) > 1:
        told.append(f"Means over tasks mix {listed([METRICS[m] for m in sorted(metrics)])}, as the study does.")
    return told


def _choice(study: Study) -> list[str]:
    found = sorted({c.group.protocol for c in study.table.cells if c.results} & ON_TEST)
    return [
        f"The {name} protocol keeps the epoch that is best on the test images, which makes every accuracy look a "
        "little better than it is."
        for name in found
    ]
