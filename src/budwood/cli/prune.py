"""`budwood prune`: a sparse backbone to transfer from, made at once or while training on the upstream data."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..core.errors import UserError
from ..core.registry import methods
from ..core.spec import Recipe, RunSpec
from ..models.network import open_network
from ..study.run import CHECKPOINT, Runner, make_pruner
from ..tasks.plain import Images
from ..train import distributed
from .common import (
    Bars,
    Seed,
    Workers,
    checked_device,
    checked_sparsity,
    open_task,
    parsed_options,
    print_json,
    runs_folder,
    say,
    start_of,
)


def run(
    model: str,
    /,
    *,
    method: str,
    sparsity: str,
    data: str | None = None,
    task: str | None = None,
    calibration: Path | None = None,
    option: Annotated[list[str], Parameter(negative=())] | None = None,
    seed: Seed = 0,
    recipe: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008 -- frozen
    out: Path = Path("runs"),
    resume: bool = True,
    workers: Workers = 1,
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Prune a network upstream, before it is transferred.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, packaged:NAME, py:module.function, or the path of a checkpoint.
    method
        Pruning method (`budwood ls methods`).
    sparsity
        Share of zeros to reach, as 0.9.
    data
        Labelled images to train on while pruning (ImageNet's folder, say). The classifier is kept where it has as many
        classes, and made anew where not.
    task
        A known data set instead of, or lying at, --data.
    calibration
        Any images, without labels, to make the batch norm statistics anew after pruning at once.
    option
        A setting of the method, KEY=VALUE; may be repeated.
    seed
        Of order, augmentation and new weights.
    out
        Folder for the run.
    resume
        Go on with an unfinished run; --no-resume starts it over.
    workers
        Processes that load images.
    device
        cpu, cuda or another of PyTorch's.
    json
        Print the result as JSON on stdout and nothing else.
    """
    distributed.join()
    quiet = json or distributed.rank() != 0
    target, options = checked_sparsity(sparsity), parsed_options(option or [])
    kind = methods.get(method)
    make_pruner(method, target, options)
    if method == "fixed":
        raise UserError("the method fixed prunes nothing; choose another one (`budwood ls methods`)")
    checked_device(device)
    gradual, trains = kind.tags.gradual, data is not None or task is not None
    if gradual and not trains:
        raise UserError(f"{method} prunes while it trains: give --data, or prune at once with --method magnitude")
    if trains and calibration is not None:
        raise UserError("--calibration is for pruning at once without --data; leave one of them out")
    network = open_network(model)
    opened = open_task(data, task) if trains else None
    images = Images(calibration) if calibration is not None else None
    facts: dict[str, Any] = {"task": "none", "data": images.digest() if images else "none"}
    if opened is not None:
        facts = {"task": opened.name, "data": opened.digest(), "metric": opened.metric}
    used = recipe if trains else Recipe(epochs=0, size=recipe.size)
    where = "upstream" if gradual else "one-shot"
    spec = RunSpec(
        **start_of(network, used), **facts, method=method, where=where, sparsity=target, options=options,
        transfer="none", seed=seed, recipe=used,
    )  # fmt: skip
    root = runs_folder(out) if distributed.rank() == 0 else out
    for line in network.notes:
        say(line, quiet)
    with Bars(quiet) as bars:
        runner = Runner(network, opened, root, workers, not resume, device, bars.of, images)
        result = runner.run(spec)
    if distributed.rank() == 0:
        for line in result.notes:
            say(line, quiet)
        say(f"sparsity {result.sparsity:.2%} of the backbone, {result.checkpoint_bytes / 1e6:.1f} MB", quiet)
        if json:
            print_json(result.row())
        else:
            print(root / spec.run_id / CHECKPOINT)
    distributed.leave()
