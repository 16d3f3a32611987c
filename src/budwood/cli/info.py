"""`budwood info`: what a network is, layer by layer; or, without one, what this machine is."""

from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from ..bench.environment import environment
from ..models.network import open_network
from ..models.profile import layers
from .common import print_json


def run(model: str | None = None, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Lineage, layers, sparsity and FLOPs of a network; this machine's facts where none is named.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, packaged:NAME, py:module.function, others (`budwood ls models`), or the path of a
        checkpoint.
    json
        Print JSON on stdout and nothing else.
    """
    console = Console(highlight=False)
    if model is None:
        facts: dict[str, str] = environment()
        if json:
            print_json(facts)
            return
        for name, value in facts.items():
            console.print(f"{name:20s} {value}", markup=False)
        return
    network = open_network(model)
    found = layers(network.module, network.mask, network.lineage.preprocessing.size)
    if json:
        print_json({"lineage": network.lineage.model_dump(mode="json"), "layers": [x.model_dump() for x in found]})
        return
    for line in network.notes:
        console.print(line, markup=False)
    for name, value in network.lineage.model_dump(mode="json", exclude={"classes"}).items():
        if value not in (None, {}, ""):
            console.print(f"{name:15s} {value}", markup=False)
    classes = network.lineage.classes or ()
    console.print(f"{'classes':15s} {', '.join(classes[:8])}{' ...' if len(classes) > 8 else ''}", markup=False)
    table = Table("layer", "shape", "weights", "sparsity", "MFLOPs dense", "non-zero")
    for x in found:
        shape = " x ".join(map(str, x.shape))
        share = f"{1 - x.kept / x.total:.1%}"
        table.add_row(x.name, shape, f"{x.total:,}", share, f"{x.flops_dense / 1e6:.1f}", f"{x.flops / 1e6:.1f}")
    kept, total = sum(x.kept for x in found), sum(x.total for x in found)
    dense, sparse = sum(x.flops_dense for x in found) / 1e6, sum(x.flops for x in found) / 1e6
    table.add_section()
    table.add_row("all", "", f"{total:,}", f"{1 - kept / total:.1%}", f"{dense:.1f}", f"{sparse:.1f}")
    console.print(table)
