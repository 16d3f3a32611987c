#!/usr/bin/env python3
"""Whether training through the engine goes as in PyTorch: losses of the same steps from the same start.

    python benchmarks/curves.py FOLDER --csv curves.csv --out curves.svg

FOLDER holds labelled photographs as `budwood transfer` takes them. Two networks are trained on the same batches of 16
at 128 px, by SGD with momentum, at the mask of the 90 % smallest weights: EfficientNet-Lite0 as published, in its 1 x 1
convolutions, and ResNet-18 as it is initialised, in all convolutions but the stem. Each is trained in

    double   PyTorch in double precision, which stands for what would be without rounding
    one      PyTorch on one thread
    two      PyTorch on two threads
    last     PyTorch on two threads, channels-last: other kernels, so other rounding
    engine   budwood.accelerate, two threads

Training multiplies differences: they grow from step to step until they are as large as the noise of the batches, so
late ones tell of the network and its rate, not of who rounded. Printed are the differences from double precision, of
the losses and of the last weights (norm of the difference over the norm), and those of `two` and the engine from
`one`. One run of each is one sample of rounding.
"""

import argparse
import copy
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import named
from rounds import thinned
from torch import Tensor, nn
from torch.nn import functional as F

import budwood
from budwood.bench.environment import environment
from budwood.models.network import Network, replace_head
from budwood.tasks.folder import Folder
from budwood.tasks.images import transforms

BATCH, SPARSITY = 16, 0.9
SIZE = 128
RUNS = {
    "double": "PyTorch, double precision",
    "one": "PyTorch, 1 thread",
    "two": "PyTorch, 2 threads",
    "last": "PyTorch, channels-last",
    "engine": "engine",
}
COLOURS = {"double": "#bbbbbb", "one": "#2ca02c", "two": "#1f77b4", "last": "#9467bd", "engine": "#d62728"}
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trained:
    losses: Sequence[float]
    weights: Tensor


def opened(name: str, task: Folder) -> Network:
    """The pruned network with a head for the task's classes, in training."""
    torch.manual_seed(0)
    packaged = name.startswith("packaged:")
    network = named(name, pretrained=packaged)
    replace_head(network, task.classes, 0)
    convs = [m for m in network.module.modules() if isinstance(m, nn.Conv2d)][1:]
    with torch.no_grad():
        for weight in (c.weight for c in convs if not packaged or c.kernel_size == (1, 1)):
            gone = weight.abs().flatten().argsort()[: round(SPARSITY * weight.numel())]
            weight.view(-1)[gone] = 0
    network.module.train()
    return network


def batches(network: Network, task: Folder, steps: int) -> Batches:
    """The images that each step is shown."""
    shown = network.lineage.preprocessing.model_copy(update={"size": SIZE})
    images = task.load("train", transforms(shown, train=False))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()  # type: ignore[arg-type]
    found = []
    for step in range(steps):
        some = [images[order[(step * BATCH + k) % len(order)]] for k in range(BATCH)]
        found.append((torch.stack([x for x, _ in some]), torch.tensor([y for _, y in some])))
    return found


def trained(model: nn.Module, data: Batches, lr: float, way: str) -> Trained:
    torch.set_num_threads(1 if way == "one" else 2)
    kind: dict[str, Any] = {"dtype": torch.float64 if way == "double" else torch.float32}
    kind |= {"memory_format": torch.channels_last} if way == "last" else {}
    model = copy.deepcopy(model).to(**kind)
    masks = {name: p != 0 for name, p in model.named_parameters() if p.ndim == 4}
    net: nn.Module = budwood.accelerate(model) if way == "engine" else model
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses = []
    for images, target in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images.to(**kind)), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if way != "engine":
            with torch.no_grad():
                for name, mask in masks.items():
                    net.get_parameter(name).mul_(mask)
    state = net.state_dict()
    weights = torch.cat([state[name].double().flatten() for name, _ in net.named_parameters()])
    return Trained(losses, weights)


def apart(run: Trained, other: Trained) -> tuple[float, float, float]:
    """Greatest and mean difference of the losses, and the norm of the weights' difference over their norm."""
    losses = np.abs(np.subtract(run.losses, other.losses))
    return losses.max(), losses.mean(), float((run.weights - other.weights).norm() / other.weights.norm())


def report(name: str, runs: dict[str, Trained]) -> None:
    double = runs["double"]
    print(f"{name}: loss {double.losses[0]:.3f} to {double.losses[-1]:.3f}")
    pairs = [(way, "double") for way in RUNS if way != "double"] + [("two", "one"), ("engine", "one")]
    for way, other in pairs:
        most, mean, weights = apart(runs[way], runs[other])
        print(
            f"  {way:<6} - {other:<6}   loss: greatest {most:.1e}, mean {mean:.1e}   weights: {weights:.1e}", flush=True
        )


def draw(found: dict[str, dict[str, Trained]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(
        2, len(found), figsize=(4.8 * len(found), 5.6), sharex=True, height_ratios=(3, 2), squeeze=False
    )
    for (name, runs), above, below in zip(found.items(), rows[0], rows[1], strict=True):
        steps = np.arange(1, len(runs["double"].losses) + 1)
        for (way, run), width in zip(runs.items(), (6, 4, 3, 2, 1), strict=True):
            above.plot(steps, run.losses, color=COLOURS[way], lw=width, label=RUNS[way])
            if way != "double":
                differs = np.abs(np.subtract(run.losses, runs["double"].losses))
                differs[differs == 0] = np.nan  # a logarithm has no zero
                below.plot(steps, differs, "o-", color=COLOURS[way], lw=1, ms=2.5)
        below.set_yscale("log")
        below.set_xlabel("step")
        above.set_title(f"{name}, {SPARSITY:.0%} zeros", fontsize=10)
        above.legend(fontsize=8)
        for axes in (above, below):
            axes.grid(True, lw=0.4, alpha=0.5)
    rows[0][0].set_ylabel("loss")
    rows[1][0].set_ylabel("loss: difference from double precision")
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def write(path: Path, found: dict[str, dict[str, Trained]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "step", *RUNS])
        for name, runs in found.items():
            for step, losses in enumerate(zip(*(run.losses for run in runs.values()), strict=True), 1):
                writer.writerow([name, step, *losses])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--out", type=Path, help="the picture")
    options = parser.parse_args()
    task = Folder(options.folder)
    task.samples["train"] = thinned(task.samples["train"], options.steps * BATCH)
    print("; ".join(f"{name}: {value}" for name, value in environment().items()))
    found = {}
    for name in ("packaged:tf_efficientnet_lite0", "torchvision:resnet18"):
        network = opened(name, task)
        data = batches(network, task, options.steps)
        short = name.split(":")[1]
        found[short] = {way: trained(network.module, data, options.lr, way) for way in RUNS}
        report(short, found[short])
    if options.csv is not None:
        write(options.csv, found)
    if options.out is not None:
        draw(found, options.out)


if __name__ == "__main__":
    main()
