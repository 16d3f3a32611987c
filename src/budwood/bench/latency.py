"""Milliseconds an image, for several networks on several backends, measured in one interleaved run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.registry import backends as registry
from .backend import Backend, Run
from .timer import Timing, compare


class LatencyRow(BaseModel):
    """One network on one backend. Times are None unless `status` is "done"."""

    model_config = ConfigDict(frozen=True)
    label: str
    backend: str
    size: int
    """Height and width of the images in pixels."""
    batch: int
    threads: int
    zeros: float
    """Share of zeros among the network's convolution and linear weights."""
    status: Literal["done", "failed", "skipped"] = "done"
    reason: str = ""
    ms_per_image: float | None = None
    """The median; `q1` and `q3` are the quartiles."""
    q1: float | None = None
    q3: float | None = None
    rounds: int = 0
    speedup: float | None = None
    """Time of the first row over the time of this one: 2 is twice as fast."""


def latency(
    models: dict[str, nn.Module], size: int, batch: int, backends: list[str], threads: int, seconds: float
) -> list[LatencyRow]:
    """Time every network (label -> module) on every backend, on random images [batch, 3, size, size].

    Nothing is timed before its logits agree with eager mode's; a backend that is missing, fails or disagrees
    gives a row with the reason. All that is left is timed in one interleaved run of about `seconds`
    (preparing and compiling come on top). Raises UserError for a name that is no backend, and for a network
    that PyTorch itself cannot run on such images.
    """
    example = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    members = {name: registry.get(name) for name in backends}
    rows: list[LatencyRow] = []
    runs: dict[int, Run] = {}
    with _torch_threads(threads):
        for label, model in models.items():
            expected = _expected(label, model, example, threads)
            for name, member in members.items():
                run, status, reason = _checked(member(), model, example, threads, expected)
                if run is not None:
                    runs[len(rows)] = run
                rows.append(
                    LatencyRow(
                        label=label, backend=name, size=size, batch=batch, threads=threads, zeros=zeros(model),
                        status=status, reason=reason,
                    )
                )  # fmt: skip
        calls = {str(index): (lambda run=run: run(example)) for index, run in runs.items()}
        timings = compare(calls, rounds=1000, seconds=seconds) if calls else {}
    return _with_times(rows, {int(index): timing for index, timing in timings.items()})


def disagreement(
    expected: NDArray[np.float32], got: NDArray[np.float32], tolerance: float = Backend.tolerance
) -> str | None:
    """The reason why these logits [N, classes] are not the same answer, or None.

    Within the tolerance the top class can only differ where the two best are nearer than twice the tolerance:
    a tie, as far as float32 can tell.
    """
    if got.shape != expected.shape:
        return f"answers have shape {got.shape}, eager's {expected.shape}"
    if not np.isfinite(expected).all():
        return "the network's answers are not finite"
    scale = max(float(np.abs(expected).max()), 1e-6)
    error = float(np.abs(got - expected).max()) / scale
    if not error <= tolerance:  # also true for NaN
        return f"answers differ from eager's by {error:.1e} of the largest logit; {tolerance:.0e} is allowed"
    return None


def zeros(model: nn.Module) -> float:
    """Share of zeros among the weights of the convolution and linear layers."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    total = sum(layer.weight.numel() for layer in layers)
    kept = sum(int(torch.count_nonzero(layer.weight)) for layer in layers)
    return 1 - kept / total if total else 0.0


def _expected(label: str, model: nn.Module, example: Tensor, threads: int) -> NDArray[np.float32]:
    try:
        return registry.get("eager")().prepare(model, example, threads)(example)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{label} cannot run on images of shape {list(example.shape)}: {error}"[:300]) from None


def _checked(
    backend: Backend, model: nn.Module, example: Tensor, threads: int, expected: NDArray[np.float32]
) -> tuple[Run | None, Literal["done", "failed", "skipped"], str]:
    """The prepared callable if it gives the expected answer; otherwise None, a status and the reason."""
    if reason := backend.available():
        return None, "skipped", reason
    try:
        run = backend.prepare(model, example, threads)
        reason = disagreement(expected, run(example), backend.tolerance)
    except Exception as error:  # whatever a library raises is this row's reason, not the end of the others
        first_line = (str(error).strip().splitlines() or [""])[0]
        return None, "failed", f"{type(error).__name__}: {first_line}"[:300]
    return (None, "failed", reason) if reason else (run, "done", "")


def _with_times(rows: list[LatencyRow], timings: dict[int, Timing]) -> list[LatencyRow]:
    finished = []
    for index, row in enumerate(rows):
        if index in timings:
            t = timings[index]
            times = {"ms_per_image": t.median / row.batch, "q1": t.q1 / row.batch, "q3": t.q3 / row.batch}
            speedup = timings[0].median / t.median if 0 in timings else None
            row = row.model_copy(update={**times, "rounds": t.rounds, "speedup": speedup})
        finished.append(row)
    return finished


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
