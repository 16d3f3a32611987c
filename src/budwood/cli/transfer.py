"""`budwood transfer`: the main job. A folder of labelled photos in; sparse, verified networks and a report out."""

import json
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
from ..core.spec import Recipe, RunSpec, Transfer
from ..core.task import Task
from ..models.network import Network, from_checkpoint, open_network
from ..report import html
from ..report import screen as report_screen
from ..study.run import CHECKPOINT, Runner, make_pruner
from ..train import distributed
from .common import Bars, checked_sparsity, label, open_task, parsed_options, print_json, runs_folder, say, screen

LATENCY_SECONDS = 20.0


def run(
    data: str | None = None,
    /,
    *,
    model: str,
    task: str | None = None,
    prune: str | None = None,
    sparsity: Annotated[list[str], Parameter(consume_multiple=True)] | None = None,
    mode: Annotated[list[Literal["linear", "full"]], Parameter(consume_multiple=True)] | None = None,
    seeds: Annotated[list[int], Parameter(consume_multiple=True)] | None = None,
    option: Annotated[list[str], Parameter(negative=())] | None = None,
    recipe: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008 -- frozen
    dense: bool = True,
    measure_latency: bool = True,
    allow_unreadable: bool = False,
    out: Path = Path("runs"),
    resume: bool = True,
    workers: int = 1,
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Transfer a network to your own images, pruned, and compare it with the dense transfer.

    Finished runs are not done again, unfinished ones go on where they were.

    Parameters
    ----------
    data
        Folder of class folders (or train/ val/ [test/] of them), a CSV of path,label, or a task's name.
    model
        torchvision:NAME, timm:NAME, packaged:NAME, py:module.function, or the path of a checkpoint.
    task
        A known data set (`budwood ls tasks`); DATA is then where it lies.
    prune
        Pruning method (`budwood ls methods`). Without it the mask the model comes with is held.
    sparsity
        Shares of zeros to reach, one run each.
    mode
        linear: a new head on the frozen backbone (pruned at once). full: all weights (pruned while training).
    seeds
        One run each.
    option
        A setting of the method, KEY=VALUE; may be repeated.
    dense
        Transfer the network without pruning too, to compare with.
    measure_latency
        Time the networks on this machine at the end.
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
    json
        Print the results as JSON on stdout and nothing else.
    """
    distributed.join()
    quiet = json or distributed.rank() != 0
    sparsities = [checked_sparsity(value) for value in sparsity or []]
    options = parsed_options(option or [])
    _check_request(prune, sparsities, options)
    network = open_network(model)
    opened = open_task(data, task, allow_unreadable=allow_unreadable)
    base = {"model": model, "parent": network.checkpoint().digest(), "task": opened.name, "data": opened.digest()}
    specs = [
        spec
        for way in mode or ["full"]
        for seed in seeds or [0]
        for spec in _specs(base, network, prune, sparsities, options, way, seed, recipe, dense)
    ]
    root = runs_folder(out)
    for line in [*network.notes, *_about(opened)]:
        say(line, quiet)
    with Bars(quiet) as bars:
        runner = Runner(network, opened, root, workers, not resume, device, bars.of)
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


def _check_request(prune: str | None, sparsities: list[float], options: dict[str, Any]) -> None:
    """Everything wrong with the request that can be said before anything is loaded."""
    if prune is None and sparsities:
        raise UserError("--sparsity needs a method: add --prune gmp")
    if prune is None and options:
        raise UserError("--option needs a method: add --prune gmp")
    if prune is not None:
        methods.get(prune)
        if not sparsities and prune != "fixed":
            raise UserError(f"--prune {prune} needs --sparsity, as --sparsity 0.9")
        make_pruner(prune, 0.0, options)


def _specs(
    base: dict[str, Any],
    network: Network,
    prune: str | None,
    sparsities: list[float],
    options: dict[str, Any],
    way: Transfer,
    seed: int,
    recipe: Recipe,
    dense: bool,
) -> list[RunSpec]:
    """The runs of one way and seed: the network as it comes, then one per sparsity."""
    used = recipe.for_linear() if way == "linear" else recipe
    plain = used.model_copy(update={"distill": 0.0})
    backbone = network.mask.without([f"{network.head}.weight"])
    if backbone.sparsity > 0:
        lineage = network.lineage
        facts = {"method": lineage.method, "where": "upstream", "sparsity": backbone.sparsity}
        first = RunSpec(**base, **facts, transfer=way, seed=seed, recipe=plain)
    else:
        first = RunSpec(**base, transfer=way, seed=seed, recipe=plain)
    specs = [first] if dense or prune is None else []
    where = "one-shot" if way == "linear" or not (prune and methods.get(prune).tags.gradual) else "downstream"
    for sparsity in sparsities:
        extra = {"method": prune, "where": where, "sparsity": sparsity, "options": options}
        teacher = first.run_id if used.distill and dense else None
        specs.append(RunSpec(**base, **extra, transfer=way, seed=seed, recipe=used, teacher=teacher))
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
    names = [name for name in backends.names() if name != "compile"]
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
