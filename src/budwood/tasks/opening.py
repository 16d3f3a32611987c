"""A task by the word a user has for it: a registered name, or the path of images of one's own."""

from pathlib import Path
from typing import Any

from budwood.core.errors import UserError
from budwood.core.registry import nearest, tasks
from budwood.core.task import Metric, Task


def open_task(
    word: str, root: Path | None = None, *, metric: Metric | None = None, allow_unreadable: bool = False
) -> Task:
    """The task called `word`, its data at `root` if given; or the folder or CSV file of that path.

    Raises UserError where it is neither, or where `metric` is given for a task that has its own.
    """
    named = word in tasks and (root is not None or not Path(word).exists())
    if named and word != "folder":
        if metric is not None:
            raise UserError(f"--metric is for images of one's own; {word} is measured as its authors do")
        task: Task = tasks.get(word)(root)
        return task
    place = root if named else Path(word)
    if place is not None and not place.exists():
        raise UserError(f"{place} is neither a folder or file nor a task; {nearest(str(place), tasks.names())}")
    own: Any = {"metric": metric} if metric else {}
    folder: Task = tasks.get("folder")(place, allow_unreadable=allow_unreadable, **own)
    return folder
