"""`budwood compile`: a network as a program of the sparse engine, in one file."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import compiling
from ..core.errors import UserError
from .common import Size, Threads, say


def run(
    model: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    size: Size | None = None,
    explain: Annotated[bool, Parameter(negative=())] = False,
    batch: int = 1,
    threads: Threads | None = None,
) -> None:
    """Compile a network for this library's own engine, which skips its zeros.

    The file holds the graph, the weights, the class names and how images are prepared; `budwood predict` and
    budwood.load_program run it on any machine.

    Parameters
    ----------
    model
        The path of a checkpoint or an .onnx file, or torchvision:NAME, timm:NAME, packaged:NAME, py:module.function.
    out
        The file to write, by custom NAME.budwood.
    size
        Image size in pixels; the network's own if not given.
    explain
        Print every layer's kernel, time and rate, as measured here.
    batch
        Images at a time for --explain: 1, 4 or 16.
    threads
        Threads for --explain; as many as there are cores if not given.
    """
    if out is None and not explain:
        raise UserError("nothing to do: name a file with -o NAME.budwood, or ask for --explain")
    start = time.perf_counter()
    program = compiling.compile(model, image_size=size, threads=threads)
    seconds = time.perf_counter() - start
    if out is not None:
        bytes_ = program.save(out)
        shape = " x ".join(map(str, program.input_shape))
        say(f"{out}: {bytes_ / 1e6:.1f} MB, {program.name}, input {shape}, compiled in {seconds:.1f} s")
    if explain:
        print(program.explain(batch=batch))
