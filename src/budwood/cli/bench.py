"""`budwood bench`: how long a network takes here, on every backend there is."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import nn

from ..bench.environment import environment
from ..bench.latency import LatencyRow, latency
from ..bench.zeros import convolutions, with_random_zeros
from ..core.errors import UserError
from ..core.registry import backends as registry
from ..core.registry import sources
from ..engine import explain
from ..engine.program import Program, default_threads
from ..models.network import Network, open_network
from ..prune.allocation import densities
from .common import Batch, Seconds, Size, Threads, checked_sparsity, print_json, say

Shared = Literal["uniform", "erk", "str"]


def run(
    model: str,
    /,
    *,
    batch: Annotated[list[Batch] | None, Parameter(consume_multiple=True)] = None,
    threads: Threads | None = None,
    sparsity: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    allocation: Shared = "uniform",
    backends: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    size: Size | None = None,
    seconds: Seconds = 20.0,
    layers: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Time a network on every backend, side by side: PyTorch, ONNX Runtime, OpenVINO and this library's engine.

    Answers are compared with PyTorch's first; then all that agree are timed in turn, round by round.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, packaged:NAME, py:module.function, others (`budwood ls models`), or the path of a
        checkpoint.
    batch
        Images at a time; 1 and 16 if not given.
    threads
        Threads of every backend; as many as there are cores if not given.
    sparsity
        Put random zeros of these shares into all convolutions but the first and depthwise ones. A network that is
        named (not a file) then has random weights, and needs no download.
    allocation
        How these zeros are shared out: the same share in each layer, or among all convolutions as ERK or the budgets
        that STR published for ResNet-50 do.
    backends
        Which ones (`budwood ls backends`), all if not given; ratios are to the first.
    size
        Image size in pixels; the network's own if not given.
    seconds
        How long to measure for each batch size; preparing comes on top.
    layers
        Print what each layer takes in the engine as well.
    json
        Print the rows, and the machine's facts, as JSON on stdout and nothing else.
    """
    names = backends or sorted(registry, key=lambda name: name != "eager")
    for name in names:
        registry.get(name)
    count = threads or default_threads()
    network, modules = _modules(model, sparsity, allocation)
    pixels = size or network.lineage.preprocessing.size
    rows: list[LatencyRow] = []
    profiles: list[tuple[str, explain.Profile]] = []
    for images in batch or [1, 16]:
        say(f"batch {images}: preparing and measuring ...", json)
        found = latency(modules, pixels, images, names, count, seconds)
        rows += found
        if not json:
            _print(model, found)
        ran = {row.label for row in found if row.backend == "engine" and row.status == "done"}
        for label, module in modules.items():
            if not layers or label not in ran:
                continue
            profiles.append((label, _profile(module, pixels, images, count)))
            if not json:
                print(f"{label}: {explain.text(profiles[-1][1])}\n")
    if json:
        facts = {"model": model, "environment": environment() | {"threads": str(count)}}
        told = [{"label": label, **dataclasses.asdict(profile)} for label, profile in profiles]
        print_json(facts | {"rows": [row.model_dump(mode="json") for row in rows], "layers": told})


def _modules(model: str, sparsity: Sequence[str] | None, allocation: Shared) -> tuple[Network, dict[str, nn.Module]]:
    """The network, and label -> module in evaluation mode."""
    if sparsity is None:
        if allocation != "uniform":
            raise UserError("--allocation shares out random zeros: give --sparsity as well")
        network = open_network(model)
        return network, {"as it is": network.module.eval()}
    shares = [checked_sparsity(value) for value in sparsity]
    source, _, name = model.partition(":")
    named = source in sources and "@" not in model and not Path(model).exists()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = sources.get(source)(name, None, False) if named else open_network(model)
    dense = network.module.eval()
    return network, {_label(share, allocation): _zeroed(dense, share, allocation) for share in shares}


def _zeroed(dense: nn.Module, share: float, allocation: Shared) -> nn.Module:
    if not share:
        return dense
    if allocation == "uniform":
        return with_random_zeros(dense, share)
    shapes = {name: tuple(layer.weight.shape) for name, layer in convolutions(dense).items()}
    return with_random_zeros(dense, {name: 1 - kept for name, kept in densities(allocation, shapes, share).items()})


def _label(share: float, allocation: str) -> str:
    if not share:
        return "dense"
    return f"{100 * share:.4g} % zeros" + ("" if allocation == "uniform" else f", {allocation.upper()}")


def _profile(module: nn.Module, size: int, batch: int, threads: int) -> explain.Profile:
    """Of the largest plan that such a batch is cut into."""
    program = Program.from_module(module, torch.zeros(2, 3, size, size), threads)
    return program.profile(next(chunk for chunk in program.chunks if chunk <= batch))


def _print(model: str, rows: Sequence[LatencyRow]) -> None:
    first = rows[0]
    title = f"{model}: {first.size} px, batch {first.batch}, {first.threads} threads"
    backend = Column("backend", no_wrap=True)
    table = Table("network", backend, "ms an image", "middle half", "rounds", "times faster", title=title)
    for row in rows:
        base = next((r.ms_per_image for r in rows if r.label == row.label), None)
        cells = [row.label, row.backend]
        if row.ms_per_image is None or row.q1 is None or row.q3 is None:
            cells += [escape(f"{row.status}: {row.reason}"), "", "", ""]
        else:
            ratio = f"{base / row.ms_per_image:.2f}x" if base else ""
            cells += [f"{row.ms_per_image:.3f}", f"{row.q1:.3f} to {row.q3:.3f}", str(row.rounds), ratio]
        table.add_row(*cells)
    Console(highlight=False).print(table)
