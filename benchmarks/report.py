#!/usr/bin/env python3
"""The study's report over many results: how long it is built, how much memory that takes, how fast a browser opens it.

    python benchmarks/report.py --results 10000 --out report.html --chromium chromium

The results are made up, the specs, classes and sizes are those of a real study: twelve tasks, linear transfer with
five seeds and full with three, several architectures, five methods at four sparsities. Printed are seconds and MB.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

from budwood.core.result import Layer, Result
from budwood.core.spec import Recipe, RunSpec
from budwood.report.study import cells, page

TASKS = {
    "aircraft": (100, 3333, 0.60), "birds": (500, 8171, 0.57), "caltech101": (101, 5647, 0.91),
    "caltech256": (257, 15187, 0.84), "cars": (196, 8041, 0.55), "cifar10": (10, 10000, 0.92),
    "cifar100": (100, 10000, 0.75), "dtd": (47, 1880, 0.73), "flowers102": (102, 6149, 0.92),
    "food101": (101, 25250, 0.73), "pets": (37, 3669, 0.92), "sun397": (397, 19850, 0.60),
}  # fmt: skip
"""Name -> classes, test images, accuracy of the dense network."""

METHODS = {"acdc": -0.2, "gmp": 0.3, "rigl": 0.5, "str": 0.4, "woodfisher": 0.1}
"""Method -> how much more of the error it adds at high sparsity."""

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
WAYS = {"linear": 5, "full": 3}
"""Way of transfer -> seeds."""


def results(models: int = 5, tasks: int = 12, per_class: bool = True) -> Iterator[Result]:
    """Runs of a study, network by network; equal from one call to the next."""
    rng = random.Random(0)
    pruned = [(method, sparsity) for method, sparsity in product(METHODS, SPARSITIES)]
    for number in range(models):
        model = f"torchvision:resnet{number}"
        for method, sparsity in [("dense", 0.0), *pruned]:
            layers = _layers(sparsity)
            for task, (way, seeds) in product(list(TASKS)[:tasks], WAYS.items()):
                for seed in range(seeds):
                    yield _result(rng, model, method, sparsity, task, way, seed, layers, per_class)


def _result(
    rng: random.Random, model: str, method: str, sparsity: float, task: str, way: str, seed: int,
    layers: list[Layer], per_class: bool,
) -> Result:  # fmt: skip
    classes, images, accuracy = TASKS[task]
    harm = METHODS.get(method, 0) * sparsity + (max(0.0, sparsity - 0.85) * 2 if way == "full" else 0)
    accuracy = 1 - (1 - accuracy) * (1 + harm) * (0.7 if way == "full" else 1) + rng.gauss(0, 0.002)
    spec = RunSpec(
        model=model, parent=f"{model} {method} {sparsity}", task=task, data=task, method=method, sparsity=sparsity,
        where="upstream" if sparsity else "none", transfer=way, seed=seed, recipe=Recipe(epochs=150, lr=0.001),
    )  # fmt: skip
    each = [min(1.0, max(0.0, rng.gauss(accuracy, 0.1))) for _ in range(classes)] if per_class else []
    metrics = {"test_top1": accuracy, "test_loss": 2.5 * (1 - accuracy), "test_ece": 0.03 + 0.1 * (1 - accuracy)}
    return Result(
        run_id=spec.run_id, spec=spec, status="done", metrics=metrics, per_class=each, layers=layers,
        sparsity=sparsity, mask_digest="0" * 64, checkpoint_bytes=round(1e8 * (1.02 - sparsity)), dense_bytes=10**8,
        seconds=60, environment={"budwood": "0.1.0", "cpu": "a processor"},
        task={"name": task, "classes": [f"class {i}" for i in range(classes)], "sizes": {"test": images}},
    )  # fmt: skip


def _layers(sparsity: float) -> list[Layer]:
    total, flops, layers = 64 * 64 * 9, 10**8, []
    for i in range(54):
        kept = 1 - sparsity * min(1, i / 10)
        sizes = {"kept": round(total * kept), "total": total, "flops_dense": flops, "flops": round(flops * kept)}
        layers.append(Layer(name=f"layer{i}.conv", shape=(64, 64, 3, 3), **sizes))
    return layers


def opened(path: Path, chromium: str) -> float:
    """Seconds a browser needs to load, lay out and draw the page, beyond what an empty one takes it."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.html"
        empty.write_text("<!DOCTYPE html><title>empty</title>", encoding="utf-8")
        return _drawn(path, chromium, folder) - _drawn(empty, chromium, folder)


def _drawn(path: Path, chromium: str, folder: str) -> float:
    command = [chromium, "--headless", "--disable-gpu", "--window-size=1280,900", f"--screenshot={folder}/page.png"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")
    start = time.perf_counter()
    subprocess.run([*command, path.resolve().as_uri()], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=10000)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--chromium", help="measure how fast this browser opens the page")
    arguments = parser.parse_args()
    per_model = sum(WAYS.values()) * len(TASKS) * (1 + len(METHODS) * len(SPARSITIES))
    found = list(islice(results(-(-arguments.results // per_model)), arguments.results))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    page.write(cells.table(found), arguments.out, f"{len(found)} results")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"results {len(found)}, written in {seconds:.1f} s, peak {peak:.0f} MB ({before:.0f} MB with the results alone)"
    )
    print(f"page {arguments.out.stat().st_size / 1e6:.1f} MB")
    if arguments.chromium:
        times = sorted(opened(arguments.out, arguments.chromium) for _ in range(3))
        print(f"opened in {times[1]:.2f} s (of three: {times[0]:.2f} to {times[2]:.2f})")


if __name__ == "__main__":
    main()
