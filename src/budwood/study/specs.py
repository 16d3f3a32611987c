"""RunSpecs from what a user asks for: the same for one network and task as for a whole study."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..core.registry import methods
from ..core.spec import Protocol, Recipe, RunSpec, Transfer, Where
from ..core.task import Preprocessing, Task
from ..models.network import Network
from ..transfer.protocols import preprocessing_for, recipe_for


@dataclass(frozen=True)
class Start:
    """Where a run begins: a network as it is, or as another run will make it (`parent` is then `run:RUN_ID`).

    `sparsity` is of the backbone.
    """

    model: str
    parent: str
    preprocessing: Preprocessing
    method: str = "dense"
    where: Where = "none"
    sparsity: float = 0.0

    @classmethod
    def of(cls, network: Network) -> "Start":
        lineage = network.lineage
        sparsity = network.backbone.sparsity
        pruned: dict[str, Any] = {}
        if sparsity > 0:
            pruned = {"method": lineage.method, "where": "upstream", "sparsity": sparsity}
        return cls(lineage.architecture, network.checkpoint().digest(), lineage.preprocessing, **pruned)

    def facts(self, size: int | None) -> dict[str, Any]:
        """What of a RunSpec says where it starts, for images of `size` pixels if given."""
        at = self.preprocessing if size is None else self.preprocessing.at(size)
        return {"model": self.model, "parent": self.parent, "preprocessing": at}


@dataclass(frozen=True)
class Pruning:
    """A method to prune by, to which sparsity, with which settings."""

    method: str
    sparsity: float
    options: dict[str, Any] = field(default_factory=dict)


TaskKey = tuple[str, str, str]
"""Name, digest and metric: what a RunSpec says of a task."""


def task_key(task: Task) -> TaskKey:
    return task.name, task.digest(), task.metric


def transfer_spec(
    start: Start,
    task: Task,
    way: Transfer,
    seed: int,
    given: Recipe,
    protocol: Protocol = "budwood",
    pruning: Pruning | None = None,
    teacher: str | None = None,
) -> RunSpec:
    """The transfer of a network to a task (whose splits are the protocol's already), pruned on the way if told."""
    recipe = recipe_for(protocol, task, way, given)
    if pruning is None:
        facts: dict[str, Any] = {"method": start.method, "where": start.where, "sparsity": start.sparsity}
        recipe = recipe.model_copy(update={"distill": 0.0})
    else:
        gradual = way == "full" and recipe.epochs > 0 and methods.get(pruning.method).tags.gradual
        facts = {"method": pruning.method, "where": "downstream" if gradual else "one-shot"}
        facts |= {"sparsity": pruning.sparsity, "options": pruning.options}
    seen = preprocessing_for(protocol, task, way, start.preprocessing, start.method, recipe.size)
    return RunSpec(
        model=start.model, parent=start.parent, preprocessing=seen, task=task.name, data=task.digest(),
        metric=task.metric, transfer=way, seed=seed, recipe=recipe, protocol=protocol, teacher=teacher, **facts,
    )  # fmt: skip


def upstream_spec(
    start: Start, pruning: Pruning, seed: int, recipe: Recipe, data: dict[str, Any], trains: bool
) -> RunSpec:
    """Pruning before any transfer: `data` is what `data_facts` says of the images; `trains` tells training on them from
    calibrating by them."""
    tags = methods.get(pruning.method).tags
    given = tags.density == "given"
    where: Where = "upstream" if trains and (given or (tags.gradual and recipe.epochs > 0)) else "one-shot"
    used = recipe if trains else Recipe(epochs=0, size=recipe.size)
    return RunSpec(
        **start.facts(used.size), **data, method=pruning.method, where="none" if pruning.method == "dense" else where,
        sparsity=start.sparsity if given else pruning.sparsity, options=pruning.options, transfer="none", seed=seed,
        recipe=used,
    )  # fmt: skip


def data_facts(task: Task | None, calibration: str | None) -> dict[str, Any]:
    """What of a RunSpec says on which images a network is pruned: a task's, or unlabelled ones of this digest."""
    if task is not None:
        return dict(zip(("task", "data", "metric"), task_key(task), strict=True))
    return {"task": "none", "data": calibration or "none"}


def counting(seeds: list[int], way: Transfer, recipe: Recipe, pruned_by: Iterable[str]) -> list[int]:
    """Those of the seeds that make a difference to runs of this recipe, pruned on the way by these methods."""
    alike = way == "linear" and recipe.head == "lbfgs"  # it comes to the same head for every seed
    return seeds[:1] if alike and not any(methods.get(name).tags.seeded for name in pruned_by) else seeds
