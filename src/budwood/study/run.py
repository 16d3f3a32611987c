"""One run: what a RunSpec names, done once, in a directory of its own that is called by its run_id.

ROOT/RUN_ID/spec.json                what determines it
ROOT/RUN_ID/state.safetensors        while it is unfinished: where to go on
ROOT/RUN_ID/metrics.jsonl            one row an epoch
ROOT/RUN_ID/checkpoint.safetensors   the network, packed
ROOT/RUN_ID/result.json              written last: a run with it is finished and never done again
ROOT/features/KEY/                   features that several linear runs share
ROOT/crops/                          decoded images, for the linear runs of every network
ROOT/pruned/KEY.safetensors          a network pruned at once by a method that takes long, for the runs that share it
"""

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch.utils.data import Dataset

from ..bench.environment import environment
from ..core.checkpoint import Checkpoint, Lineage, pack
from ..core.errors import UserError
from ..core.files import canonical_json, digest_of, locked, write_atomic
from ..core.pruner import Plan, Pruner
from ..core.registry import methods
from ..core.result import Result
from ..core.spec import COMPONENT_VERSIONS, RunSpec
from ..core.task import Task
from ..models.network import Network, from_checkpoint
from ..models.profile import check_size, layers
from ..tasks.images import transforms
from ..tasks.plain import Images
from ..train import distributed
from ..train.batchnorm import recalibrate
from ..train.data import batches_from
from ..train.evaluate import logits_of, per_class, scores
from ..train.fit import Progress
from ..transfer.full import Transferred, full
from ..transfer.linear import linear

MARKER = "budwood.json"
"""Says that a folder is one for runs."""

RESULT, STATE, CHECKPOINT, SPEC, METRICS = (
    "result.json", "state.safetensors", "checkpoint.safetensors", "spec.json", "metrics.jsonl",
)  # fmt: skip


LOCK = ".lock"
"""Held in a run's folder by the process that does it."""


@dataclass
class Runner:
    """Executes specs on one opened network and task, below `root`.

    `fresh` starts unfinished runs over instead of going on with them.
    """

    network: Network
    task: Task | None
    root: Path
    workers: int = 0
    fresh: bool = False
    device: str = "cpu"
    progress: Callable[[RunSpec], Progress | None] = lambda spec: None
    calibration: Images | None = None
    """What batch norm statistics are made from after pruning at once, where there is no task."""
    wait: bool = False
    """Wait for another process that does the same run, in place of giving up."""
    accelerate: bool = True
    """Use the engine where it can be used."""
    keep: frozenset[str] | None = None
    """Runs whose networks stay; of the others stays only what was measured. None: all do."""
    _pruned: dict[str, Network] = field(default_factory=dict, init=False, repr=False)
    """Networks pruned at once, for the runs that differ in nothing but the head's fit or the seed."""

    def run(self, spec: RunSpec) -> Result:
        """The finished run's result, or the result of doing it. UserError where it cannot be done, or another process
        is doing it."""
        if (result := self._finished(spec)) is not None:
            return result
        if self.task is not None and spec.transfer != "linear" and spec.recipe.batch_size % distributed.world():
            raise UserError(
                f"{distributed.world()} processes cannot share a batch of {spec.recipe.batch_size}: change --batch-size"
            )
        check_size(self.network.module, (spec.preprocessing or self.network.lineage.preprocessing).size)
        lock = self.root / spec.run_id / LOCK
        with locked(lock, self.wait) if distributed.rank() == 0 else contextlib.nullcontext():
            return self._finished(spec) or self._do(spec)

    def _finished(self, spec: RunSpec) -> Result | None:
        """What an earlier process came to, unless its network is wanted and did not stay."""
        folder = self.root / spec.run_id
        there = (folder / RESULT).exists() and (not self._keeps(spec) or (folder / CHECKPOINT).exists())
        if not distributed.from_first(there):
            return None
        result = Result.load(folder / RESULT)
        return result if result.status == "done" else None

    def _keeps(self, spec: RunSpec) -> bool:
        return self.keep is None or spec.run_id in self.keep

    def _do(self, spec: RunSpec) -> Result:
        folder = self.root / spec.run_id
        if distributed.rank() == 0:
            mark(self.root)
            for left_over in [*folder.glob(".*.part"), *([folder / STATE] if self.fresh else [])]:
                left_over.unlink(missing_ok=True)
            write_atomic(folder / SPEC, spec.model_dump_json(indent=1) + "\n")
        start = time.perf_counter()
        pruner = make_pruner(spec.method, spec.sparsity, spec.options) if _prunes(spec) else Pruner(spec.sparsity)
        network = self._prepared(spec, pruner)
        network.module.to(self.device)
        done = self._transfer(spec, pruner, network, folder)
        seconds = time.perf_counter() - start
        return self._record(spec, done, folder, seconds)

    def _prepared(self, spec: RunSpec, pruner: Pruner) -> Network:
        """A copy at the run's image size, pruned already if this is where it happens."""
        network = self.network.copy()
        if spec.preprocessing is not None:
            lineage = network.lineage.model_copy(update={"preprocessing": spec.preprocessing})
            network = replace(network, lineage=lineage)
        if spec.where != "one-shot":
            return network
        key = features_key(spec) + spec.transfer
        if key not in self._pruned:
            self._pruned[key] = self._pruned_at_once(spec, pruner, network, self.root / "pruned" / f"{key}.safetensors")
        return self._pruned[key].copy()

    def _pruned_at_once(self, spec: RunSpec, pruner: Pruner, network: Network, stored: Path) -> Network:
        """Pruned now, or by an earlier run. What is dear to make again is kept in a file, and made by one process while
        others wait for it."""
        if pruner.tags.data == "none" or distributed.rank() > 0:
            return self._prune_at_once(spec, pruner, network, stored)
        with locked(stored.with_suffix(".lock"), wait=True):
            return self._prune_at_once(spec, pruner, network, stored)

    def _prune_at_once(self, spec: RunSpec, pruner: Pruner, network: Network, stored: Path) -> Network:
        scratch = stored.with_suffix("")
        if distributed.rank() == 0:
            drop_damaged(stored)
            if self.fresh or stored.exists():  # a run killed at the very end leaves it
                shutil.rmtree(scratch, ignore_errors=True)
        if pruner.tags.data != "none" and distributed.from_first(stored.exists()):
            done = Checkpoint.load(stored)
            network.module.load_state_dict(done.to_dense())
            notes = [f"pruned at once to {done.mask.sparsity:.2%} by an earlier run"]
            return replace(network, mask=done.mask, notes=network.notes + notes)
        told = self.progress(spec)
        same = self._keeps_head(spec, network)
        with_head = spec.transfer == "none" and (self.task is None or same)  # one that will be made anew is not pruned
        plan = Plan(
            0, 0, spec.seed, labelled=same, scratch=scratch,
            progress=None if told is None else lambda done, total: told(done, total, ""),
        )  # fmt: skip
        network.module.to(self.device)
        pruned = prune_at_once(network, pruner, self._calibration(network), self.workers, with_head, plan)
        if pruner.tags.data != "none" and distributed.rank() == 0:
            pruned.checkpoint().save(stored)
        distributed.meet()  # others may still be reading there
        if distributed.rank() == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        return pruned

    def _keeps_head(self, spec: RunSpec, network: Network) -> bool:
        """Whether the network is trained, or pruned, on the classes that it knows."""
        return spec.transfer == "none" and network.knows(self.task)

    def _calibration(self, network: Network) -> Dataset[Any] | None:
        view = transforms(network.lineage.preprocessing, train=False)
        if self.task is not None:
            return self.task.load("train", view)
        return self.calibration.load(view) if self.calibration is not None else None

    def _transfer(self, spec: RunSpec, pruner: Pruner, network: Network, folder: Path) -> Transferred:
        recipe, progress = spec.recipe, self.progress(spec)
        if self.task is None:
            return Transferred(network, [], -1)
        if spec.transfer == "linear":
            first = distributed.rank() == 0  # other processes of one run write nothing
            cache = self.root / "features" / features_key(spec) if first else None
            crops = self.root / "crops" if first else None
            return linear(
                network, self.task, recipe, spec.seed, cache=cache, crops=crops, workers=self.workers,
                accelerate=self.accelerate, state_path=folder / STATE, progress=progress,
            )  # fmt: skip
        if spec.where == "one-shot":
            pruner = Pruner(spec.sparsity)
        return full(
            network,
            self.task,
            pruner,
            recipe,
            spec.seed,
            keep_head=self._keeps_head(spec, network),
            teacher=self._teacher(spec),
            workers=self.workers,
            accelerate=self.accelerate,
            state_path=folder / STATE,
            progress=progress,
        )

    def _teacher(self, spec: RunSpec) -> torch.nn.Module | None:
        if spec.recipe.distill == 0:
            return None
        if spec.teacher is not None:
            teacher = from_checkpoint(Checkpoint.load(self.root / spec.teacher / CHECKPOINT))
        elif self.network.knows(self.task):
            teacher = self.network.copy()
        else:
            raise UserError("--distill needs a dense network that knows the classes; leave out --no-dense")
        return teacher.module.to(self.device).to(memory_format=torch.channels_last)

    def _record(self, spec: RunSpec, done: Transferred, folder: Path, seconds: float) -> Result:
        mask, module = done.network.mask, done.network.module
        if not mask.holds(module):
            raise RuntimeError(f"the mask does not hold: {mask.violations(module)}")
        network = replace(done.network, lineage=self._lineage(spec, done.network.lineage))
        metrics, per_class = self._scores(network, done)
        module.cpu()
        found = layers(module, mask, network.lineage.preprocessing.size)
        result = Result(
            run_id=spec.run_id,
            spec=spec,
            status="done",
            metrics=metrics | {"selected_epoch": float(done.epoch)},
            per_class=per_class,
            history=done.history,
            layers=found,
            sparsity=mask.sparsity,
            mask_digest=mask.digest(),
            dense_bytes=sum(t.numel() * t.element_size() for t in module.state_dict().values()),
            seconds=seconds,
            environment=environment(),
            task=describe(self.task) if self.task is not None else {},
            notes=network.notes,
        )
        if distributed.rank() == 0:
            result.checkpoint_bytes = self._stored(spec, network, folder / CHECKPOINT)
            write_atomic(folder / METRICS, "".join(canonical_json(row) + "\n" for row in done.history))
            result.save(folder / RESULT)
            (folder / STATE).unlink(missing_ok=True)
        distributed.from_first(None)  # so that the checkpoint is there when another process reads it as a teacher
        return result

    def _scores(self, network: Network, done: Transferred) -> tuple[dict[str, float], list[float]]:
        """Scores on the validation and test splits, and the accuracy of each class on test, of the very network that is
        stored."""
        if self.task is None or distributed.rank() != 0:
            return {}, []
        view = transforms(network.lineage.preprocessing, train=False)
        metrics: dict[str, float] = {}
        for split in ("val", "test"):
            known = done.outputs.get(split)
            answers = known or logits_of(network.module, self.task.load(split, view), workers=self.workers)
            metrics |= {f"{split}_{name}": value for name, value in scores(*answers, calibration=True).items()}
        return metrics, per_class(*answers)

    def _stored(self, spec: RunSpec, network: Network, path: Path) -> int:
        """Bytes of the checkpoint, which stays if it is wanted."""
        if self._keeps(spec):
            return network.checkpoint().save(path)
        return len(pack(network.checkpoint()))

    def _lineage(self, spec: RunSpec, before: Lineage) -> Lineage:
        facts: dict[str, Any] = {"parent": spec.parent, "versions": versions()}
        if self.task is not None:
            facts["task"] = spec.task
        if _prunes(spec) and methods.get(spec.method).tags.density != "given":  # at its mask it stays what it was
            facts |= {"method": spec.method, "where": spec.where, "options": spec.options}
        return before.model_copy(update=facts)


def mark(root: Path) -> None:
    """Make `root` a folder for runs."""
    if not (root / MARKER).exists():
        write_atomic(root / MARKER, canonical_json({"format": "budwood-runs", "version": 1}) + "\n")


def running(folder: Path) -> bool:
    """Whether a process of this machine does the run of this folder: a killed one leaves the file, and no lock."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, as a rule
        return False
    return False


def drop_damaged(path: Path) -> bool:
    """Remove a checkpoint that cannot be read, so that it is made again; whether there was such a one."""
    if not path.exists():
        return False
    try:
        Checkpoint.load(path)
    except UserError:
        path.unlink(missing_ok=True)
        return True
    return False


def _prunes(spec: RunSpec) -> bool:
    """True if the run itself prunes; a network that was pruned upstream keeps its mask in a transfer."""
    return spec.where in ("one-shot", "downstream") or (spec.where == "upstream" and spec.transfer == "none")


def make_pruner(method: str, sparsity: float, options: dict[str, Any]) -> Pruner:
    """The method of this name with its options checked; `unknown` is that of a mask that was found."""
    kind = Pruner if method == "unknown" else methods.get(method)
    try:
        checked = kind.Options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{method} has no option {where}; it takes {option_names(kind)}") from None
        reason = first["msg"].removeprefix("Value error, ")
        if not where:
            raise UserError(f"the options of {method} do not go together: {reason}") from None
        raise UserError(f"option {where} of {method} cannot be {first['input']!r}: {reason}") from None
    return kind(sparsity, checked)  # type: ignore[no-any-return]


def option_names(kind: type[Pruner]) -> str:
    """As --option takes them: allocation, schedule.start, ..."""
    return ", ".join(_field_names(kind.Options)) or "no options"


def _field_names(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        part = info.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield from (f"{name}.{inner}" for inner in _field_names(part))
        else:
            yield name


def prune_at_once(
    network: Network,
    pruner: Pruner,
    images: Dataset[Any] | None,
    workers: int = 0,
    with_head: bool = False,
    plan: Plan = Plan(0, 0),  # noqa: B008 -- frozen
) -> Network:
    """Prune without training, then make the batch norm statistics anew on `images`.

    Raises UserError where the method needs images and there are none, or cannot prune at once.
    """
    tags = pruner.tags
    if not tags.at_once:
        raise UserError("this method prunes while it trains; give images to train on, or choose another one")
    if images is None and tags.data != "none":
        raise UserError("this method looks at images: give --calibration IMAGES, or --data to train on as well")
    scope = network.mask if with_head else network.backbone
    if images is not None:
        device = next(network.module.parameters()).device
        plan = replace(plan, batches=batches_from(images, plan.seed, workers, device))
        network.module.to(memory_format=torch.channels_last)
    mask = distributed.mask_from_first(pruner.start(network.module, scope, plan))
    mask.apply_(network.module)
    if tags.edits_weights:
        distributed.weights_from_first_(network.module)
    notes = [f"pruned at once to {mask.sparsity:.2%} of the weights that could be"]
    if tags.data == "labels" and not plan.labelled:
        notes.append("the images' classes are not the network's: its own answers stood in for them")
    if images is None:
        notes.append("batch norm statistics are still the dense network's; give --calibration IMAGES to make them anew")
    elif used := recalibrate(network.module.to(memory_format=torch.channels_last), images, workers=workers):
        notes.append(f"batch norm statistics made anew on {used} images, without their labels")
    return replace(network, mask=mask, notes=network.notes + notes)


def features_key(spec: RunSpec) -> str:
    """What features depend on: everything of a spec but the head's fit, and the seed where it changes nothing."""
    counted = {"model", "parent", "preprocessing", "data", "method", "where", "sparsity", "options"}
    if spec.where == "one-shot" and methods.get(spec.method).tags.seeded:
        counted.add("seed")
    parts = spec.model_dump(mode="json", include=counted)
    adapted = {"adapt_bn": True} if spec.recipe.adapt_bn else {}
    return digest_of(parts | adapted | {"size": spec.recipe.size, "versions": COMPONENT_VERSIONS})[:16]


def describe(task: Task) -> dict[str, Any]:
    """What a report says of the data."""
    facts = {name: getattr(task, name) for name in ("name", "metric", "source", "licence", "notes")}
    return facts | {"classes": list(task.classes), "sizes": task.sizes}


def versions() -> dict[str, str]:
    found = {}
    for package in ("budwood", "torch", "torchvision", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
