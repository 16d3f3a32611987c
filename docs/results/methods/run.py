"""The runs behind docs/results/methods.md, in slices that can be stopped and gone on with.

    python docs/results/methods/run.py TINYIMAGENET100 --minutes 150
    python docs/results/methods/right.py TINYIMAGENET100
    python docs/results/methods/tables.py

TINYIMAGENET100 is a folder with train/ and val/ of one folder a class. Every finished run is a line in rows.csv beside
this file, written at once; a run that is listed is not done again. What is unfinished when the time is up stays in
`--out` and goes on from there. Two runs are made at a time, each on one thread.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROWS, CHECKPOINTS = HERE / "rows.csv", HERE / "checkpoints"
FIELDS = (
    "cell", "method", "start", "sparsity", "seed", "epochs", "density", "val_top1", "test_top1", "cpu_seconds",
    "peak_mb", "run_id", "mask_digest", "command",
)  # fmt: skip

SCRATCH = ("--batch-size", "128", "--lr", "0.2", "--warmup-epochs", "1", "--weight-decay", "5e-4")
"""The small network from new weights. Nothing was tuned for a method."""
ON = ("--batch-size", "128", "--lr", "0.02", "--weight-decay", "5e-4")
"""From the dense network that was so trained."""
EPOCHS = 30


@dataclass(frozen=True)
class Cell:
    """One run: `name` without the seed, and the method's options."""

    name: str
    method: str
    start: str
    sparsity: float
    seed: int
    epochs: int
    options: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.name}-s{self.seed}"

    @property
    def dense(self) -> Path:
        """The dense network of the same seed, which those begin with that do not begin with new weights."""
        return CHECKPOINTS / f"dense-s{self.seed}.safetensors"

    def command(self, data: str) -> list[str]:
        model = (
            ["small:resnet10", "--from-scratch"]
            if self.start == "scratch"
            else [str(self.dense.relative_to(HERE.parents[2]))]
        )
        sparsity = ["--sparsity", f"{self.sparsity:g}"] if self.sparsity else []
        return [
            "prune", *model, "--method", self.method, *sparsity, "--data", data, "--seed", str(self.seed), "--epochs",
            str(self.epochs), *(SCRATCH if self.start == "scratch" else ON),
            *(word for option in self.options for word in ("--option", option)),
        ]  # fmt: skip


def cells() -> Iterator[Cell]:
    """What is run, the most wanted first."""
    for seed in (0, 1):
        yield Cell("dense", "dense", "scratch", 0, seed, EPOCHS)
        for sparsity in (0.9, 0.8, 0.95):
            yield from _study(sparsity, seed)
        # Of the others one seed, but for the controls that all are held against.
        yield from (cell for cell in _others(seed) if seed == 0 or cell.method == "random")


def _study(sparsity: float, seed: int) -> Iterator[Cell]:
    """The six methods of the study."""
    percent = f"{100 * sparsity:g}"
    for method in ("acdc", "rigl", "str"):
        yield Cell(f"{method}-{percent}", method, "scratch", sparsity, seed, EPOCHS)
    for method in ("gmp", "woodfisher"):
        yield Cell(f"{method}-{percent}", method, "dense", sparsity, seed, EPOCHS)
    trainings = {0.8: 7, 0.9: 10, 0.95: 13}[sparsity]  # one less than rounds: the first prunes what it is given
    yield Cell(
        f"lth-t-{percent}", "lth-t", "dense", sparsity, seed, trainings * -(-EPOCHS // trainings), ("trained=true",)
    )


def _others(seed: int) -> Iterator[Cell]:
    """All other methods at 90 %, each with what its family has; and the random mask at 95 %, too."""
    # Top-KAST has the same share of each layer, the random mask ERK's: each with the other's, too.
    yield Cell("random-uniform-90", "random", "scratch", 0.9, seed, EPOCHS, ("allocation=uniform", "keep_dense=[]"))
    yield Cell("topkast-erk-90", "topkast", "scratch", 0.9, seed, EPOCHS, ("allocation=erk",))
    for method in ("random", "st3", "set", "snfs", "topkast", "cram", "l1", "snip", "grasp", "synflow"):
        options = {"random": ("allocation=erk",), "topkast": ("keep_dense=[]",)}.get(method, ())
        yield Cell(f"{method}-90", method, "scratch", 0.9, seed, EPOCHS, options)
    # Where few weights are left, which they are should matter more.
    yield Cell("random-95", "random", "scratch", 0.95, seed, EPOCHS, ("allocation=erk",))
    recipe = ("allocation=uniform", "keep_dense=[]", "schedule.start=0.2", "schedule.end=0.79")
    yield Cell("gmp-scratch-90", "gmp", "scratch", 0.9, seed, EPOCHS, recipe)
    yield Cell("snfs-redistributed-90", "snfs", "scratch", 0.9, seed, EPOCHS, ("redistribute=true",))
    rounds = "share=0.6838"  # two of them: three trainings of ten epochs
    yield Cell("lth-90", "lth", "scratch", 0.9, seed, EPOCHS, (rounds,))
    for control in ("random-mask", "random-reinit"):
        yield Cell(f"lth-{control}-90", "lth", "scratch", 0.9, seed, EPOCHS, (rounds, f"control={control}"))
    # What the epochs alone do for a network that has been trained.
    yield Cell("dense-on", "dense", "dense", 0, seed, EPOCHS)
    # When WoodFisher prunes.
    early = ("start=0.01", "end=0.4", "updates=40", "initial=0.05", "every=5")
    yield Cell("gmp-early-90", "gmp", "dense", 0.9, seed, EPOCHS, tuple(f"schedule.{option}" for option in early))
    # Those that do not share out the sparsity themselves have ERK's shares, like the random mask.
    for method in ("random", "magnitude", "mfac", "obert", "cap", "exact-obs", "sparsegpt", "wanda"):
        layerwise = method in ("random", "exact-obs", "sparsegpt", "wanda")
        options = ("allocation=erk",) if layerwise else ()
        yield Cell(f"{method}-on-90", method, "dense", 0.9, seed, EPOCHS, options)
    # Longer, as RigL's paper asks for; AC/DC beside it.
    for method in ("rigl", "acdc"):
        yield Cell(f"{method}-3x-90", method, "scratch", 0.9, seed, 3 * EPOCHS)


def done() -> dict[str, dict[str, str]]:
    if not ROWS.exists():
        return {}
    with ROWS.open() as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def record(row: dict[str, object]) -> None:
    """Append a line, and put it on the disk."""
    new = not ROWS.exists()
    with ROWS.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def make(cell: Cell, data: str, out: Path, deadline: float) -> str:
    """Do one run to its end, or to the deadline. Says in a word how it went."""
    command = cell.command(data)
    log, spent = out / f"{cell.key}.log", out / f"{cell.key}.cpu"
    out.mkdir(parents=True, exist_ok=True)
    with log.open("a") as errors, (out / f"{cell.key}.json").open("w") as answer:
        child = subprocess.Popen(
            [sys.executable, "-m", "budwood", *command, "--out", str(out / "runs"), "--json"],
            stdout=answer, stderr=errors, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        found, status, used = os.wait4(child.pid, os.WNOHANG)
        while not found and time.time() < deadline:
            time.sleep(0.5)
            found, status, used = os.wait4(child.pid, os.WNOHANG)
        if not found:
            os.killpg(child.pid, signal.SIGINT)
            _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)  # for Popen, which has not waited itself
    seconds, peak = (float(word) for word in spent.read_text().split()) if spent.exists() else (0.0, 0.0)
    seconds, peak = seconds + used.ru_utime + used.ru_stime, max(peak, used.ru_maxrss / 1024)
    spent.write_text(f"{seconds} {peak}")
    if child.returncode == 130:
        return "stopped"
    if child.returncode:
        return f"failed ({child.returncode}), see {log}"
    write_row(cell, out, seconds, peak)
    return "done"


def write_row(cell: Cell, out: Path, seconds: float, peak: float) -> None:
    result = json.loads((out / f"{cell.key}.json").read_text())
    checkpoint = out / "runs" / result["run_id"] / "checkpoint.safetensors"
    if cell.name == "dense" or (cell.seed == 0 and cell.sparsity):
        CHECKPOINTS.mkdir(exist_ok=True)
        shutil.copyfile(checkpoint, CHECKPOINTS / f"{cell.key}.safetensors")
    if cell.key in done():  # its checkpoint alone was lost
        return
    record(
        {
            "cell": cell.key,
            "method": cell.method,
            "start": cell.start,
            "sparsity": cell.sparsity,
            "seed": cell.seed,
            "epochs": cell.epochs,
            "density": f"{1 - result['measured_sparsity']:.6f}",
            "val_top1": f"{result['val_top1']:.6f}",
            "test_top1": f"{result['test_top1']:.6f}",
            "cpu_seconds": round(seconds),
            "peak_mb": round(peak),
            "run_id": result["run_id"],
            "mask_digest": result["mask_digest"],
            "command": " ".join(["budwood", *cell.command("TINYIMAGENET100")]),
        }
    )


def train(data: str, out: Path, minutes: float, only: str) -> None:
    """Two runs at a time until all are done or the time is up."""
    deadline = time.time() + 60 * minutes
    missing = [cell for cell in cells() if cell.key not in done() or (cell.name == "dense" and not cell.dense.exists())]
    wanted = [cell for cell in missing if only in cell.key]
    needed = {cell.dense.stem for cell in wanted if cell.start == "dense"}
    waiting = [cell for cell in missing if cell in wanted or cell.key in needed]

    failed = set()

    def one(cell: Cell) -> None:
        while cell.start == "dense" and not cell.dense.exists() and time.time() < deadline:
            if cell.dense.stem in failed:
                return
            time.sleep(1)
        if time.time() > deadline - 60:
            return
        start = time.time()
        ended = make(cell, data, out, deadline)
        if ended.startswith("failed"):
            failed.add(cell.key)
        print(f"{cell.key}: {ended}, {time.time() - start:.0f} s", flush=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, waiting))
    print(f"{len(done())} of {len(list(cells()))} runs are in {ROWS}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="folder of tinyimagenet100")
    parser.add_argument("--minutes", type=float, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", default="", help="runs whose name holds this")
    arguments = parser.parse_args()
    # A shell that starts this in the background has it ignore what its runs are stopped by, and they would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(HERE.parents[2])
    train(arguments.data, arguments.out.resolve(), arguments.minutes, arguments.only)


if __name__ == "__main__":
    main()
