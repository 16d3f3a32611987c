"""`budwood predict`: what is on these photos, as the engine sees it."""

import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number
from numpy.typing import NDArray

from .. import compiling
from ..core.errors import UserError
from ..core.files import write_atomic
from ..core.task import Preprocessing
from ..engine.program import Program
from ..tasks.images import ImageError, read_rgb, transforms
from ..tasks.layout import SUFFIXES
from .common import Size, Threads, print_json, say

BATCH = 16


def run(
    model: str,
    /,
    *images: Path,
    top: Annotated[int, Parameter(validator=Number(gte=1))] = 5,
    size: Size | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    threads: Threads | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """The likeliest classes of photos, with their probabilities.

    Exit code 1 where a photo could not be read; the others are still named.

    Parameters
    ----------
    model
        The path of a checkpoint, an .onnx file or a program of `budwood compile`, or torchvision:NAME, timm:NAME,
        packaged:NAME, py:module.function.
    images
        Photos, and folders of them at any depth.
    top
        Classes to name for each photo.
    size
        Image size in pixels; the network's own if not given.
    out
        Write NAME.csv (one row a photo and class) instead of lines on the screen.
    threads
        Threads to compute with; as many as there are cores if not given.
    json
        Print the predictions as JSON on stdout and nothing else.
    """
    paths = list(_found(images))
    if out is not None and out.suffix != ".csv":
        raise UserError(f"cannot write predictions to {out.name}; end its name in .csv, or use --json")
    program = compiling.compile(model, image_size=size, threads=threads)
    preprocessing = _preprocessing(program, model, json)
    found: list[dict[str, Any]] = []
    failed = 0
    for path, value in _predicted(program, preprocessing, paths):
        if isinstance(value, ImageError):
            failed += 1
            print(f"budwood: {value}", file=sys.stderr)
            continue
        row = {"path": str(path), "predictions": _top(program, value, top)}
        found.append(row)
        if not json and out is None:
            print(_line(row), flush=True)
    if json:
        print_json(found)
    if out is not None:
        write_atomic(out, _csv(found))
        say(f"{out}: {len(found)} photos", json)
    if failed:
        print(f"budwood: {failed} of {len(paths)} photos could not be read", file=sys.stderr)
        sys.exit(1)


def _found(given: Sequence[Path]) -> Iterator[Path]:
    """The photos named, and those in the folders named, sorted. UserError where one is not there."""
    if not given:
        raise UserError("no photos: name files, or folders of them")
    for path in given:
        if path.is_dir():
            inside = (Path(where, name) for where, _, names in os.walk(path) for name in names)
            photos = sorted(p for p in inside if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            if not photos:
                raise UserError(f"{path} holds no images; Budwood reads {', '.join(SUFFIXES)}")
            yield from photos
        elif path.exists():
            yield path
        else:
            raise UserError(f"no file at {path}; check the path")


def _preprocessing(program: Program, model: str, quiet: bool) -> Preprocessing:
    """How photos become inputs; UserError where this network takes no images as we make them."""
    shape = program.input_shape
    if len(program.input_shapes) > 1 or len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise UserError(f"{model} takes no square RGB images, but inputs of shape {program.input_shapes}")
    if len(program.output_shapes) > 1 or int(np.prod(program.output_shape)) != program.output_shape[0]:
        raise UserError(f"{model} gives no probabilities of classes, but outputs of shape {program.output_shapes}")
    preprocessing = program.preprocessing
    if preprocessing is None:
        preprocessing = Preprocessing().at(shape[1])
        say(f"{model} does not say how photos are prepared; ImageNet's mean and deviation are taken", quiet)
    if preprocessing.size != shape[1]:
        raise UserError(
            f"{model} takes images of {shape[1]} px, but says that they are prepared at {preprocessing.size} px; "
            "compile it again"
        )
    return preprocessing


def _predicted(
    program: Program, preprocessing: Preprocessing, paths: Sequence[Path]
) -> Iterator[tuple[Path, NDArray[np.float64] | ImageError]]:
    """Every photo, in order, with its classes' probabilities [classes] or why it could not be read."""
    view = transforms(preprocessing, train=False)
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        read: list[Any] = []
        for path in batch:
            try:
                read.append(view(read_rgb(path)).numpy())
            except ImageError as error:
                read.append(error)
        good = [x for x in read if not isinstance(x, ImageError)]
        outputs = iter(_probabilities(program, np.stack(good)) if good else ())
        for path, x in zip(batch, read, strict=True):
            yield path, x if isinstance(x, ImageError) else next(outputs)


def _probabilities(program: Program, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N, classes]; a softmax is added where the network does not end in one."""
    logits: NDArray[np.float64] = program(images).astype(np.float64).reshape(len(images), -1)
    if program.gives_probabilities:
        return logits
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _top(program: Program, probabilities: NDArray[np.float64], count: int) -> list[dict[str, Any]]:
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [
        {
            "label": program.classes[k] if program.classes is not None else f"class {k}",
            "index": int(k),
            "probability": float(probabilities[k]),
        }
        for k in order
    ]


def _line(row: dict[str, Any]) -> str:
    named = ", ".join(f"{p['label']} {p['probability']:.1%}" for p in row["predictions"])
    return f"{row['path']}: {named}"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "rank", "label", "index", "probability"])
    for row in rows:
        for rank, p in enumerate(row["predictions"], 1):
            writer.writerow([row["path"], rank, p["label"], p["index"], f"{p['probability']:.6f}"])
    return text.getvalue()
