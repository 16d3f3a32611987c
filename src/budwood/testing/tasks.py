"""What every task must do. Run it over your own: `check_task(lambda: MyTask(root))`."""

from collections.abc import Callable
from typing import Any, get_args

import torch

from budwood.core.task import SPLITS, Metric, Preprocessing, Task
from budwood.tasks.images import transforms
from budwood.tasks.samples import Pixels


def check_task(open_task: Callable[[], Task]) -> Task:
    """Open a task twice and assert its contract; returns it. AssertionError says what is broken.

    Classes are unique and named, targets are in range, every split loads, declared counts are true (or `incomplete`
    and a note say what is missing), no image is in two splits (where the task tells its sources, in `samples`),
    `trainval` is train and val, and the digest is the same at each opening.
    """
    task = open_task()
    assert task.name and isinstance(task.notes, list), "a task has a name and a list of notes"
    assert task.metric in get_args(Metric), f"metric {task.metric!r} is none of {get_args(Metric)}"
    assert len(task.classes) >= 2 and all(task.classes), "a task has at least two classes, all with a name"
    assert len(set(task.classes)) == len(task.classes), "class names are unique"
    _check_counts(task)
    for split in SPLITS:
        _check_split(task, split)
    _check_apart(task)
    digest = task.digest()
    assert len(digest) == 64 and int(digest, 16) >= 0, "the digest is a sha256 in hex"
    assert open_task().digest() == digest, "the digest differs between two openings of the same data"
    return task


def _check_counts(task: Task) -> None:
    if task.declared_classes is not None:
        assert len(task.classes) == task.declared_classes, f"{len(task.classes)} classes, not {task.declared_classes}"
    incomplete = getattr(task, "incomplete", "")
    if incomplete:
        assert incomplete in task.notes, "what is missing is said in a note"
    elif task.declared_sizes is not None:
        assert task.sizes == task.declared_sizes, f"sizes {task.sizes}, not {task.declared_sizes}"


def _check_split(task: Task, split: Any) -> None:
    """Its first and last image, through a network's evaluation transform at a size no task has by chance."""
    targets = list(task.targets(split))
    assert targets, f"{split} is empty"
    assert all(0 <= target < len(task.classes) for target in targets), f"{split} has a target that is no class"
    preprocessing = Preprocessing(size=40, resize=46)
    dataset = task.load(split, transforms(preprocessing, train=False))
    assert len(dataset) == len(targets), f"{split} loads {len(dataset)} images for {len(targets)} targets"  # type: ignore[arg-type]
    for index in (0, len(targets) - 1):
        image, target = dataset[index]
        assert image.shape == (3, 40, 40), f"{split}[{index}] has shape {tuple(image.shape)}"
        assert image.dtype == torch.float32 and bool(torch.isfinite(image).all()), f"{split}[{index}] is not finite"
        assert target == targets[index], f"{split}[{index}] loads class {target}, targets() says {targets[index]}"


def _check_apart(task: Task) -> None:
    samples = getattr(task, "samples", None)
    if samples is None:
        return
    home: dict[str, str] = {}
    for split in SPLITS:
        for source, _ in samples[split]:
            assert home.setdefault(_name(source), split) == split, (
                f"{source} is in {home[_name(source)]} and in {split}"
            )
    if together := getattr(task, "trainval", None):
        names = {_name(source): target for source, target in together}
        assert len(names) == len(together), "trainval has an image twice"
        assert names == {_name(s): k for split in ("train", "val") for s, k in samples[split]}, "trainval is another"


def _name(source: Any) -> str:
    return source.name if isinstance(source, Pixels) else str(source)
