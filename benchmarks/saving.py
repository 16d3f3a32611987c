#!/usr/bin/env python3
"""What making, saving and reading a program takes: ResNet-50 with 90 % zeros in all convolutions but the stem.

    OMP_NUM_THREADS=2 python benchmarks/saving.py

Seconds are the least and the median of `--rounds`; a plan is made at the first call with so many images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import named

import budwood
from budwood.bench.zeros import with_random_zeros


def timed(rounds: int, work: Callable[[], Any]) -> str:
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return f"{min(seconds):.2f} ({statistics.median(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    module = with_random_zeros(named(options.model).module.eval(), options.sparsity)
    with tempfile.TemporaryDirectory() as folder:
        onnx, saved = str(Path(folder, "network.onnx")), Path(folder, "network.budwood")
        torch.onnx.export(module, (torch.randn(1, 3, 224, 224),), onnx, dynamo=False, opset_version=17)
        print("| what | |\n|---|---|")
        took = timed(options.rounds, lambda: budwood.compile(module, image_size=224))
        print(f"| compile, from a module, s | {took} |")
        print(f"| compile, from ONNX, s | {timed(options.rounds, lambda: budwood.compile(onnx))} |")
        size = budwood.compile(onnx).save(saved)
        print(f"| saved, MB | {size / 1e6:.1f} |")
        print(f"| read, s | {timed(options.rounds, lambda: budwood.load_program(saved))} |")
        for images in (1, 16):
            took = timed(options.rounds, lambda images=images: budwood.load_program(saved).plan(images))  # type: ignore[misc]
            print(f"| read, and the plan for {images} images, s | {took} |", flush=True)


if __name__ == "__main__":
    main()
