"""`budwood eval`: how many of some labelled images a network names right."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..core.errors import UserError
from ..core.task import Task
from ..models.network import Network, open_network
from ..tasks.images import transforms
from ..tasks.plain import Labelled
from ..train.evaluate import logits_of, scores
from .common import Size, Workers, open_task, print_json, say


def run(
    model: str,
    data: str | None = None,
    /,
    *,
    task: str | None = None,
    split: Literal["train", "val", "test", "all"] = "all",
    size: Size | None = None,
    workers: Workers = 1,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Accuracy of a network on labelled images, its classes matched by name or, where it has no names, by order.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, packaged:NAME, py:module.function, others (`budwood ls models`), or the path of a
        checkpoint.
    data
        Folder of class folders, CSV of path,label, or a folder of files named by ImageNet's ids (n01440764_*.jpg).
    task
        A known data set; DATA is then where it lies.
    split
        Which images, as a transfer would split them; all of DATA for a folder without --split.
    size
        Image size in pixels; the network's own if not given.
    workers
        Processes that load images.
    json
        Print the result as JSON on stdout and nothing else.
    """
    network = open_network(model)
    preprocessing = network.lineage.preprocessing
    view = transforms(preprocessing.at(size) if size else preprocessing, train=False)
    if task is not None or data is None or not Path(data).exists() or split != "all":
        opened: Task = open_task(data, task)
        part = "test" if split == "all" else split
        images, classes, notes = (
            opened.load(part, view),
            opened.classes,
            [f"{opened.name}, split {part}", *opened.notes],
        )
    else:
        labelled = Labelled(Path(data))
        images, classes, notes = labelled.load(view), labelled.classes, labelled.notes
    for line in [*network.notes, *notes]:
        say(line, json)
    order, how = _order(network, classes)
    logits, targets = logits_of(network.module, images, workers=workers)
    found = scores(logits[:, order], targets)
    if json:
        print_json(found | {"images": len(targets), "classes": len(classes), "matched_by": how})
        return
    print(f"top-1 {found['top1']:.2%}, mean per class {found['mean_per_class']:.2%}, loss {found['loss']:.4f}")
    print(f"{len(targets)} images at {size or preprocessing.size} px, {len(classes)} classes matched by {how}")


def _order(network: Network, classes: tuple[str, ...]) -> tuple[list[int], str]:
    """For each class of the data its output of the network, and whether names or order decided."""
    own = network.lineage.classes
    if own is not None and set(classes) <= set(own):
        return [own.index(name) for name in classes], "name"
    count = network.lineage.num_classes
    if len(classes) != count:
        raise UserError(
            f"the network has {count} classes, the data {len(classes)} (first: {classes[0]!r}), and their names do not "
            "match; evaluate it on data of its own classes, or transfer it first"
        )
    return list(range(count)), "order"
