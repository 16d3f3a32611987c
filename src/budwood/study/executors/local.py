"""Runs in processes of this machine. One that dies (killed, out of memory) costs the run it was at, which is tried
again."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from ...core.result import Result
from ..jobs import Context, Job, failed, work

TRIES = 3
"""How often a job is begun whose process dies."""

_context: Context
"""Of this worker, set when it begins."""


def run(jobs: Sequence[Job], context: Context, workers: int) -> Iterator[list[Result]]:
    """Do the jobs, `workers` at a time; the results of each as it ends, in no order. One worker is this process."""
    if workers == 1:
        yield from (work(job, context) for job in jobs)
        return
    waiting = deque((job, 1) for job in jobs)
    while waiting:
        yield from _until_broken(waiting, context, min(workers, len(waiting)))


def _until_broken(waiting: deque[tuple[Job, int]], context: Context, workers: int) -> Iterator[list[Result]]:
    """Work `waiting` off; where a process dies, its job and those beside it go back there."""
    # Not forked: PyTorch's threads do not survive it.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (context, os.getpid()))
    running: dict[Future[list[Result]], tuple[Job, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job, tries = waiting[0]
                running[pool.submit(_do, job)] = job, tries
                waiting.popleft()  # only now: a broken pool takes no job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                results = future.result()  # raises where the pool is broken; the job is still in `running` then
                del running[future]
                yield results
    except BrokenProcessPool:
        for job, tries in running.values():
            if tries < TRIES:
                waiting.append((job, tries + 1))
            else:
                reason = f"its process died {TRIES} times; out of memory? Fewer --workers take less"
                yield [failed(spec, reason) for spec in job]
    finally:
        for process in (pool._processes or {}).values():  # a run that is stopped goes on from its last save
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _begin(context: Context, parent: int) -> None:
    """In a new process."""
    global _context
    _context = context
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose driver was killed would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(job: Job) -> list[Result]:
    return work(job, _context)
