"""`budwood ls`: what there is to choose from."""

from typing import Annotated, Any, Literal

import torchvision
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.registry import backends, methods, sources, tasks
from ..models import packaged, small
from ..models.published import nets
from ..models.timm import available
from .common import print_json

Kind = Literal["methods", "tasks", "models", "backends"]


def run(kind: Kind, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """List the methods, tasks, models or backends.

    Parameters
    ----------
    kind
        What to list.
    json
        Print JSON on stdout and nothing else.
    """
    rows = {"methods": _methods, "tasks": _tasks, "models": _models, "backends": _backends}[kind]()
    if json:
        print_json(rows)
        return
    table = Table()
    for column in rows[0]:
        table.add_column(column.replace("_", " "), no_wrap=column in ("name", "family"), overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    Console(highlight=False).print(table)


def _methods() -> list[dict[str, Any]]:
    found = []
    for name in methods:
        tags = methods.get(name).tags
        when = ["at once"] if tags.at_once else []
        when += ["while training"] if tags.gradual else []
        needs = ["images"] if tags.data != "none" else []  # labels too, where there are some
        if not tags.at_once or tags.density == "given":
            needs += ["a training"]
        elif tags.gradual and not needs:
            needs += ["a training, or a linear transfer"]
        facts = {"name": name, "family": tags.family, "paper": tags.paper}
        facts |= {"prunes": "never" if tags.density == "given" else ", ".join(when), "needs": ", ".join(needs)}
        found.append(facts | {"patterns": "N:M, 1xB" if tags.patterns else "", "density": tags.density})
    return found


def _tasks() -> list[dict[str, Any]]:
    found = []
    for name in tasks:
        kind = tasks.get(name)
        sizes = " / ".join(str(n) for n in (kind.declared_sizes or {}).values())
        facts = {"name": name, "classes": kind.declared_classes or "yours", "train / val / test": sizes or "yours"}
        found.append(facts | {"metric": kind.metric, "licence": kind.licence})
    return found


def _models() -> list[dict[str, Any]]:
    examples = {
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": available(),
        "packaged": list(packaged.MODELS),
        "published": [f"published:{name}@FILE" for name in nets.NETS],
        "small": [f"small:{name}" for name in small.BLOCKS],
        "py": ["py:module.function"],
    }
    return [
        {"source": name, "models": len(found), "for example": ", ".join(found[:: max(1, len(found) // 4)][:4])}
        for name in sources
        if (found := examples.get(name, [])) or name not in examples
    ]


def _backends() -> list[dict[str, Any]]:
    return [{"name": name, "status": backends.get(name)().available() or "available"} for name in backends]
