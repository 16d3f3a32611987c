"""Times several callables against each other, in rounds, so that a change of the machine's speed hits all alike."""

import time
from collections.abc import Callable, Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict

MIN_ROUNDS = 3
"""Fewer say nothing about the spread; so many are run even where the time budget is already spent."""


SETTLE = 0.05
"""Seconds before each turn: threads of the one before spin for work, on the cores that the next one needs (OpenMP's for
some milliseconds), and then sleep. And of untimed calls after it: a processor that slept is slow at first."""


class Timing(BaseModel):
    """What `rounds` rounds came to, in milliseconds a call."""

    model_config = ConfigDict(frozen=True)
    median: float
    q1: float
    q3: float
    minimum: float
    rounds: int


def compare(
    callables: Mapping[str, Callable[[], object]],
    rounds: int = 30,
    per_round: int = 1,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the callables in turn (A B C, A B C, ...) after a warm-up; one sample = the mean of `per_round` calls.

    Every turn begins with a pause and as long with untimed calls: threads of the one before go to sleep, caches,
    threads and the processor's speed come back.
    Stops before `rounds` once `seconds` have passed, but never below three rounds.
    """
    started = clock()
    samples: dict[str, list[float]] = {name: [] for name in callables}
    for call in callables.values():
        call()
    for done in range(max(rounds, MIN_ROUNDS)):
        if done >= MIN_ROUNDS and seconds is not None and clock() - started >= seconds:
            break
        for name, call in callables.items():
            time.sleep(SETTLE)
            begin = clock()
            call()
            while clock() - begin < SETTLE:
                call()
            begin = clock()
            for _ in range(per_round):
                call()
            samples[name].append((clock() - begin) * 1000 / per_round)
    return {name: _summary(times) for name, times in samples.items()}


def _summary(times: list[float]) -> Timing:
    q1, median, q3 = np.quantile(times, [0.25, 0.5, 0.75])
    return Timing(median=float(median), q1=float(q1), q3=float(q3), minimum=min(times), rounds=len(times))
