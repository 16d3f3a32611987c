"""Runs on a Ray cluster. Ray's own settings say where it is (RAY_ADDRESS); without one it starts here.

Images and files of networks lie at the same paths on every machine. The folder of the runs may be shared or not: a
worker that does not see it works in a folder of its own, and sends what it made.
"""

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.files import write_atomic
from ...core.result import Result
from ..grid import needs
from ..jobs import Context, Job, failed, work
from ..run import CHECKPOINT, RESULT

TRIES = 3
"""How often a job is begun whose worker dies."""
TOKEN = ".shared"
"""A file whose content tells a worker that it sees the driver's folder."""

Sent = tuple[list[Result], dict[str, bytes]]
"""Results, and the checkpoints of those whose folder the driver does not see."""


def run(jobs: Sequence[Job], context: Context, memory: float = 0.0) -> Iterator[list[Result]]:
    """Do the jobs on the cluster, each with `context.threads` CPUs, a GPU where the device is one, and `memory` GiB
    (0: not asked for); the results of each as it ends, in no order.

    Raises UserError where Ray is not installed or not to be reached.
    """
    ray = _connected()
    gpus = 0 if context.device == "cpu" else 1
    remote = ray.remote(
        num_cpus=context.threads, num_gpus=gpus, memory=int(memory * 2**30) or None, max_retries=TRIES - 1
    )(_do)
    token = secrets.token_hex(16)
    write_atomic(context.root / TOKEN, token)
    shared = ray.put(context)
    running = {remote.remote(job, shared, token, _inputs(ray, job, context.root)): job for job in jobs}
    try:
        while running:
            (ref,), _ = ray.wait(list(running), num_returns=1)
            yield _received(ray, ref, running.pop(ref), context.root)
    finally:
        for ref in running:
            ray.cancel(ref, force=True)
        (context.root / TOKEN).unlink(missing_ok=True)


def _connected() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("the executor ray needs Ray: pip install 'budwood[ray]'") from None
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if not ray.is_initialized():
            _knock(address)
            # Without RAY_ADDRESS Ray would look for a cluster here first, and wait for one that has died.
            ray.init(None if address else "local", log_to_driver=False, configure_logging=False)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address or 'hand'} ({error}); start one, or mend RAY_ADDRESS") from None
    return ray


def _knock(address: str) -> None:
    """OSError where nobody answers at HOST:PORT: Ray itself would try for minutes, and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _inputs(ray: Any, job: Job, root: Path) -> dict[str, Any]:
    """References to the checkpoints that the job begins with, fetched only by a worker that does not see them."""
    wanted = {run_id for spec in job for run_id in needs(spec)}
    return {run_id: ray.put((root / run_id / CHECKPOINT).read_bytes()) for run_id in wanted}


def _do(job: Job, context: Context, token: str, inputs: dict[str, Any]) -> Sent:
    """In a worker."""
    if _sees(context.root, token):
        return work(job, context), {}
    import ray

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for run_id, reference in inputs.items():
            write_atomic(root / run_id / CHECKPOINT, ray.get(reference))
        results = work(job, replace(context, root=root))
        made = [result.run_id for result in results if (root / result.run_id / CHECKPOINT).exists()]
        return results, {run_id: (root / run_id / CHECKPOINT).read_bytes() for run_id in made}


def _sees(root: Path, token: str) -> bool:
    try:
        return (root / TOKEN).read_text() == token
    except OSError:
        return False


def _received(ray: Any, ref: Any, job: Job, root: Path) -> list[Result]:
    """What a worker sent, put where a run of this machine would have left it."""
    try:
        results, checkpoints = ray.get(ref)
    except ray.exceptions.RayError as error:
        return [failed(spec, f"its worker died {TRIES} times ({type(error).__name__})") for spec in job]
    for run_id, data in checkpoints.items():
        write_atomic(root / run_id / CHECKPOINT, data)
    for result in results:
        if result.status == "done" and not (root / result.run_id / RESULT).exists():
            result.save(root / result.run_id / RESULT)
    return list(results)
