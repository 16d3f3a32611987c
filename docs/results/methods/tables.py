"""The tables of docs/results/methods.md out of the rows beside it: python docs/results/methods/tables.py"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
Row = dict[str, str]


def rows(name: str) -> list[Row]:
    path = HERE / name
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def spread(values: list[float], digits: int = 1) -> str:
    """Mean, standard deviation where there are several, and how many."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation} ({len(values)})"


def by_cell() -> dict[str, list[Row]]:
    """The runs of run.py, those that differ in nothing but the seed together."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows("rows.csv"):
        found[row["cell"].rpartition("-s")[0]].append(row)
    return found


def trained() -> str:
    """One line a cell of run.py: the best first, within its sparsity."""
    lines = [
        "| run | method | from | epochs | density, % | test top-1, % | CPU minutes | peak memory, MB |",
        "|---|" + "---|" * 7,
    ]

    def order(item: tuple[str, list[Row]]) -> tuple[float, float]:
        return float(item[1][0]["sparsity"]), -statistics.mean(float(row["test_top1"]) for row in item[1])

    for cell, same in sorted(by_cell().items(), key=order):
        first = same[0]
        density = statistics.mean(100 * float(row["density"]) for row in same)
        accuracy = spread([100 * float(row["test_top1"]) for row in same])
        measured = [float(row["cpu_seconds"]) / 60 for row in same if row["cpu_seconds"]]
        minutes = f"{statistics.mean(measured):.0f}" if measured else "not measured"
        memory = max((int(row["peak_mb"]) for row in same if row["peak_mb"]), default="not measured")
        start = {"scratch": "new weights", "dense": "the dense network"}[first["start"]]
        facts = [
            cell,
            first["method"],
            start,
            first["epochs"],
            f"{density:.2f}",
            accuracy,
            minutes,
            str(memory),
        ]
        lines.append("| " + " | ".join(facts) + " |")
    return "\n".join(lines)


def at_once() -> str:
    """Accuracy by method and sparsity, the best at the lowest sparsity first."""
    found: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows("at_once.csv"):
        found[row["method"]][float(row["sparsity"])].append(row)
    dense = found.pop("dense", {})
    levels = sorted({level for cells in found.values() for level in cells})
    lines = ["| method | " + " | ".join(f"{level:.0%}" for level in levels) + " | seconds | peak memory, MB |"]
    lines.append("|---|" + "---|" * (len(levels) + 2))

    def order(item: tuple[str, dict[float, list[Row]]]) -> list[float]:
        return [-statistics.mean([float(row["top1"]) for row in item[1].get(level, [])] or [0]) for level in levels]

    for method, cells in sorted(found.items(), key=order):
        accuracies = [spread([100 * float(row["top1"]) for row in cells[level]]) for level in levels]
        every = [row for same in cells.values() for row in same]
        seconds = statistics.median(float(row["seconds"]) for row in every)
        memory = max(int(row["peak_mb"]) for row in every)
        lines.append(f"| {method} | " + " | ".join(accuracies) + f" | {seconds:.0f} | {memory} |")
    if dense:
        lines.append(f"\nDense: {spread([100 * float(row['top1']) for row in dense[0.0]])} %.")
    return "\n".join(lines)


def bits(digits: str) -> list[bool]:
    """As right.py packs them: eight photographs a byte, the first one the highest bit."""
    return [digit == "1" for byte in bytes.fromhex(digits) for digit in f"{byte:08b}"]


CONTROLS = ("dense", "random", "magnitude")
SECOND_ORDER = ("woodfisher", "mfac", "obert", "cap", "exact-obs")
LEADERS = ("acdc-90", "rigl-3x-90", "st3-90")


@dataclass
class Runs:
    """What is known of the accuracy of a cell, a run a seed."""

    top1: list[float]
    photos: int
    right: list[list[bool]]
    """Of each run, which photographs it names rightly; empty where that is not known."""


def sigmas(better: Runs, worse: Runs) -> float:
    """By how many standard deviations two cells differ: of the photographs, and of the seeds where there are several.
    Both saw the same photographs, so where it is known which ones each names rightly, it is the differences by
    photograph that scatter; they are fewer than two independent samples would have."""
    means = [statistics.mean(runs.top1) for runs in (better, worse)]
    if len(better.right) == len(better.top1) and len(worse.right) == len(worse.top1):
        shares = zip(*([statistics.mean(photo) for photo in zip(*runs.right, strict=True)] for runs in (better, worse)),
                     strict=True)  # fmt: skip
        variance = statistics.pvariance([high - low for high, low in shares]) / better.photos
    else:
        variance = sum(mean * (1 - mean) / runs.photos for mean, runs in zip(means, (better, worse), strict=True))
    variance += sum(statistics.variance(runs.top1) for runs in (better, worse) if len(runs.top1) > 1)
    return (means[0] - means[1]) / max(variance, 1e-12) ** 0.5


def sanity() -> str:
    """What the papers let one expect at 90 % (60 % at once), and whether it is so. Two figures are told apart where
    they differ by two standard deviations."""
    cells = by_cell()
    right = {row["cell"]: row["right"] for row in rows("right.csv")}
    trained = {
        cell: Runs(
            [float(row["test_top1"]) for row in same], 5000,
            [bits(right[row["cell"]]) for row in same if row["cell"] in right],
        )
        for cell, same in cells.items()
    }  # fmt: skip
    at_90 = {cell: same[0]["start"] for cell, same in cells.items() if "-90" in cell and "random" not in cell}
    once: dict[str, list[float]] = defaultdict(list)
    for row in rows("at_once.csv"):
        if row["sparsity"] == "0.6" and " " not in row["method"]:  # as the others are, nothing set for it
            once[row["method"]].append(float(row["top1"]))
    at_once = {method: Runs(top1, 500, []) for method, top1 in once.items()}
    lines = ["| expected | figures (seeds) | standard deviations | so? |", "|---|---|---|---|"]

    def compare(what: str, better: str, worse: str, among: Mapping[str, Runs]) -> None:
        if better not in among or worse not in among:
            return
        apart = sigmas(among[better], among[worse])
        so = "yes" if apart > 2 else "no" if apart < -2 else "not told apart"
        figures = (f"`{cell}` {100 * statistics.mean(among[cell].top1):.1f} ({len(among[cell].top1)})"
                   for cell in (better, worse))  # fmt: skip
        lines.append(f"| {what} | {', '.join(figures)} | {apart:+.1f} | {so} |")

    for cell, start in sorted(at_90.items()):
        control = "random-90" if start == "scratch" else "random-on-90"
        compare("trained: better than a random mask", cell, control, trained)
    compare("trained: better than a random mask", "topkast-90", "random-uniform-90", trained)
    for cell in ("acdc-95", "rigl-95", "str-95"):
        compare("trained: better than a random mask", cell, "random-95", trained)
    for percent in (80, 90, 95):
        compare("trained: better than a ticket alone", f"gmp-{percent}", f"lth-t-{percent}", trained)
    for method in sorted(once):
        if method not in CONTROLS:
            compare("at once: better than a random mask", method, "random", at_once)
    for method in SECOND_ORDER:
        compare("at once: second order better than magnitude", method, "magnitude", at_once)
    for cell in ("gmp-90", "woodfisher-90"):
        compare("trained: little by little better than at once", cell, "magnitude-on-90", trained)
    others = {cell for cell, start in at_90.items() if start == "scratch"} - set(LEADERS)
    for cell in LEADERS:
        for other in sorted(others):
            compare("trained: leads among those from new weights", cell, other, trained)
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"**Trained** (mean ± standard deviation over seeds, their number)\n\n{trained()}\n")
    print(f"**At once**, top-1 in percent\n\n{at_once()}\n")
    print(f"**What was to be expected**\n\n{sanity()}")
