"""`budwood.compile`: from whatever holds a network to a program. It composes `models` and `engine`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import UserError
from .core.files import read_bytes
from .core.task import Preprocessing
from .engine.graph import Graph
from .engine.passes import optimize
from .engine.program import Program
from .engine.saved import is_program, unpack

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .models.network import Network

LARGEST_SIZE = 4096
"""Pixels of an image's side that a program is made for."""


@dataclass(frozen=True)
class _Wishes:
    """What the caller asked for beside the network; each wins over what the network says of itself."""

    image_size: int | None
    example: Any
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    threads: int | None

    def refuse_size(self, why: str) -> None:
        if self.image_size is not None or self.example is not None:
            raise UserError(f"{why}; leave the image size and the example out")


def compile(
    model: Any,
    *,
    image_size: int | None = None,
    example: Tensor | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    threads: int | None = None,
) -> Program:
    """A program that computes what the network does in evaluation, for any number of images at a time.

    `model` is an `nn.Module` (with `image_size` in pixels or an `example` input [N, C, H, W]), an `ExportedProgram`,
    a `Network` or `Checkpoint` of Budwood's, or a name: a checkpoint or weight file, an .onnx file, a saved program,
    a run's folder, or `torchvision:resnet50` and the like (`budwood ls models`). `classes` and `preprocessing`
    travel with the program; networks that Budwood knows have their own. The module is left as it is.

    Raises UserError in one line where a file is missing or damaged, or an operator is not supported, and ValueError
    or TypeError where the arguments do not fit.
    """
    if image_size is not None and not 1 <= image_size <= LARGEST_SIZE:
        raise UserError(f"an image size of {image_size} pixels is not possible; give one from 1 to {LARGEST_SIZE}")
    names = None if classes is None else tuple(classes)
    wishes = _Wishes(image_size, example, names, preprocessing, threads)
    if isinstance(model, str | os.PathLike):
        return _from_name(os.fspath(model), wishes)
    torch = sys.modules.get("torch")  # whoever has a module has imported it
    if torch is not None:
        if isinstance(model, torch.nn.Module):
            return _from_module(model, wishes, name=type(model).__name__)
        if isinstance(model, torch.export.ExportedProgram):
            return _from_exported(model, wishes)
        from .core.checkpoint import Checkpoint
        from .models.network import Network, from_checkpoint

        if isinstance(model, Network | Checkpoint):
            return _from_network(model if isinstance(model, Network) else from_checkpoint(model), wishes)
    raise TypeError(f"a {type(model).__name__} cannot be compiled; give a module, a checkpoint, a path or a name")


def _from_name(name: str, wishes: _Wishes) -> Program:
    path = Path(name)
    if path.suffix == ".onnx":
        return _from_onnx(path, wishes)
    if path.is_file():
        data = read_bytes(path, "network")
        if is_program(data):
            wishes.refuse_size(f"{name} is compiled already, for images of one size")
            return _renamed(unpack(data, name, wishes.threads), wishes)
        del data
    from .models.network import open_network

    return _from_network(open_network(name), wishes)


def _renamed(program: Program, wishes: _Wishes) -> Program:
    """A saved program with the classes and the preprocessing asked for."""
    if wishes.classes is None and wishes.preprocessing is None:
        return program
    return Program(
        program.graph,
        classes=wishes.classes or program.classes,
        preprocessing=wishes.preprocessing or program.preprocessing,
        name=program.name,
        source=program.source,
        threads=program.threads,
    )


def _from_onnx(path: Path, wishes: _Wishes) -> Program:
    from .engine.from_onnx import graph_from_onnx
    from .engine.from_onnx.file import read_properties

    wishes.refuse_size(f"{path} has an image size of its own")
    graph = graph_from_onnx(path)
    facts = read_properties(path)
    classes, preprocessing = wishes.classes, wishes.preprocessing
    if classes is None and (own := _json(facts.get("classes"))) is not None:
        fits = isinstance(own, list) and all(isinstance(name, str) for name in own)
        if not fits or len(own) != graph.shapes[graph.outputs[0]][0]:
            raise UserError(f"{path}: its property `classes` does not fit; it is a JSON list with a name an output")
        classes = tuple(own)
    if preprocessing is None and (found := _json(facts.get("preprocessing"))) is not None:
        preprocessing = _preprocessing(found, path)
    name = facts.get("architecture") or path.stem
    return _program(graph, wishes, classes, preprocessing, name, path.name)


def _json(text: str | None) -> Any:
    """The value, or None where it is none: the property is another tool's then."""
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _preprocessing(value: Any, path: Path) -> Preprocessing:
    from pydantic import ValidationError

    try:
        return Preprocessing.model_validate(value)
    except ValidationError:
        raise UserError(f"{path}: its property `preprocessing` does not fit; see `budwood export`") from None


def _from_network(network: Network, wishes: _Wishes) -> Program:
    lineage = network.lineage
    preprocessing = wishes.preprocessing or lineage.preprocessing
    size = wishes.image_size
    if wishes.example is not None:
        size = int(wishes.example.shape[-1])
    if size is not None:
        preprocessing = preprocessing.at(size)
    example = _example(preprocessing.size) if wishes.example is None else wishes.example
    classes = lineage.classes if wishes.classes is None else wishes.classes
    graph = _graph(network.module, example)
    return _program(graph, wishes, classes, preprocessing, lineage.architecture, lineage.source)


def _from_module(module: nn.Module, wishes: _Wishes, name: str) -> Program:
    preprocessing, example = wishes.preprocessing, wishes.example
    if preprocessing is not None and wishes.image_size is not None:
        preprocessing = preprocessing.at(wishes.image_size)
    if example is None:
        size = wishes.image_size or (preprocessing.size if preprocessing else None)
        if size is None:
            raise ValueError("how large are the images? give image_size=224, or an example input")
        example = _example(size)
    return _program(_graph(module, example), wishes, wishes.classes, preprocessing, name, "")


def _from_exported(exported: Any, wishes: _Wishes) -> Program:
    from .engine.from_export import graph_from_exported

    wishes.refuse_size("an exported program has an image size of its own")
    name = type(exported.graph_module).__name__
    return _program(graph_from_exported(exported), wishes, wishes.classes, wishes.preprocessing, name, "")


def _program(
    graph: Graph,
    wishes: _Wishes,
    classes: Sequence[str] | None,
    preprocessing: Preprocessing | None,
    name: str,
    source: str,
) -> Program:
    return Program(
        optimize(graph),
        classes=classes,
        preprocessing=preprocessing,
        name=name,
        source=source,
        threads=wishes.threads,
    )


def _example(size: int) -> Tensor:
    import torch

    return torch.zeros(2, 3, size, size)


def _graph(module: nn.Module, example: Tensor) -> Graph:
    from .engine.from_export import graph_from_module

    return graph_from_module(module, example)
