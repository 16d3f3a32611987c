"""`budwood transfer`: the main job. A folder of labelled photos in; sparse, verified networks and a report out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter

from ..bench.latency import latency
from ..core.checkpoint import Checkpoint
from ..core.errors import UserError
from ..core.files import write_atomic
from ..core.registry import backends, methods
from ..core.result import Result
from ..core.spec import Protocol, Recipe, RunSpec, Transfer
from ..core.task import Metric, Task
from ..models.network import Network, check_linear_head, from_checkpoint, open_network
from ..report import html
from ..report import screen as report_screen
from ..study.run import CHECKPOINT, Runner, make_pruner
from ..study.specs import Pruning, Start, counting, transfer_spec
from ..train import distributed
from ..transfer.protocols import SEEDS, check_full, check_linear, recipe_for, task_for
from .common import (
    Accelerate,
    Bars,
    Seed,
    Training,
    Workers,
    checked_device,
    checked_sparsity,
    flag,
    label,
    open_task,
    parsed_options,
    print_json,
    runs_folder,
    say,
    screen,
)

LATENCY_SECONDS = 20.0


def run(
    data: str | None = None,
    /,
    *,
    model: str,
    task: str | None = None,
    prune: str | None = None,
    sparsity: Annotated[list[str], Parameter(consume_multiple=True, negative=())] | None = None,
    mode: Annotated[list[Literal["linear", "full"]], Parameter(consume_multiple=True, negative=())] | None = None,
    seeds: Annotated[list[Seed], Parameter(consume_multiple=True, negative=())] | None = None,
    option: Annotated[list[str], Parameter(negative=())] | None = None,
    protocol: Protocol = "budwood",
    recipe: Training = Recipe(),  # noqa: B008 -- frozen
    dense: bool = True,
    measure_latency: bool = True,
    metric: Metric | None = None,
    allow_unreadable: bool = False,
    out: Path = Path("runs"),
    resume: bool = True,
    workers: Workers = 1,
    device: str = "cpu",
    accelerate: Accelerate = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Transfer a network to your own images, pruned, and compare it with the dense transfer.

    Finished runs are not done again, unfinished ones go on where they were.

    Parameters
    ----------
    data
        Folder of class folders (or train/ val/ [test/] of them), a CSV of path,label, or a task's name.
    model
        torchvision:NAME, timm:NAME, packaged:NAME, py:module.function, others (`budwood ls models`), or the path of a
        checkpoint.
    task
        A known data set (`budwood ls tasks`); DATA is then where it lies.
    prune
        Pruning method (`budwood ls methods`). Without it the mask the model comes with is held.
    sparsity
        Shares of zeros to reach, one run each.
    mode
        linear: a new head on the frozen backbone (pruned at once). full, if not given: all weights (pruned while
        training).
    seeds
        One run each; 0 if not given, or as many as the protocol has.
    option
        A setting of the method, KEY=VALUE; may be repeated.
    protocol
        budwood: its own settings. cvpr22: the splits, settings and seeds of the CVPR 2022 study.
    dense
        Transfer the network without pruning too, to compare with.
    measure_latency
        Time the networks on this machine at the end.
    metric
        What one's own images are measured by: top1 (the default) or mean_per_class.
    allow_unreadable
        Go on although more than 1 % of the images cannot be read.
    out
        Folder for the runs and report.html.
    resume
        Go on with unfinished runs; --no-resume starts them over.
    workers
        Processes that load images.
    device
        cpu, cuda or another of PyTorch's.
    accelerate
        auto: features, and training at a mask of many zeros, through Budwood's engine, which skips them, where it can
        be. off: PyTorch alone.
    json
        Print the results as JSON on stdout and nothing else.
    """
    distributed.join()
    quiet = json or distributed.rank() != 0
    sparsities = [checked_sparsity(value) for value in sparsity or []]
    options = parsed_options(option or [])
    _check_request(prune, sparsities, options, recipe.distill > 0, mode or ["full"])
    if mode and "linear" in mode:
        check_linear(protocol, recipe, "full" in mode, flag)
    else:
        check_full(recipe, flag)
    checked_device(device)
    network = open_network(model)
    _check_network(network, mode or ["full"], sparsities)
    opened = task_for(protocol, open_task(data, task, metric=metric, allow_unreadable=allow_unreadable))
    request = _Request(Start.of(network), opened, protocol, recipe, prune, sparsities, options, dense)
    _check_pruning(network, request, mode or ["full"])
    specs = [
        spec
        for way in mode or ["full"]
        for seed in _seeds_of(way, seeds or list(range(SEEDS[protocol][way])), request, quiet)
        for spec in _specs(request, way, seed)
    ]
    root = runs_folder(out) if distributed.rank() == 0 else out
    for line in [*network.notes, *_about(opened)]:
        say(line, quiet)
    with Bars(quiet) as bars:
        runner = Runner(network, opened, root, workers, not resume, device, bars.of, accelerate=accelerate == "auto")
        results = []
        for spec in specs:
            results.append(runner.run(spec))
            _say_result(results[-1], quiet)
    if distributed.rank() == 0:
        rows = _latency(results, root, recipe, quiet) if measure_latency else []
        html.write(results, rows, root / "report.html", title=f"{network.lineage.architecture} on {opened.name}")
        if json:
            print_json([result.row() for result in results])
        else:
            for table in report_screen.text_table(results, rows):
                screen.print(table)
            say(f"report: {root / 'report.html'}")
            say(f"checkpoints: {root}/RUN_ID/{CHECKPOINT}")
    distributed.leave()


def _check_request(
    prune: str | None, sparsities: list[float], options: dict[str, Any], distill: bool, ways: Sequence[Transfer]
) -> None:
    """Everything wrong with the request that can be said before anything is loaded."""
    if prune is None and sparsities:
        raise UserError("--sparsity needs a method: add --prune gmp")
    if prune is None and options:
        raise UserError("--option needs a method: add --prune gmp")
    if distill and prune is None:
        raise UserError("--distill teaches a pruned network by the dense one: add --prune gmp")
    if prune is not None:
        tags = methods.get(prune).tags
        if tags.density == "given" and sparsities:
            raise UserError(
                f"--prune {prune} holds the mask the model comes with: leave --sparsity out, or add --prune gmp"
            )
        if not sparsities and tags.density != "given":
            raise UserError(f"--prune {prune} needs --sparsity, as --sparsity 0.9")
        if "linear" in ways and not tags.at_once:
            raise UserError(
                f"{prune} prunes while it trains, and a linear head trains nothing else: add --mode full, or prune "
                "upstream first (budwood prune)"
            )
        for sparsity in sparsities or [0.0]:
            make_pruner(prune, sparsity, options)


@dataclass(frozen=True)
class _Request:
    """What was asked for, opened and checked."""

    start: Start
    task: Task
    protocol: Protocol
    recipe: Recipe
    prune: str | None
    sparsities: list[float]
    options: dict[str, Any]
    dense: bool


def _seeds_of(way: Transfer, seeds: list[int], request: _Request, quiet: bool) -> list[int]:
    """The seeds that make a difference."""
    recipe = recipe_for(request.protocol, request.task, way, request.recipe)
    found = counting(seeds, way, recipe, [request.prune] if request.prune else [])
    if len(found) < len(seeds):
        say("linear head: L-BFGS comes to the same for every seed, so one is run; --head sgd for several", quiet)
    return found


def _check_network(network: Network, ways: Sequence[Transfer], sparsities: list[float]) -> None:
    """What this network cannot do, before hours are spent on the runs that come first."""
    if "linear" in ways:
        check_linear_head(network)
    already = network.backbone.sparsity
    if sparsities and min(sparsities) < already - 1e-3:
        raise UserError(
            f"the network already has {already:.2%} zeros, more than the sparsity {min(sparsities):g} asked for; "
            "ask for a higher one"
        )


def _check_pruning(network: Network, request: _Request, ways: Sequence[Transfer]) -> None:
    """What the method cannot do with this network, said before the dense one is trained."""
    for sparsity in request.sparsities:
        assert request.prune is not None  # `_check_request` has seen to that
        pruner = make_pruner(request.prune, sparsity, request.options)
        for way in ways:
            recipe = recipe_for(request.protocol, request.task, way, request.recipe)
            gradual = pruner.tags.gradual and way == "full"
            pruner.check(network.module, network.backbone, recipe.epochs if gradual else 0)


def _specs(request: _Request, way: Transfer, seed: int) -> list[RunSpec]:
    """The runs of one way and seed: the network as it comes, then one per sparsity."""
    r = request
    first = transfer_spec(r.start, r.task, way, seed, r.recipe, r.protocol)
    specs = [first] if r.dense or not r.sparsities else []
    teacher = first.run_id if r.recipe.distill and r.dense and way == "full" else None
    for sparsity in r.sparsities:
        assert r.prune is not None  # `_check_request` has seen to that
        pruning = Pruning(r.prune, sparsity, r.options)
        specs.append(transfer_spec(r.start, r.task, way, seed, r.recipe, r.protocol, pruning, teacher))
    return specs


def _about(task: Task) -> list[str]:
    sizes = ", ".join(f"{count} {split}" for split, count in task.sizes.items())
    lines = [f"{task.name}: {len(task.classes)} classes; {sizes}; measured by {task.metric}"]
    if task.licence:
        lines.append(f"{task.source}; licence: {task.licence}")
    return lines + [f"  {note}" for note in task.notes]


def _say_result(result: Result, quiet: bool) -> None:
    metric = result.task["metric"]
    accuracy = result.metrics.get(f"test_{metric}", float("nan"))
    held = "the mask holds" if result.sparsity else "dense"
    size = f"{result.checkpoint_bytes / 1e6:.1f} of {result.dense_bytes / 1e6:.1f} MB"
    say(f"{label(result.spec)}: {accuracy:.2%} {metric} on test, {held}, {size}, {result.seconds:.0f} s", quiet)


def _latency(results: list[Result], root: Path, recipe: Recipe, quiet: bool) -> list[dict[str, Any]]:
    """Time one network per sparsity, on every backend that is installed; kept beside the runs."""
    chosen: dict[str, Result] = {}
    for result in results:
        name = "dense" if result.sparsity == 0 else f"{result.spec.sparsity:.0%} zeros"
        chosen.setdefault(name, result)
    key = {name: result.run_id for name, result in chosen.items()}
    path = root / "latency.json"
    if (stored := read_latency(path)) is not None and stored["runs"] == key:
        return list(stored["rows"])
    say("measuring latency ...", quiet)
    networks = {name: from_checkpoint(Checkpoint.load(root / r.run_id / CHECKPOINT)) for name, r in chosen.items()}
    size = next(iter(networks.values())).lineage.preprocessing.size
    modules = {name: network.module.eval() for name, network in networks.items()}
    names = [name for name in backends if backends.get(name).in_reports]
    rows = latency(modules, size, 1, names, torch.get_num_threads(), LATENCY_SECONDS)
    found = [row.model_dump(mode="json") for row in rows]
    write_atomic(path, to_text({"runs": key, "rows": found}))
    return found


def read_latency(path: Path) -> dict[str, Any] | None:
    """The stored measurement, None where there is none that can be read."""
    try:
        stored = json.loads(path.read_text())
        return stored if set(stored) == {"runs", "rows"} else None
    except (OSError, ValueError, TypeError):
        return None


def to_text(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
