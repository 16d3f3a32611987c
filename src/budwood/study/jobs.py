"""What a worker does: a few runs one after the other, with what they share opened once."""

import functools
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.checkpoint import Checkpoint
from ..core.errors import UserError
from ..core.files import write_atomic
from ..core.result import Result
from ..core.spec import RunSpec
from ..core.task import Task
from ..models.network import Network, from_checkpoint, open_network
from ..tasks.plain import Images
from .run import CHECKPOINT, Runner, features_key
from .specs import TaskKey

ERROR = "error.txt"
"""In a run's folder: the traceback of what nobody foresaw."""

Job = tuple[RunSpec, ...]
"""Runs of one network on one task, done in one go because they share their features."""


@dataclass(frozen=True)
class Context:
    """What every worker needs to know. Tasks are opened already, so that no worker reads all images again."""

    root: Path
    sources: dict[str, str]
    tasks: dict[TaskKey, Task]
    calibration: Images | None = None
    keep: frozenset[str] = frozenset()
    """Runs whose networks stay."""
    threads: int = 1
    loaders: int = 0
    device: str = "cpu"


def jobs_of(specs: Sequence[RunSpec]) -> list[Job]:
    """Linear runs that share features are one job, every other run is one of its own."""
    groups: dict[str, list[RunSpec]] = {}
    for spec in specs:
        key = f"{features_key(spec)} {spec.task}" if spec.transfer == "linear" else spec.run_id
        groups.setdefault(key, []).append(spec)
    return [tuple(group) for group in groups.values()]


def work(job: Job, context: Context) -> list[Result]:
    """Do the runs of a job. What goes wrong is a `failed` result with its reason, and the next run goes on."""
    torch.set_num_threads(context.threads)
    results, runner = [], None
    for spec in job:
        try:
            runner = runner or _runner(spec, context)
            results.append(runner.run(spec))
        except UserError as error:
            results.append(failed(spec, str(error)))
        except Exception as error:  # a study of a thousand runs does not end with the first that breaks
            path = context.root / spec.run_id / ERROR
            write_atomic(path, traceback.format_exc())
            results.append(failed(spec, f"{type(error).__name__}: {error}; see {path}"))
    return results


def _runner(spec: RunSpec, context: Context) -> Runner:
    """For a job that begins with `spec`."""
    network = opened(spec.parent, context.sources.get(spec.parent), context.root)
    task = context.tasks.get((spec.task, spec.data, spec.metric))
    return Runner(
        network, task, context.root, context.loaders, device=context.device, calibration=context.calibration,
        wait=True, keep=context.keep,
    )  # fmt: skip


def failed(spec: RunSpec, reason: str) -> Result:
    return Result(run_id=spec.run_id, spec=spec, status="failed", reason=" ".join(reason.split()))


@functools.lru_cache(maxsize=2)
def opened(parent: str, source: str | None, root: Path) -> Network:
    """The network of a digest, or the one that an upstream run has made."""
    kind, _, run_id = parent.partition(":")
    if kind == "run":
        return from_checkpoint(Checkpoint.load(root / run_id / CHECKPOINT))
    if source is None:
        raise UserError(f"nothing says where the network {parent[:16]} lies")
    network = open_network(source)
    if network.checkpoint().digest() != parent:
        raise UserError(f"{source} has changed since the study was planned; run the study again")
    return network
