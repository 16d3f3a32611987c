"""Pruning at once, without training: tf_efficientnet_lite0 from its ImageNet weights, on one photograph of each class.

    python docs/results/methods/at_once.py IMAGENET_SAMPLE_IMAGES [--minutes 60]

The folder holds one photograph of each of the 1,000 classes, named by WordNet id. Every second one calibrates, without
its label; the others are what accuracy is measured on. Rows are added to at_once.csv beside this file.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from budwood.core.registry import methods
from budwood.models.network import open_network
from budwood.tasks.images import transforms
from budwood.tasks.plain import Labelled
from budwood.tasks.samples import Samples
from budwood.train.evaluate import evaluate

HERE = Path(__file__).parent
ROWS = HERE / "at_once.csv"
FIELDS = ("method", "sparsity", "seed", "density", "top1", "seconds", "peak_mb", "command")
METHODS = (
    "magnitude", "random", "wanda", "sparsegpt", "exact-obs", "woodfisher", "mfac", "obert", "cap", "snip", "grasp",
    "synflow",
)  # fmt: skip
FISHER = ("woodfisher", "mfac", "obert", "cap")
FISHER_SETTINGS = ("gradients=400", "batch=1", "recomputations=1")
"""What those of a Fisher matrix are given here: the gradients of 400 single photographs, once. Their defaults, made for
a training set, would go through these 500 photographs 16 to 130 times. The dampening is the default times the default's
batch: the Fisher matrix of single images is about so many times that of their mini-batches."""
APART = (
    "obert dampening=1e-7", "obert dampening=8e-7", "obert dampening=1e-5", "obert dampening=1e-4",
    "obert dampening=1e-3", "obert dampening=8e-7 update_scale=0", "obert update_scale=0", "cap dampening=1e-7",
    "cap dampening=1e-3", "mfac dampening=1e-5", "mfac dampening=1e-3", "woodfisher dampening=1e-5",
    "woodfisher block=128 dampening=1e-5 update_scale=0", "obert recomputations=8",
)  # fmt: skip
"""What decides how the methods of small Fisher blocks come out: the dampening, the moves of the weights that stay, or
the single pass."""
BEST = ("magnitude", "sparsegpt", "exact-obs")
"""At 80 and 90 % too, to see how far pruning at once reaches."""
MODEL = "packaged:tf_efficientnet_lite0"


def cells() -> Iterator[tuple[str, float, int]]:
    yield "dense", 0.0, 0
    for sparsity, seed in ((0.6, 0), (0.7, 0), (0.6, 1)):
        for method in (*METHODS, *APART) if (sparsity, seed) == (0.6, 0) else METHODS:
            if seed == 0 or method != "magnitude":
                yield method, sparsity, seed
        if (sparsity, seed) == (0.7, 0):
            yield from ((method, further, 0) for further in (0.8, 0.9) for method in BEST)


def done() -> set[tuple[str, float, int]]:
    if not ROWS.exists():
        return set()
    with ROWS.open() as file:
        return {(row["method"], float(row["sparsity"]), int(row["seed"])) for row in csv.DictReader(file)}


def prune(method: str, sparsity: float, seed: int, calibration: str, out: str) -> dict[str, object]:
    """Run the command; its checkpoint, and what it took. The dense network is taken as it is."""
    if method == "dense":
        return {"checkpoint": MODEL, "seconds": 0, "peak_mb": 0, "command": ""}
    name, *settings = method.split()
    if name in FISHER:
        default = methods.get(name).Options()
        dampening = f"dampening={default.dampening * default.batch:g}"
        settings = [*FISHER_SETTINGS, dampening, *settings]  # the last one of a name counts
    words = [
        "prune", MODEL, "--method", name, "--sparsity", f"{sparsity:g}", "--seed", str(seed),
        "--option", "allocation=uniform",
        *(word for setting in settings for word in ("--option", setting)),
        "--calibration", calibration,
    ]  # fmt: skip
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "budwood", *words, "--out", out], stdout=subprocess.PIPE, text=True)
    answer = child.stdout.read() if child.stdout else ""
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{method} at {sparsity:g}: exit code {child.returncode}")
    return {
        "checkpoint": answer.strip(),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mb": used.ru_maxrss // 1024,
        "command": " ".join(["budwood", *words[:-1], "CALIBRATION"]),
    }


def top1(checkpoint: str, photos: Labelled) -> tuple[float, float]:
    """Density of the backbone and the classifier, and accuracy on every second photograph."""
    network = open_network(checkpoint)
    view = transforms(network.lineage.preprocessing, train=False)
    network.module.to(memory_format=torch.channels_last)
    found = evaluate(network.module, Samples(photos.samples[1::2], view), workers=1)
    return network.mask.density, found["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    deadline = time.time() + 60 * arguments.minutes
    photos = Labelled(arguments.photos)
    if len(photos.samples) != 1000:
        raise SystemExit(f"{arguments.photos} holds {len(photos.samples)} photographs, not 1,000")
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder, "calibration")
        calibration.mkdir()
        for path, _ in photos.samples[::2]:
            (calibration / path.name).symlink_to(path.resolve())
        for method, sparsity, seed in cells():
            if (method, sparsity, seed) in done() or arguments.only not in method or time.time() > deadline:
                continue
            row = prune(method, sparsity, seed, str(calibration), f"{folder}/runs")
            density, accuracy = top1(str(row.pop("checkpoint")), photos)
            facts = {"method": method, "sparsity": sparsity, "seed": seed}
            facts |= {"density": f"{density:.6f}", "top1": f"{accuracy:.6f}"}
            new = not ROWS.exists()
            with ROWS.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if new:
                    writer.writeheader()
                writer.writerow(facts | row)
            print(f"{method} {sparsity:g} seed {seed}: {100 * accuracy:.1f} %, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
