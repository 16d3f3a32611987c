"""Whose rules a transfer follows: Budwood's own, or those of "How Well Do Sparse ImageNet Models Transfer?" (CVPR 2022)
as its published code has them. docs/explain/protocol.md lists every difference."""

from collections.abc import Callable

from ..core.errors import UserError
from ..core.spec import LINEAR_ONLY, Protocol, Recipe, Transfer
from ..core.task import Preprocessing, Task
from ..tasks.views import Official

SEEDS: dict[Protocol, dict[Transfer, int]] = {
    "budwood": {"linear": 1, "full": 1},
    "cvpr22": {"linear": 5, "full": 3},
}
"""How many seeds are run where nobody says how many."""


def task_for(protocol: Protocol, task: Task) -> Task:
    """The task with its splits as the protocol has them: the study trains on train and val together, and chooses the
    epoch on test."""
    return Official(task) if protocol == "cvpr22" else task


def recipe_for(protocol: Protocol, task: Task, way: Transfer, given: Recipe) -> Recipe:
    """The settings of a transfer; of a full one, what was set in `given` counts before the protocol's own."""
    if way == "linear":
        return _for_linear(protocol, given)
    own = Recipe()
    if protocol == "cvpr22":
        # The study tests `epoch % 50` at an epoch's end, so the rate falls from the 0-based epochs 51 and 101 on.
        own = Recipe(epochs=150, batch_size=64, lr=task.study_lr, schedule="constant", milestones=(51, 101))
    counted = given.model_fields_set.difference(LINEAR_ONLY)
    return Recipe.model_validate(own.model_dump() | {name: getattr(given, name) for name in counted})


def _for_linear(protocol: Protocol, given: Recipe) -> Recipe:
    own = {"head": "sgd", "adapt_bn": False}
    return (given.model_copy(update=own) if protocol == "cvpr22" else given).for_linear()


def check_linear(protocol: Protocol, given: Recipe, full_too: bool = False, spelt: Callable[[str], str] = str) -> None:
    """Raise UserError where `given` sets what a linear transfer would pass over; what equals its settings is let be.

    With `full_too` the same settings are a full transfer's, where all but these count. `spelt` is a setting's name
    as its user writes it.
    """
    used = _for_linear(protocol, given)
    counted = given.model_fields_set.intersection(LINEAR_ONLY) if full_too else given.model_fields_set
    idle = [spelt(name) for name, value in given if name in counted and value != getattr(used, name)]
    if not idle:
        return
    names, (them, do) = ", ".join(idle), ("it", "does") if len(idle) == 1 else ("them", "do")
    if protocol == "cvpr22":
        raise UserError(f"the cvpr22 protocol fixes {names} of a linear transfer; leave {them} out")
    raise UserError(f"{names} {do} not count for a linear head, which has the study's settings; leave {them} out")


def check_full(given: Recipe, spelt: Callable[[str], str] = str) -> None:
    """Raise UserError where `given` sets what counts for a linear head alone, and there is none."""
    for name in LINEAR_ONLY:
        if getattr(given, name) != getattr(Recipe(), name):
            raise UserError(f"{spelt(name)} counts for a linear head alone; leave it out")


def preprocessing_for(
    protocol: Protocol, task: Task, way: Transfer, own: Preprocessing, method: str, size: int | None
) -> Preprocessing:
    """How images reach a network whose own preprocessing is `own`, at `size` pixels if given.

    The study's is 256 to 224 pixels; a full transfer normalises by the data set, a linear one as the network was
    trained, and RigL's networks get bicubic interpolation, with which they were trained.
    """
    if protocol == "cvpr22":
        changes: dict[str, object] = {"size": 224, "resize": 256}
        if method.startswith("rigl"):
            changes["interpolation"] = "bicubic"
        if way == "full" and task.statistics is not None:
            changes["mean"], changes["std"] = task.statistics
        own = own.model_copy(update=changes)
    return own if size is None else own.at(size)
