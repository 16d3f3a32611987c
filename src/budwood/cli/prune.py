"""`budwood prune`: a sparse backbone to transfer from, made at once or while training on the upstream data."""

from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter

from ..core.errors import UserError
from ..core.pruner import Pruner, Tags
from ..core.registry import methods, sources
from ..core.spec import Recipe
from ..core.task import Task
from ..models.network import Network, open_network
from ..study import recipe as recipes
from ..study.run import CHECKPOINT, Runner, make_pruner
from ..study.specs import Pruning, Start, data_facts, upstream_spec
from ..tasks.plain import Images
from ..train import distributed
from ..transfer.protocols import check_full
from .common import (
    Accelerate,
    Bars,
    Seed,
    Training,
    Workers,
    checked_device,
    checked_sparsity,
    flag,
    open_task,
    parsed_options,
    print_json,
    runs_folder,
    say,
)


def run(
    model: str,
    /,
    *,
    method: str | None = None,
    sparsity: str | None = None,
    data: str | None = None,
    task: str | None = None,
    calibration: Path | None = None,
    recipe_file: Annotated[Path | None, Parameter(name="--recipe")] = None,
    option: Annotated[list[str], Parameter(negative=())] | None = None,
    from_scratch: Annotated[bool, Parameter(negative=())] = False,
    allow_unreadable: bool = False,
    seed: Seed = 0,
    recipe: Training = Recipe(),  # noqa: B008 -- frozen
    out: Path = Path("runs"),
    resume: bool = True,
    workers: Workers = 1,
    device: str = "cpu",
    accelerate: Accelerate = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Prune a network upstream, before it is transferred.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, packaged:NAME, py:module.function, others (`budwood ls models`), or the path of a
        checkpoint.
    method
        Pruning method (`budwood ls methods`); dense and fixed train without pruning.
    sparsity
        Share of zeros to reach, as 0.9.
    data
        Labelled images to train on while pruning (ImageNet's folder, say). The classifier is kept where it has as many
        classes, and made anew where not.
    task
        A known data set instead of, or lying at, --data.
    calibration
        Any images, without labels: methods that prune at once look at them, and the batch norm statistics are made
        anew on them.
    recipe_file
        A file of settings (`budwood recipe show METHOD`); options given beside it count more.
    option
        A setting of the method, KEY=VALUE; may be repeated.
    from_scratch
        Begin with new weights, drawn from the seed, and as many classes as the data has.
    allow_unreadable
        Go on although more than 1 % of the images cannot be read.
    seed
        Of order, augmentation, new weights, and what the method leaves to chance.
    out
        Folder for the run.
    resume
        Go on with an unfinished run; --no-resume starts it over.
    workers
        Processes that load images.
    device
        cpu, cuda or another of PyTorch's.
    accelerate
        auto: training at a mask of many zeros through Budwood's engine, which skips them, where it can be. off: PyTorch
        alone.
    json
        Print the result as JSON on stdout and nothing else.
    """
    distributed.join()
    quiet = json or distributed.rank() != 0
    trains = data is not None or task is not None
    name, target, options, merged = _request(recipe_file, method, sparsity, option, recipe)
    check_full(merged, flag)
    if not trains and (idle := sorted(recipe.model_fields_set - {"size"})):
        raise UserError(f"{flag(idle[0])} counts in a training, and there is none: add --data")
    recipe = merged
    tags: Tags = methods.get(name).tags
    pruner = make_pruner(name, target, options)
    checked_device(device)
    _check(name, tags, trains, calibration is not None, from_scratch)
    if from_scratch and recipe.distill:
        raise UserError("--distill teaches by the trained network, and --from-scratch has none: leave one of them out")
    opened = open_task(data, task, allow_unreadable=allow_unreadable) if trains else None
    network = _untrained(model, opened, seed) if from_scratch and opened else open_network(model)
    # A classifier that will be made anew takes no part.
    scope = network.mask if opened is None or network.knows(opened) else network.backbone
    if trains and recipe.distill and not network.knows(opened):
        raise UserError(
            "--distill needs a network that knows the classes of the data, and this one does not: leave it out"
        )
    pruner.check(network.module, scope, recipe.epochs if trains and tags.gradual else 0)
    images = Images(calibration) if calibration is not None else None
    facts = data_facts(opened, images.digest() if images else None)
    spec = upstream_spec(Start.of(network), Pruning(name, target, options), seed, recipe, facts, trains)
    root = runs_folder(out) if distributed.rank() == 0 else out
    network.notes.extend(images.notes if images else [])
    for line in [*network.notes, *(opened.notes if opened else []), *(_unreached(pruner, recipe) if trains else [])]:
        say(line, quiet)
    with Bars(quiet) as bars:
        runner = Runner(
            network, opened, root, workers, not resume, device, bars.of, images, accelerate=accelerate == "auto"
        )
        result = runner.run(spec)
    if distributed.rank() == 0:
        for line in result.notes[len(network.notes) :]:
            say(line, quiet)
        say(
            f"sparsity {result.sparsity:.2%} of what may be pruned, {result.checkpoint_bytes / 1e6:.1f} MB",
            quiet,
        )
        if json:
            print_json(result.row())
        else:
            print(root / spec.run_id / CHECKPOINT)
    distributed.leave()


def _request(
    file: Path | None, method: str | None, sparsity: str | None, option: list[str] | None, recipe: Recipe
) -> tuple[str, float, dict[str, Any], Recipe]:
    """Method, sparsity, options and training: of the file, and over it of the command line."""
    base = recipes.read(file) if file is not None else None
    name = method or (base.method if base else None)
    if name is None:
        raise UserError("no method: add --method gmp (`budwood ls methods`) or --recipe FILE")
    if base is not None:
        if name != base.method:
            raise UserError(f"{file} is a recipe of {base.method}: leave --method {name} out, or take its own recipe")
        recipe = recipes.merged(base, recipe)
    options = parsed_options(option or [], base.option if base else None)
    stored = base.sparsity if base else None
    target = checked_sparsity(sparsity) if sparsity is not None else stored
    if methods.get(name).tags.density == "given":
        if target:
            raise UserError(f"the method {name} prunes nothing: leave --sparsity out, or choose another method")
        return name, 0.0, options, recipe
    if target is None:
        raise UserError(f"--method {name} needs --sparsity, as --sparsity 0.9")
    return name, target, options, recipe


def _check(name: str, tags: Tags, trains: bool, calibrates: bool, from_scratch: bool) -> None:
    """What this method cannot do with what it is given, said before anything is loaded."""
    if tags.density == "given" and not trains:
        raise UserError(f"the method {name} prunes nothing, it trains: add --data, or choose another one")
    if not trains and tags.needs_training:
        raise UserError(f"{name} prunes while it trains: give --data, or prune at once with --method magnitude")
    if tags.data != "none" and not trains and not calibrates:
        raise UserError(f"{name} looks at images: add --calibration IMAGES (no labels needed), or --data to train too")
    if trains and calibrates:
        raise UserError("--calibration is for pruning at once without --data; leave one of them out")
    if from_scratch and not trains:
        raise UserError("--from-scratch begins with new weights, which have to be trained: add --data")


def _unreached(pruner: Pruner, recipe: Recipe) -> list[str]:
    """A line about the falls of the learning rate that a training as short as this one does not come to."""
    length = pruner.cycles().length(recipe.epochs)
    late = [epoch for epoch in recipe.milestones if length is not None and epoch >= length]
    if not late:
        return []
    return [f"a training of {length} epochs does not come to the milestones from {min(late)} on: no fall there"]


def _untrained(model: str, task: Task, seed: int) -> Network:
    """The architecture with new weights and the task's classes."""
    source, _, name = model.partition(":")
    if source not in sources or "@" in model:
        raise UserError(f"--from-scratch needs an architecture, as torchvision:resnet50, not {model}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Network = sources.get(source)(name, len(task.classes), False)
    lineage = network.lineage.model_copy(update={"classes": task.classes})
    return Network(network.module, network.mask, lineage, [*network.notes, f"new weights, seed {seed}"])
