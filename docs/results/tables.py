"""The tables of transfer.md out of the rows beside it: python docs/results/tables.py"""

import csv
import statistics
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
METRIC = "test_top1"


def rows() -> list[dict[str, str]]:
    return [row for path in sorted((HERE / "rows").glob("*.csv")) for row in csv.DictReader(path.open())]


def table(mode: str) -> str:
    """Mean and standard deviation over seeds of the test accuracy in percent, per task and sparsity."""
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows():
        if row.get("transfer") == mode and row["status"] == "done":
            found[row["task"], float(row["sparsity"])].append(100 * float(row[METRIC]))
    tasks = sorted({task for task, _ in found})
    levels = sorted({level for _, level in found})
    lines = ["| sparsity | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for level in levels:
        cells = [_cell(found[task, level]) for task in tasks]
        lines.append(f"| {f'{level:.0%}' if level else 'dense'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


if __name__ == "__main__":
    for mode, title in (("linear", "Linear head"), ("full", "Full finetuning")):
        print(f"**{title}**, test top-1 in percent, mean ± standard deviation (seeds)\n\n{table(mode)}\n")
