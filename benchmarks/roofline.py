#!/usr/bin/env python3
"""The roofline of every layer of ResNet-50 in the engine: how fast it runs, and how fast this machine would let it.

    python benchmarks/roofline.py                            # docs/images/roofline.png

Up stands GFLOP/s of non-zero weights, to the right the arithmetic intensity: FLOPs of non-zero weights over the bytes
of input, residual, output and weights, each touched once for a whole batch (6 bytes a non-zero in a sparse layer, 4 a
weight in a dense one). A layer's time holds what lays out its input: its halo, its phases, its share of the stem.

The ceilings are measured on as many threads: multiply-adds from registers, multiply-adds with one factor from the
first-level cache, copies of an array that fits the second-level cache and of one that fits no cache. Random weights and
random zeros: what they are changes no time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
COLOURS = ("#7f7f7f", "#1f77b4", "#2ca02c", "#ff7f0e", "#d62728", "#9467bd")


@dataclass(frozen=True)
class Layer:
    """FLOPs of non-zeros, bytes touched and ms, of a whole batch; `side` is that of the window."""

    name: str
    kind: str
    side: int
    flops: float
    bytes: float
    ms: float

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes

    @property
    def rate(self) -> float:
        return self.flops / self.ms / 1e6


# -- the machine ----------------------------------------------------------------------------------------------


def best(work: Callable[[], Any], seconds: float = 0.5) -> float:
    """Seconds of the fastest of the runs that fit into so many seconds."""
    work()
    found, end = [], time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found)


def copy_rate(megabytes: float, times: int) -> float:
    """GB/s, read and written bytes together, of copying an array of so many megabytes."""
    import torch

    count = int(megabytes * 1e6 / 4)
    a, b = torch.randn(count), torch.empty(count)

    def work() -> None:
        for _ in range(times):
            b.copy_(a)

    return 2 * count * 4 * times / best(work) / 1e9


# -- the layers -----------------------------------------------------------------------------------------------


def measure(sparsity: float, batch: int, threads: int, repeats: int) -> tuple[list[Layer], float]:
    """The layers with weights, and ms an image of the whole; of several profiles each layer's fastest."""
    import torch
    import torchvision

    import budwood
    from budwood.bench.zeros import with_random_zeros

    torch.manual_seed(0)
    network = with_random_zeros(torchvision.models.resnet50(weights=None).eval(), sparsity)
    program = budwood.compile(network, image_size=224, threads=threads)
    profiles = [program.profile(batch=batch, rounds=5) for _ in range(repeats)]
    fastest = [min(p.rows[k].ms for p in profiles) for k in range(len(profiles[0].rows))]
    graph = program.graph
    users = graph.users()
    ms: dict[str, float] = defaultdict(float)
    kind: dict[str, str] = {}
    for row, took in zip(profiles[0].rows, fastest, strict=True):
        owner = row.name
        if row.op == "halo":  # of whoever reads the value beyond a pixel's place
            owner = next(u.name for u in users[row.name] if u.weight.shape[2:] != (1, 1))
        if row.flops or row.op in ("operand", "halo"):
            ms[owner] += took
        if row.flops:
            kind[row.name] = row.kernel
    layers = []
    for node in graph:
        if node.name not in kind:
            continue
        weight = node.weight  # type: ignore[attr-defined]
        left = int(np.count_nonzero(weight))
        shape = graph.shapes[node.name]
        pixels = int(np.prod(shape[1:]))
        floats = sum(int(np.prod(graph.shapes[name])) for name in node.inputs) + int(np.prod(shape))
        weights = 6 * left if kind[node.name].startswith("sparse") else 4 * weight.size
        layers.append(
            Layer(
                node.source or node.name,
                kind[node.name],
                weight.shape[-1] if weight.ndim == 4 else 1,
                2.0 * left * pixels * batch,
                4.0 * floats * batch + weights,
                ms[node.name] * batch,
            )
        )
    return layers, min(p.ms for p in profiles)


def stage(name: str) -> str:
    return next((s for s in STAGES if name.startswith(s)), "stem")


# -- the picture ----------------------------------------------------------------------------------------------


def draw(layers: list[Layer], ceilings: dict[str, float], title: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    low, high = 2.0 ** np.floor(np.log2(min(v.intensity for v in layers) / 1.3)), 2.0**7
    x = np.geomspace(low, high, 200)
    top = ceilings["registers"]
    lines = []
    for key, style, what in (("registers", "-", "multiply-adds"), ("read", "-.", "multiply-adds, a factor from L1")):
        label = f"{what}, {ceilings[key]:.0f} GFLOP/s"
        lines.append(axes.axhline(ceilings[key], color="#444444", lw=1.3, ls=style, label=label))
    for key, style, what in (("cache", "--", "copies within L2"), ("memory", ":", "copies in memory")):
        label = f"{what}, {ceilings[key]:.0f} GB/s"
        lines += axes.plot(x, np.minimum(x * ceilings[key], top), style, color="#444444", lw=1.2, label=label)
    marks = {"1 x 1": "o", "3 x 3, 7 x 7": "s"}
    for name, colour in zip(STAGES, COLOURS, strict=True):
        mine = [v for v in layers if stage(v.name) == name]
        for shape, mark in marks.items():
            some = [v for v in mine if (v.side > 1) == (shape != "1 x 1")]
            axes.scatter([v.intensity for v in some], [v.rate for v in some], c=colour, marker=mark, s=34, alpha=0.85,
                         edgecolors="white", linewidths=0.5, zorder=3)  # fmt: skip
        axes.scatter([], [], c=colour, label={"stem": "stem, dense", "fc": "classifier, dense"}.get(name, name))
    for shape, mark in marks.items():
        axes.scatter([], [], c="black", marker=mark, label=shape)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xlim(low, high)
    axes.set_ylim(min(v.rate for v in layers) / 1.6, top * 1.8)
    axes.set_xlabel("FLOPs of non-zero weights for each byte of input, residual, output and weights")
    axes.set_ylabel("GFLOP/s of non-zero weights")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", lw=0.4, alpha=0.5)
    handles = [handle for handle in axes.get_legend_handles_labels()[0] if handle not in lines]
    axes.add_artist(axes.legend(handles=handles, fontsize=8, loc="lower right", ncol=2))
    axes.legend(handles=lines, fontsize=8, loc="upper left", ncol=2)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=4, choices=(1, 4, 16))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="profiles of five rounds each")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/images/roofline.png")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from budwood.engine.native import peak

    torch.set_num_threads(options.threads)
    layers, whole = measure(options.sparsity, options.batch, options.threads, options.repeats)
    ceilings = {
        "registers": peak(options.threads),
        "read": peak(options.threads, read=True),
        "cache": copy_rate(0.6 * options.threads, 50),
        "memory": copy_rate(256, 1),
    }
    print(", ".join(f"{key} {value:.1f}" for key, value in ceilings.items()), file=sys.stderr)
    print("layer,kernel,flops_per_byte,gflops,ms_an_image")
    for v in layers:
        print(f"{v.name},{v.kind},{v.intensity:.2f},{v.rate:.1f},{v.ms / options.batch:.4f}")
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    title = f"ResNet-50, {options.sparsity:.0%} zeros, batch {options.batch}, {threads}: {whole:.1f} ms an image"
    draw(layers, ceilings, title, options.out)


if __name__ == "__main__":
    main()
