"""A method's settings as a TOML file: written with a word on each, read with every one checked."""

import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import UserError
from ..core.spec import LINEAR_ONLY, Recipe

LARGEST = 64 * 2**10
"""Bytes; a recipe has two thousand."""


class RecipeFile(BaseModel):
    """What such a file holds. `option` is checked by the method itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    sparsity: float | None = Field(None, ge=0, lt=1)
    recipe: Recipe = Recipe()
    option: dict[str, Any] = {}


def read(path: Path) -> RecipeFile:
    """Raises UserError in one line where the file is missing, no TOML, or has a setting that is unknown or wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise UserError(f"{path} is no recipe: it has {len(data)} bytes; `budwood recipe show METHOD` prints one")
    try:
        return RecipeFile.model_validate(tomllib.loads(data.decode("utf-8-sig")))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise UserError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def merged(file: RecipeFile, given: Recipe) -> Recipe:
    """The file's settings, but where the command line gave another."""
    over = {name: getattr(given, name) for name in given.model_fields_set}
    return Recipe.model_validate(file.recipe.model_dump() | over)


def write(file: RecipeFile, options: BaseModel) -> str:
    """The file's text: every setting of the method and of the training, after a comment that says what it is."""
    lines = [f"method = {json.dumps(file.method)}"]
    if file.sparsity is not None:
        lines.append(f"sparsity = {file.sparsity:g}")
    lines += _table("option", options) + _table("recipe", file.recipe)
    return "\n".join(lines) + "\n"


def comment(text: str) -> str:
    """As comments of at most 118 characters; what goes on is indented."""
    return textwrap.fill(
        " ".join(text.split()), 118, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
    )


def _table(name: str, model: BaseModel) -> list[str]:
    fields = type(model).model_fields
    values = {key: getattr(model, key) for key in fields}
    hidden = LINEAR_ONLY if name == "recipe" else ()
    plain = [key for key in fields if not isinstance(values[key], BaseModel) and key not in hidden]
    lines = ["", f"[{name}]"] if plain else []
    for key in plain:
        text, words = fields[key].description or "", _words(fields[key].annotation)
        if text or words:
            lines.append(comment(f"{text} Values: {', '.join(words)}." if words else text))
        value = model.model_dump(mode="json")[key]
        lines.append(f"# {key} = (not set)" if value is None else f"{key} = {json.dumps(value)}")
    for key in fields:
        if isinstance(values[key], BaseModel):
            lines += _table(f"{name}.{key}", values[key])
    return lines


def _words(annotation: Any) -> list[str]:
    """Those that a setting may have, or be a list of; empty where it is not one of words."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _words(part)]
