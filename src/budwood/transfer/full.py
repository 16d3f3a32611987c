"""Full transfer: a new head, then every weight that the mask keeps is trained; a method may prune on the way."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from ..core.pruner import Pruner
from ..core.spec import Recipe
from ..core.task import Split, Task
from ..models.network import Network, replace_head
from ..tasks.images import Seeded, transforms
from ..tasks.samples import kept
from ..tasks.views import chosen_by
from ..train.fit import Fit, Progress


@dataclass(frozen=True)
class Transferred:
    """`history` has one row per epoch (or per candidate head); `epoch` is the row that was selected.

    `outputs` has the network's logits (N, classes) float32 and the class indices (N,) on the splits where the transfer
    knows them already.
    """

    network: Network
    history: list[dict[str, float]]
    epoch: int
    outputs: dict[Split, tuple[Tensor, Tensor]] = field(default_factory=dict)


def full(
    network: Network,
    task: Task,
    pruner: Pruner,
    recipe: Recipe,
    seed: int,
    *,
    keep_head: bool = False,
    teacher: nn.Module | None = None,
    workers: int = 0,
    accelerate: bool = True,
    state_path: Path | None = None,
    progress: Progress | None = None,
) -> Transferred:
    """Train `network`, in place, on the task's training split; the best epoch is chosen on its validation split.

    `keep_head` trains the classifier that is there: upstream training on the classes it was made for.
    With `accelerate` steps at a sparse mask on a CPU go through the engine (see `train.fit.Fit`).
    With `state_path` a killed run goes on from there. Raises UserError as `train.fit.Fit` does.
    """
    if not keep_head:
        network = replace_head(network, task.classes, seed)
    preprocessing = network.lineage.preprocessing
    train = kept(task.load("train", transforms(preprocessing, train=recipe.augment)), workers)
    val = task.load("val", transforms(preprocessing, train=False))
    fit = Fit(
        network.module,
        pruner,
        network.mask,
        Seeded(train, seed),
        val,
        recipe,
        metric=chosen_by(task),
        seed=seed,
        teacher=teacher,
        workers=workers,
        accelerate=accelerate,
        state_path=state_path,
        progress=progress,
    )
    fitted = fit.run()
    network = replace(network, mask=fitted.mask, notes=network.notes + fitted.notes)
    return Transferred(network, fitted.history, fitted.epoch)
