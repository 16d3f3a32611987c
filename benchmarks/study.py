#!/usr/bin/env python3
"""What a study of ten thousand runs costs beyond the runs: planning it, going on with it when all is done, reading it.

    python benchmarks/study.py --runs 10000

Networks and images are toys, the results are made up. Printed are seconds and the peak of memory after each part; the
report itself is timed by benchmarks/report.py.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from budwood.core.result import Layer, Result
from budwood.core.spec import RunSpec
from budwood.report.study import cells
from budwood.study.drive import Machine, run_study
from budwood.study.file import StudyFile, read
from budwood.study.grid import expand
from budwood.study.run import mark
from budwood.study.store import Store

NETWORKS = """
import torch
from torch import nn

def net(num_classes=3, width=4):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
    module.preprocessing = {"size": 16, "resize": 16}
    return module
"""
TASKS, SPARSITIES, METHODS = 10, (0.5, 0.6, 0.7, 0.8), ("magnitude", "random")


def written(folder: Path, runs: int) -> StudyFile:
    """A study of about that many runs: one network, dense and pruned in eight ways, on ten tasks."""
    (folder / "toys.py").write_text(NETWORKS)
    sys.path.insert(0, str(folder))
    for task in range(TASKS):
        for label in "abc":
            place = folder / f"task{task}" / label
            place.mkdir(parents=True)
            for n in range(4):
                Image.new("RGB", (16, 16), (task, ord(label), n)).save(place / f"{n}.png")
    networks = 1 + len(SPARSITIES) * len(METHODS)
    study = {
        "name": "many",
        "out": "runs",
        "models": ["py:toys.net"],
        "methods": list(METHODS),
        "sparsities": list(SPARSITIES),
        "tasks": [f"task{k}" for k in range(TASKS)],
        "transfers": {"full": {"seeds": round(runs / TASKS / networks)}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return read(folder / "study.yaml")


def made_up(spec: RunSpec) -> Result:
    layer = Layer(name="layer", shape=(64, 64, 3, 3), kept=9, total=36864, flops_dense=1, flops=1)
    return Result(
        run_id=spec.run_id, spec=spec, status="done", metrics={"test_top1": 0.5, "test_loss": 1.0, "test_ece": 0.1},
        per_class=[0.5] * 100, layers=[layer] * 54, mask_digest=spec.parent, sparsity=spec.sparsity,
        task={"name": spec.task, "classes": [f"class {k}" for k in range(100)]}, environment={"cpu": "a processor"},
    )  # fmt: skip


def timed(what: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    answer = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {time.perf_counter() - start:.1f} s, peak memory {peak:.0f} MB", flush=True)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = written(Path(folder), arguments.runs)
        timed("before (imports)", lambda: None)
        grid = timed("plan", lambda: expand(study))
        print(f"{len(grid.specs)} runs")
        mark(study.out)
        store = Store(study.out)
        timed("keep all results", lambda: store.record(made_up(spec) for spec in grid.specs))
        timed("go on, with all done", lambda: run_study(study, lambda jobs, context: iter(()), Machine()))
        results = timed("read all results", store.results)
        timed("draw up the cells", lambda: cells.table(results, {}))


if __name__ == "__main__":
    main()
