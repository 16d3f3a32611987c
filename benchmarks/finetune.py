#!/usr/bin/env python3
"""A whole full finetuning through the engine and through PyTorch, against the clock.

    python benchmarks/finetune.py FOLDER --model sparse80.safetensors --epochs 4 --seeds 0 1 2 --csv finetune.csv

FOLDER holds labelled photographs as `budwood transfer` takes them; the model is a pruned checkpoint, or a network as it
is initialised with random zeros, `torchvision:resnet50@0.9`. Each seed is finetuned by `budwood transfer --mode full`,
the whole command with decoding and evaluation, once with `--accelerate auto` and once with `off`, one after the other.
Both hold the checkpoint's mask: `budwood verify --against` it looks at what they made. Printed are accuracy and seconds
of each, and how many times as fast the engine was for the same seed. Threads are PyTorch's: set OMP_NUM_THREADS.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from networks import named
from rounds import spread

from budwood import Mask
from budwood.bench.environment import environment
from budwood.bench.zeros import with_random_zeros
from budwood.core.result import Result
from budwood.models.network import prunable

WAYS = {"pytorch": "off", "engine": "auto"}


def budwood(*arguments: str) -> str:
    """What the command answers. It talks to the terminal itself of what it does, and of what goes wrong."""
    run = subprocess.run([sys.executable, "-m", "budwood", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        sys.exit(run.returncode)
    return run.stdout


def opened(name: str, folder: Path) -> Path:
    """The checkpoint that is finetuned."""
    network, _, sparsity = name.partition("@")
    if not sparsity:
        return Path(name)
    torch.manual_seed(0)
    made = named(network)
    module = with_random_zeros(made.module, float(sparsity))
    zeros = {n: p for n, p in prunable(module).items() if bool((p == 0).any())}
    path = folder / f"{network.partition(':')[2]}.safetensors"
    replace(made, module=module, mask=Mask.from_zeros(zeros)).checkpoint().save(path)
    return path


def finetuned(options: argparse.Namespace, model: Path, seed: int, way: str, out: Path) -> dict[str, Any]:
    start = time.perf_counter()
    answer = budwood(
        "transfer", options.folder, "--model", str(model), "--mode", "full", "--seeds", str(seed),
        "--epochs", str(options.epochs), "--batch-size", str(options.batch_size), "--accelerate", WAYS[way],
        "--no-dense", "--no-measure-latency", "--json", "--out", str(out),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    (result,) = json.loads(answer)
    budwood("verify", str(out / result["run_id"]), "--against", str(model))
    notes = Result.load(out / result["run_id"] / "result.json").notes
    print(f"  seed {seed} {way:<8} {seconds:7.1f} s   test {result['test_top1']:.4f}   {'; '.join(notes)}", flush=True)
    name = options.model if "@" in options.model else Path(options.model).stem
    facts = {"model": name, "task": Path(options.folder).name, "epochs": options.epochs}
    return facts | {
        "seed": seed,
        "way": way,
        "seconds": f"{seconds:.1f}",
        "sparsity": f"{result['measured_sparsity']:.4f}",
        "val_top1": f"{result['val_top1']:.4f}",
        "test_top1": f"{result['test_top1']:.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    print("; ".join(f"{name}: {value}" for name, value in environment().items()))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as out:
        model = opened(options.model, Path(out))
        for seed in options.seeds:
            for way in WAYS:
                rows.append(finetuned(options, model, seed, way, Path(out) / way))
                if options.csv is not None:
                    with options.csv.open("a", newline="") as file:
                        writer = csv.DictWriter(file, rows[-1])
                        if file.tell() == 0:
                            writer.writeheader()
                        writer.writerow(rows[-1])
    by_way = {way: [row for row in rows if row["way"] == way] for way in WAYS}
    for way, found in by_way.items():
        print(f"  {way:<8} test {spread([float(row['test_top1']) for row in found], 4)}")
    ratios = [float(p["seconds"]) / float(e["seconds"]) for p, e in zip(*by_way.values(), strict=True)]
    print(f"  engine   {spread(ratios, 2)} times as fast")


if __name__ == "__main__":
    main()
