"""The tables of docs/results/methods.md out of the rows beside it: python docs/results/methods/tables.py"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
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
    """One line a cell of run.py: the best first among those of its sparsity and its start."""
    lines = [
        "| run | method | from | epochs | density, % | test top-1, % | CPU minutes | peak memory, MB |",
        "|---|" + "---|" * 7,
    ]

    def order(item: tuple[str, list[Row]]) -> tuple[float, str, float]:
        first, accuracy = item[1][0], statistics.mean(float(row["test_top1"]) for row in item[1])
        return float(first["sparsity"]), first["start"], -accuracy

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
EARLIER = ("rigl", "set", "snfs", "str")
"""What AC/DC, and after it ST-3, came out better than in their papers."""


@dataclass
class Runs:
    """What is known of the accuracy of a cell, a run a seed."""

    top1: list[float]
    photos: int
    right: list[list[bool]]
    """Of each run, which photographs it names rightly; empty where that is not known."""


def seeds(cells: Iterable[Runs]) -> float:
    """Variance of a run's accuracy from one seed to another: one for all cells, of those that have several."""
    several = [runs.top1 for runs in cells if len(runs.top1) > 1]
    freedom = sum(len(top1) - 1 for top1 in several)
    return sum(statistics.variance(top1) * (len(top1) - 1) for top1 in several) / freedom if freedom else 0.0


def sigmas(better: Runs, worse: Runs, seed_variance: float) -> float:
    """By how many standard deviations two cells differ: of the photographs, and of the seeds. Both saw the same
    photographs, so where it is known which ones each names rightly, it is the differences by photograph that scatter;
    they are fewer than two independent samples would have."""
    means = [statistics.mean(runs.top1) for runs in (better, worse)]
    if len(better.right) == len(better.top1) and len(worse.right) == len(worse.top1):
        shares = zip(*([statistics.mean(photo) for photo in zip(*runs.right, strict=True)] for runs in (better, worse)),
                     strict=True)  # fmt: skip
        variance = statistics.pvariance([high - low for high, low in shares]) / better.photos
    else:
        variance = sum(mean * (1 - mean) / runs.photos for mean, runs in zip(means, (better, worse), strict=True))
    variance += sum(seed_variance / len(runs.top1) for runs in (better, worse))
    return (means[0] - means[1]) / max(variance, 1e-12) ** 0.5


def control_of(cell: str) -> str | None:
    """The random mask that had the same training as a cell at 90 or 95 %; none where no run had."""
    method, _, percent = cell.rpartition("-")
    if percent not in ("90", "95") or "random" in cell or method.startswith("lth") or method.endswith("-3x"):
        return None  # a ticket is trained for some of the epochs, if at all
    if method == "topkast":
        return "random-uniform-90"
    on = method.endswith("-on") or method in ("gmp", "gmp-early", "woodfisher")
    return f"random-{'on-' if on else ''}{percent}"


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
    once: dict[str, list[float]] = defaultdict(list)
    for row in rows("at_once.csv"):
        if row["sparsity"] == "0.6" and " " not in row["method"]:  # as the others are, nothing set for it
            once[row["method"]].append(float(row["top1"]))
    at_once = {method: Runs(top1, 500, []) for method, top1 in once.items()}
    lines = ["| expected | figures (seeds) | standard deviations | so? |", "|---|---|---|---|"]

    def compare(what: str, better: str, worse: str, among: Mapping[str, Runs]) -> None:
        if better not in among or worse not in among:
            return
        apart = sigmas(among[better], among[worse], seeds(among.values()))
        so = "yes" if apart > 2 else "no" if apart < -2 else "not told apart"
        figures = (f"`{cell}` {100 * statistics.mean(among[cell].top1):.1f} ({len(among[cell].top1)})"
                   for cell in (better, worse))  # fmt: skip
        lines.append(f"| {what} | {', '.join(figures)} | {apart:+.1f} | {so} |")

    for cell in sorted(trained):
        if control := control_of(cell):
            compare("trained: better than a random mask", cell, control, trained)
    for percent in (80, 90, 95):
        compare("trained: better than a ticket alone", f"gmp-{percent}", f"lth-t-{percent}", trained)
        compare("trained: second order better than magnitude", f"woodfisher-{percent}", f"gmp-{percent}", trained)
    compare("trained: second order better than magnitude", "woodfisher-90", "gmp-early-90", trained)
    compare("trained: second order better than magnitude", "exact-obs-on-90", "magnitude-on-90", trained)
    for cell in ("gmp-90", "woodfisher-90"):
        compare("trained: little by little better than at once", cell, "magnitude-on-90", trained)
    for other in EARLIER:
        compare("trained: AC/DC leads those before it", "acdc-90", f"{other}-90", trained)
    for other in ("acdc", *EARLIER):
        compare("trained: ST-3 leads those before it", "st3-90", f"{other}-90", trained)
    for other in ("set", "snfs", "str"):
        compare("trained: RigL three times as long leads those before it", "rigl-3x-90", f"{other}-90", trained)
    compare("trained: AC/DC leads those before it", "acdc-3x-90", "rigl-3x-90", trained)
    for cell in ("rigl", "acdc"):
        compare("trained: three times as long is better", f"{cell}-3x-90", f"{cell}-90", trained)
    for control in ("random-mask", "random-reinit"):
        compare("trained: a ticket better than its control", "lth-90", f"lth-{control}-90", trained)
    for method in sorted(once):
        if method not in CONTROLS:
            compare("at once: better than a random mask", method, "random", at_once)
    for method in SECOND_ORDER:
        compare("at once: second order better than magnitude", method, "magnitude", at_once)
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"**Trained** (mean ± standard deviation over seeds, their number)\n\n{trained()}\n")
    print(f"**At once**, top-1 in percent\n\n{at_once()}\n")
    print(f"**What was to be expected**\n\n{sanity()}")
