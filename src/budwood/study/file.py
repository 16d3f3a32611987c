"""A study as a YAML file: which networks, pruned how, are transferred to which tasks, in which way, how often."""

import glob
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    WrapValidator,
    model_validator,
)

from ..core.errors import UserError
from ..core.files import read_bytes
from ..core.spec import Protocol, Recipe
from ..core.task import Metric
from ..transfer.protocols import SEEDS, check_full, check_linear

LARGEST = 2**20
"""Bytes; a study has two thousand."""
SCHEMA = "study.schema.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _named(key: str, part: type[_Part]) -> BeforeValidator:
    """A plain text stands for the mapping that has nothing but `key`."""
    return BeforeValidator(
        lambda value: {key: value} if isinstance(value, str) else value, json_schema_input_type=str | part
    )


class ModelEntry(_Part):
    """A network as it comes, dense or pruned before."""

    model: str
    """torchvision:NAME, timm:NAME, packaged:NAME, or the path of a checkpoint; a path may have * in it."""
    label: str | None = None
    """What the report calls its method, where the checkpoint's own word does not tell it from another."""

    sparsity: float | None = Field(None, gt=0, lt=1)
    """By which sparsity it goes in the report, where the measured one is not round, so that it is compared with others;
    the measured one is told too."""
    accuracy: float | None = Field(None, ge=0, le=1)
    """Its accuracy upstream (on ImageNet, say), where it is known: for the plot of upstream against downstream."""


class MethodEntry(_Part):
    """A method that the study prunes with."""

    method: str
    """Its name (`budwood ls methods`)."""
    options: dict[str, Any] = {}
    """Settings of the method, as --option takes them."""


class TaskEntry(_Part):
    """Images to transfer to."""

    data: str
    """A task's name (`budwood ls tasks`), or a folder or CSV file of one's own."""
    root: Path | None = None
    """Where a named task lies; $BUDWOOD_DATA if not given."""
    metric: Metric | None = None
    """What images of one's own are measured by."""
    manifest: Path | None = None
    """A file that `budwood data manifest` wrote: the images must be those, with these splits."""


class Upstream(_Part):
    """What the study's own pruning sees before any transfer."""

    calibration: Path | None = None
    """Images without labels, for methods that prune at once and for the batch norm statistics."""
    data: str | None = None
    """Labelled images to train on while pruning: a folder or a task's name."""
    root: Path | None = None
    """Where that task lies."""
    recipe: Recipe = Recipe()
    """How it is trained on them."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of all that pruning leaves to chance."""


def _distinct(value: Any, check: Callable[[Any], Any]) -> Any:
    """One line for all that can be wrong, in place of one for each of the types that are allowed."""
    try:
        found = check(value)
    except ValidationError:
        found = []
    if isinstance(found, list) and len(set(found)) < max(1, len(found)):
        raise ValueError("must be a number of seeds from 1 to 1000, or a list of different ones from 0 to 2147483647")
    return found


_Seed = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Seeds = Annotated[
    Annotated[list[_Seed], Field(min_length=1, json_schema_extra={"uniqueItems": True})]
    | Annotated[StrictInt, Field(ge=1, le=1000)]
    | None,
    WrapValidator(_distinct),
]


class Way(_Part):
    """One way of transfer."""

    seeds: Seeds = None
    """A number of seeds (0, 1, ...) or a list of them; as many as the protocol has if not given."""
    recipe: Recipe = Recipe()
    """Settings that differ from the protocol's."""


_empty = BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=Way | None)
"""`linear:` with nothing after it is a way with no settings, not an absent one."""


class StudyFile(_Part):
    """A study: every model (and every dense one pruned by every method to every sparsity) on every task, in every way,
    for every seed."""

    name: str = Field(min_length=1, max_length=200)
    """What the report is called."""
    out: Path
    """Folder of the runs, relative to this file. Studies may share one: what they have in common is done once."""
    protocol: Protocol = "budwood"
    """budwood: a validation split, the best epoch on it. cvpr22: exactly as the CVPR 2022 study did it."""
    models: list[Annotated[ModelEntry, _named("model", ModelEntry)]] = Field(min_length=1)
    """Networks as they come; pruned ones are compared with the dense one of the same architecture."""
    methods: list[Annotated[MethodEntry, _named("method", MethodEntry)]] = []
    """How the dense ones among them are pruned here."""
    sparsities: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """To which shares of zeros."""
    when: Literal["upstream", "downstream"] = "upstream"
    """upstream: once, before any transfer. downstream: in each transfer, on its own task."""
    upstream: Upstream = Upstream()
    """What upstream pruning sees."""
    tasks: list[Annotated[TaskEntry, _named("data", TaskEntry)]] = Field(min_length=1)
    """What is transferred to."""
    transfers: dict[Literal["linear", "full"], Annotated[Way, _empty]] = Field(min_length=1)
    """linear: a new head on the frozen backbone. full: all weights, the mask held."""
    keep_checkpoints: bool = False
    """Keep the network of every transfer, and not only what was measured of it."""

    @model_validator(mode="after")
    def _goes_together(self) -> "StudyFile":
        if bool(self.methods) != bool(self.sparsities):
            raise ValueError("methods and sparsities need each other")
        if self.when == "downstream" and self.upstream != Upstream():
            raise ValueError("upstream counts only where pruning is done upstream")
        if self.upstream.calibration and self.upstream.data:
            raise ValueError("upstream has both calibration and data; leave one of them out")
        if any(way.recipe.distill for way in self.transfers.values()) and self.when == "upstream":
            raise ValueError("distill teaches what is pruned downstream; set when: downstream")
        if "linear" in self.transfers:
            check_linear(self.protocol, self.transfers["linear"].recipe)
        if "full" in self.transfers:
            check_full(self.transfers["full"].recipe, "transfers.full.recipe.{}".format)
        check_full(self.upstream.recipe, "upstream.recipe.{}".format)
        return self

    def seeds(self, way: Literal["linear", "full"]) -> list[int]:
        asked = self.transfers[way].seeds
        if asked is None:
            asked = SEEDS[self.protocol][way]
        return asked if isinstance(asked, list) else list(range(asked))


class _Loader(yaml.SafeLoader):
    """A key that is there twice is refused, where YAML's own loader takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is there twice; leave one out", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return node


def read(path: Path) -> StudyFile:
    """The study in a file, its paths made absolute. Raises UserError in one line where the file is missing, no YAML, or
    has a setting that is unknown or wrong."""
    data = read_bytes(path, "study")
    if len(data) > LARGEST:
        raise UserError(f"{path} is no study: it has {len(data)} bytes; `budwood study init` writes one")
    try:
        content = yaml.load(data.decode("utf-8-sig"), _Loader)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path} is no YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no study: it has no settings; `budwood study init` writes one")
    try:
        return _absolute(StudyFile.model_validate(content), path.resolve().parent)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = _REASONS.get(first["type"], first["msg"].removeprefix("Value error, "))
        raise UserError(f"{path}: {where + ': ' if where else ''}{reason}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


_REASONS = {
    "extra_forbidden": "there is no such setting",
    "missing": "is missing",
    "model_type": "must be a mapping of settings",
}
"""What pydantic says in words of Python."""


def _absolute(study: StudyFile, folder: Path) -> StudyFile:
    """Paths are relative to the file, so that a study runs from anywhere."""

    def at(path: Path | None) -> Path | None:
        return None if path is None else folder / _home(path)[0]

    def word(text: str) -> str:
        """A name stays; what lies there is a path, and what a * is to find, below a folder whose own name may have
        one."""
        path, there = _home(Path(text), folder)
        if "*" in text and not there:
            return str(Path(glob.escape(str(folder))) / path)
        return str(folder / path) if there else text

    upstream = study.upstream.model_copy(
        update={
            "calibration": at(study.upstream.calibration),
            "root": at(study.upstream.root),
            "data": study.upstream.data and word(study.upstream.data),
        }
    )
    tasks = [
        entry.model_copy(
            update={
                "data": entry.data if entry.root else word(entry.data),  # with a root it is a task's name
                "root": at(entry.root),
                "manifest": at(entry.manifest),
            }
        )
        for entry in study.tasks
    ]
    models = [entry.model_copy(update={"model": word(entry.model)}) for entry in study.models]
    return study.model_copy(update={"out": at(study.out), "upstream": upstream, "tasks": tasks, "models": models})


def _home(path: Path, folder: Path = Path()) -> tuple[Path, bool]:
    """A path with its ~ filled in, and whether something lies there, seen from `folder`."""
    try:
        path = path.expanduser()
        if "\0" in str(path):  # for which Path.exists has only a False
            raise ValueError("it has a null byte")
        return path, (folder / path).exists()
    except (RuntimeError, ValueError, OSError) as error:  # nobody's home, a NUL, a name that is too long
        raise UserError(f"{str(path)!r} is no path: {error}") from None


def schema() -> str:
    """JSON schema of the file, for editors."""
    return json.dumps(StudyFile.model_json_schema(), indent=1) + "\n"


TEMPLATE = f"""\
# yaml-language-server: $schema={SCHEMA}
# A study: every model on every task, in every way, for every seed. Paths are relative to this file.
# What is commented out is for example: it counts without the "# " before it.
name: First study
out: runs
protocol: budwood           # or cvpr22: exactly as "How Well Do Sparse ImageNet Models Transfer?" did it

models:                     # networks as they come, dense or pruned before (a path may have * in it)
  - packaged:tf_efficientnet_lite0
  # - checkpoints/*.safetensors
  # - model: checkpoints/other.safetensors
  #   label: gmp, longer    # where the method's name does not tell it from another

methods:                    # how the dense ones are pruned here; leave both out to prune nothing
  - magnitude
  # - method: magnitude
  #   options: {{allocation: erk}}
sparsities: [0.5, 0.7]
when: upstream              # once, before any transfer; downstream: in each transfer, on its own task
# upstream:                 # what pruning sees
#   calibration: images/    # any photos: methods at once look at them, batch norm statistics are made anew

tasks:                      # names of `budwood ls tasks`, folders of class folders, or CSV files
  - elpv
  # - data: caltech101
  #   root: ~/data
  #   manifest: splits/caltech101.csv
  # - data: photos/
  #   metric: mean_per_class

transfers:
  linear:                   # a new head on the frozen backbone
    recipe: {{size: 128}}
  # full:                   # all weights, the mask held
  #   seeds: 3
  #   recipe: {{epochs: 10, size: 128}}

keep_checkpoints: false     # true: the network of every transfer, not only what was measured of it
"""
