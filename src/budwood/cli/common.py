"""What several verbs share: options to objects, the screen, a runs folder that is ours."""

import copy
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Live

from ..core.errors import UserError
from ..core.files import csv_text, write_atomic
from ..core.registry import tasks
from ..core.spec import Recipe, RunSpec
from ..core.task import Metric, Task
from ..study.grid import check_folder
from ..study.run import mark
from ..tasks import opening
from ..train.fit import PRUNING, Progress

screen = Console(stderr=True, highlight=False)
"""For words to a person; what a program may read goes to stdout."""


Training = Annotated[Recipe, Parameter(name="*", consume_multiple=True)]
"""The settings of a training, an option each."""
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**31))]
Size = Annotated[int, Parameter(validator=Number(gte=16, lte=2048))]
Workers = Annotated[int, Parameter(validator=Number(gte=0))]
Batch = Annotated[int, Parameter(validator=Number(gte=1, lte=1024))]
Accelerate = Literal["auto", "off"]
Seconds = Annotated[float, Parameter(validator=Number(gte=0))]
Threads = Annotated[int, Parameter(validator=Number(gte=1, lte=1024))]


def open_task(
    data: str | None, task: str | None, *, metric: Metric | None = None, allow_unreadable: bool = False
) -> Task:
    """The task that DATA or --task names: a folder or CSV of one's own, or a registered one."""
    if task is not None:
        tasks.get(task)  # says what there is
        place = Path(data) if data is not None else None
        return opening.open_task(task, place, metric=metric, allow_unreadable=allow_unreadable)
    if data is None:
        raise UserError("no data: name a folder of class folders, a CSV file, or a task (`budwood ls tasks`)")
    return opening.open_task(data, metric=metric, allow_unreadable=allow_unreadable)


def checked_sparsity(value: str) -> float:
    """A share in [0, 1). Raises UserError with what may have been meant."""
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"the sparsity {value!r} is not a number; give the share of zeros, as 0.9") from None
    if 0 <= number < 1:
        return number
    hint = f"did you mean {number / 100:g}?" if 1 < number < 100 else "0.9 means 90 % zeros"
    raise UserError(f"the sparsity {value} is not at least 0 and below 1; {hint}")


def checked_device(name: str) -> str:
    """A device this machine has; UserError for any other."""
    try:
        float(torch.ones(1, device=name))  # meta has no values
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"this machine has no device {name!r} that PyTorch can use; leave --device out") from None
    return name


def flag(setting: str) -> str:
    """How a setting of a recipe is spelt on the command line."""
    return "--" + setting.replace("_", "-")


def parsed_options(pairs: list[str], base: dict[str, Any] | None = None) -> dict[str, Any]:
    """`KEY=VALUE` settings of a method over those of `base`, dots for parts of a part: schedule.end=0.5."""
    found: dict[str, Any] = copy.deepcopy(base or {})
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise UserError(f"the option {pair!r} is not KEY=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text.split(",") if "," in text else text
        *parents, last = key.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"the option {pair!r} contradicts another one")
        place[last] = value
    return found


def runs_folder(path: Path) -> Path:
    """A folder for runs: new, empty, or one of ours already. UserError for any other, before anything is written."""
    check_folder(path)
    mark(path)
    return path


class Bars:
    """Progress bars with rate and time left, on a terminal; silent elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.progress = Live(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=screen,
            disable=quiet or not screen.is_terminal,
        )

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def of(self, spec: RunSpec) -> Progress:
        """A bar for one run."""
        bar = self.progress.add_task(label(spec), total=None, note="")
        start: list[float] = []

        def show(done: int, total: int, how: str) -> None:
            now = self.progress.get_time()
            if how.startswith(PRUNING):  # which takes long, and makes no step
                start.clear()
            else:
                start[:] = start or [now, done]
            rate = (done - start[1]) / (now - start[0]) if start and now > start[0] else 0.0
            note = ", ".join(part for part in (how, f"{rate:.1f} steps/s" if rate else "") if part)
            self.progress.update(bar, completed=done, total=total, note=note)

        return show


def label(spec: RunSpec) -> str:
    """A run in a few words."""
    pruned = "dense" if spec.where == "none" else f"{spec.method} {spec.sparsity:.0%}"
    way = {"linear": "linear head", "full": "full", "none": "upstream"}[spec.transfer]
    return f"{way}, {pruned}, seed {spec.seed}"


def say(text: str, quiet: bool = False) -> None:
    """A line for a person."""
    if not quiet:
        screen.print(text, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """One row a run, as CSV or, where the name ends so, Parquet. Columns are those of any row.

    Raises UserError where the file cannot be written or Parquet's library is not installed.
    """
    write_atomic(path, _parquet(rows) if path.suffix == ".parquet" else csv_text(rows))


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install 'budwood[parquet]', or write NAME.csv") from None
    columns = dict.fromkeys(name for row in rows for name in row)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict.fromkeys(columns) | row for row in rows]), sink)
    return bytes(sink.getvalue())
