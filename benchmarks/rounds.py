"""Several ways to the same, timed in rounds that go from way to way, so that a drift of the machine hits all alike."""

import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Ways = Mapping[str, Callable[[], object]]


def measure(ways: Ways, rounds: int, warm: int = 0) -> dict[str, list[float]]:
    """Seconds of each way and round, after `warm` rounds that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn >= warm:
                taken[name].append(time.perf_counter() - start)
    return taken


def spread(values: Sequence[float], digits: int) -> str:
    """Median (least to greatest)."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:>7} ({low} to {high})"


def append(path: Path, facts: Mapping[str, Any], unit: str, taken: Mapping[str, Sequence[float]]) -> None:
    """A row of a CSV file for each way and round: `facts`, way, round, and the value in the column `unit`."""
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow([*facts, "way", "round", unit])
        for name, values in taken.items():
            for turn, value in enumerate(values):
                writer.writerow([*facts.values(), name, turn, f"{value:.4f}"])


def thinned(samples: list[Any], most: int) -> list[Any]:
    """At most so many of them, drawn evenly."""
    count = min(most, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]
