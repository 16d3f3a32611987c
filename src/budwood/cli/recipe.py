"""`budwood recipe`: the settings of a method as a file, its authors' or the defaults, to edit and to prune by."""

from typing import Annotated

from cyclopts import App, Parameter

from ..core.errors import UserError
from ..core.pruner import Pruner, Settings
from ..core.registry import methods, nearest
from ..core.spec import Recipe
from ..study.recipe import RecipeFile, comment, write

app = App(name="recipe", help="The settings of a method, its authors' or the defaults, as a file to edit.")


@app.command
def show(
    method: str,
    /,
    *,
    paper: Annotated[bool, Parameter(negative=())] = False,
    variant: str | None = None,
) -> None:
    """Print the settings of a method as TOML, every one with what it means; `budwood prune --recipe FILE` takes it.

    Parameters
    ----------
    method
        A pruning method (`budwood ls methods`).
    paper
        Its authors' settings, with what they reported, instead of the defaults.
    variant
        Which of the authors' settings, where they had several.
    """
    kind = methods.get(method)
    if variant is not None and not paper:
        raise UserError("--variant is one of the authors' settings: add --paper")
    settings = _settings(method, kind, variant) if paper else None
    print(_head(method, kind, settings))
    recipe = settings.recipe if settings else Recipe()
    options = kind.Options(**settings.options) if settings else kind.Options()
    sparsity = (settings.sparsity if settings else 0.9) if kind.tags.density != "given" else None
    print(write(RecipeFile(method=method, sparsity=sparsity, recipe=recipe), options), end="")


def _settings(method: str, kind: type[Pruner], variant: str | None) -> Settings:
    if not kind.papers:
        raise UserError(f"{method} has no settings of a paper: leave --paper out")
    name = variant or next(iter(kind.papers))
    if name not in kind.papers:
        raise UserError(f"{method} has no variant {name!r}; {nearest(name, list(kind.papers))}")
    return kind.papers[name]


def _head(method: str, kind: type[Pruner], settings: Settings | None) -> str:
    """What the fields cannot say, as comments."""
    tags = kind.tags
    lines = [f"{method}, family: {tags.family}" + (f"; {tags.paper}" if tags.paper else "")]
    lines.append(f"Cost: {kind.cost}.")
    if settings is None:
        if kind.papers:
            lines.append(f"The defaults; its authors' settings: --paper --variant {' | '.join(kind.papers)}")
    else:
        lines += [f"As used for {settings.model} on {settings.data}.", f"From: {settings.source}."]
        if settings.results:
            found = ", ".join(f"{top1:g} at {100 * sparsity:g} %" for sparsity, top1 in settings.results.items())
            lines.append(f"Top-1 accuracy that they report, in percent: {found}.")
        lines += [f"{note[0].upper()}{note[1:]}." for note in settings.notes]
    return "\n".join(comment(line) for line in lines)
