"""Other ways to split an opened task."""

from budwood.core.errors import UserError
from budwood.core.files import digest_of
from budwood.core.task import Metric, Task

from .samples import SampleTask


class Official(SampleTask):
    """The task as the study splits it: train and val are trained on together, and the epoch is chosen on test, by top-1
    whatever the task is measured by.

    The order of train is the authors' where it is known. Raises UserError where the task does not list its samples.
    """

    def __init__(self, task: Task) -> None:
        if not isinstance(task, SampleTask):
            raise UserError(f"the task {task.name} does not list its samples, so it cannot be split as the study does")
        for fact in ("name", "metric", "source", "licence", "fine_grained", "statistics", "study_lr", "classes"):
            setattr(self, fact, getattr(task, fact))
        self.root, self.read = task.root, task.read
        train = task.trainval or [*task.samples["train"], *task.samples["val"]]
        self.samples = {"train": train, "val": task.samples["test"], "test": task.samples["test"]}
        self.notes = [*task.notes, "split as the study does: train and val are trained on, the epoch is chosen on test"]
        self._digest = digest_of(["official", task.digest()])

    def digest(self) -> str:
        return self._digest


def chosen_by(task: Task) -> Metric:
    """What tells the best epoch, or the best head. The study's code takes top-1 for every task."""
    return "top1" if isinstance(task, Official) else task.metric
