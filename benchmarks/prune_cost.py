#!/usr/bin/env python3
"""What pruning a network at once takes: time, memory and disk of `budwood prune`, the whole command.

    python benchmarks/prune_cost.py --model torchvision:resnet50 --sparsity 0.6 --method wanda sparsegpt exact-obs

Behind the words of `budwood recipe show METHOD` on its cost. The network is as it is initialised and the photos are of
noise, which changes nothing of the time; batch norm statistics are made anew and the checkpoint is written, as always.
--option KEY=VALUE goes to every method. Threads are PyTorch's: set OMP_NUM_THREADS.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from networks import named
from PIL import Image

from budwood.bench.environment import environment


def photos(folder: Path, count: int, size: int) -> None:
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{number:04}.jpg")


def disk(folder: Path) -> int:
    """Bytes that the files in it take; those that go while we look do not count."""
    found = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                found += Path(where, name).stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return found


def cost(words: list[str], out: Path) -> tuple[float, float, float, float]:
    """Seconds, seconds of all cores, peak GB of memory, and of the disk under `out`, of a `budwood` command."""
    start, most = time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, "-m", "budwood", *words, "--out", str(out)], stdout=subprocess.DEVNULL)
    found, status, used = os.wait4(child.pid, os.WNOHANG)
    while not found:
        time.sleep(0.5)
        most = max(most, disk(out))
        found, status, used = os.wait4(child.pid, os.WNOHANG)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(child.returncode)
    seconds = time.perf_counter() - start
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9, most / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--sparsity", default="0.6")
    parser.add_argument("--method", nargs="+", default=["magnitude", "wanda", "sparsegpt"])
    parser.add_argument("--option", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="of the photos; the network takes its own")
    arguments = parser.parse_args()
    print(environment())
    print("| method | seconds | CPU seconds | peak memory, GB | disk, GB |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        calibration, model = Path(folder, "photos"), Path(folder, "network.safetensors")
        photos(calibration, arguments.images, arguments.size)
        torch.manual_seed(0)
        named(arguments.model).checkpoint().save(model)
        for method in arguments.method:
            words = [
                "prune", str(model), "--method", method, "--sparsity", arguments.sparsity,
                "--calibration", str(calibration), *(x for option in arguments.option for x in ("--option", option)),
            ]  # fmt: skip
            seconds, spent, memory, room = cost(words, Path(folder, method))
            print(f"| {method} | {seconds:.0f} | {spent:.0f} | {memory:.1f} | {room:.1f} |", flush=True)


if __name__ == "__main__":
    main()
