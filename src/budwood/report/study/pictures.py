"""Which plots a study has: those for which there are numbers, in the order of the page."""

from collections.abc import Iterator, Mapping

from ..figure import Picture
from ..words import count
from .cells import Backbone, Group
from .network import layerwise
from .numbers import Study
from .plots.by_task import by_task_plot
from .plots.calibration import calibration_plot
from .plots.common import Looks, looks
from .plots.front import front_plot
from .plots.layers import layers_plot
from .plots.linear_full import linear_full_plot
from .plots.relative_error import relative_error_plot
from .plots.upstream import upstream_plot
from .relate import Correlation, pareto, upstream_correlation
from .summary import mean_accuracy

Costs = Mapping[Backbone, float]


def slug(group: Group) -> str:
    return "-".join([group.transfer, group.protocol, *([str(group.epochs)] if group.epochs else [])])


def looks_of(study: Study) -> Looks:
    return looks(b.method for b in study.backbones if not b.dense)


def places(study: Study) -> Iterator[tuple[str, Group, str]]:
    """(part of a name, group, architecture) of every pair with cells; numbers, since names may be anything."""
    for group in study.table.groups:
        for number, model in enumerate(study.models, 1):
            if any(c.backbone.model == model for c in study.in_group[group]):
                yield f"{slug(group)}-{number}", group, model


def against_sparsity(study: Study) -> list[Picture]:
    seen = looks_of(study)
    found = [
        relative_error_plot(f"error-{name}", group, model, study.numbers[group].errors, seen)
        for name, group, model in places(study)
    ]
    return [picture for picture in found if picture]


def by_task(study: Study, task_names: Mapping[str, str]) -> list[Picture]:
    seen = looks_of(study)
    found = [
        by_task_plot(f"tasks-{name}", study.table, group, model, seen, task_names)
        for name, group, model in places(study)
    ]
    return [picture for picture in found if picture]


def linear_full(study: Study) -> list[Picture]:
    """Linear against full transfer of the same protocol; of several lengths the longest."""
    seen, found = looks_of(study), []
    for protocol in dict.fromkeys(g.protocol for g in study.groups):
        ways = {g.transfer: study.numbers[g].errors for g in study.groups if g.protocol == protocol}
        if {"linear", "full"} <= ways.keys():
            for number, model in enumerate(study.models, 1):
                name = f"linear-full-{protocol}-{number}"
                found.append(linear_full_plot(name, protocol, model, ways["linear"], ways["full"], seen))
    return [picture for picture in found if picture]


def upstream(study: Study, accuracy: Costs) -> list[Picture]:
    seen, found = looks_of(study), []
    for name, group, model in places(study):
        correlation = upstream_correlation(study.table, group, model, accuracy)
        if correlation:
            _, means = mean_accuracy(study.table, group, correlation.backbones)
            points = {b: (accuracy[b], means[b]) for b in correlation.backbones}
            found.append(upstream_plot(f"upstream-{name}", group, model, points, correlated(correlation), seen))
    return found


def correlated(found: Correlation) -> str:
    """In words, for a caption."""
    ends = f", 95 % interval {found.interval[0]:.2f} to {found.interval[1]:.2f}" if found.interval else ""
    return (
        f"Spearman's rank correlation {found.rho:.2f}{ends}, over {count(len(found.backbones), 'network')} and "
        f"{count(len(found.tasks), 'task')}."
    ).replace("-", "−")


def fronts(study: Study, cost: Costs, what: str, unit: str) -> list[Picture]:
    """Accuracy against `cost` (lower is better), one plot a group, over the tasks all these networks have."""
    seen, found = looks_of(study), []
    for group in study.table.groups:
        own = {c.backbone for c in study.in_group[group]}
        backbones = [b for b in study.table.backbones if b in own and b in cost]
        tasks, means = mean_accuracy(study.table, group, backbones)
        if len(backbones) > 1 and tasks:
            points = {b: (cost[b], means[b]) for b in backbones}
            name = f"{what}-{slug(group)}"
            found.append(front_plot(name, group, points, pareto(means, cost), unit, seen))
    return found


def layers(study: Study) -> list[Picture]:
    pruned = {b: [s.sparsity for s in layerwise(runs).values()] for b, runs in study.runs_with_layers.items()}
    seen = looks_of(study)
    found = [layers_plot(f"layers-{i}", model, pruned, seen) for i, model in enumerate(study.models, 1)]
    return [picture for picture in found if picture]


def calibration(study: Study) -> list[Picture]:
    seen, found = looks_of(study), []
    for name, group, model in places(study):
        ece = {b: c.ece for b, c in study.calibrated.get((group, model), {}).items()}
        found.append(calibration_plot(f"calibration-{name}", group, model, ece, seen))
    return [picture for picture in found if picture]
