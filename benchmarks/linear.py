#!/usr/bin/env python3
"""How fast a linear transfer is through the engine, over PyTorch and ONNX Runtime, from photographs on disk.

    python benchmarks/linear.py FOLDER --model torchvision:resnet50 --sparsity 0.9 --csv linear.csv

FOLDER holds labelled photographs as `budwood transfer` takes them. Each way decodes them anew and compiles anew:

    features pytorch, onnxruntime, engine     what the classifier sees of the training images
    transfer pytorch, engine                  the whole of it: features of all splits, and a head by L-BFGS

The network gets random zeros. That changes no time but the head's, so the head's share is printed too. Features are
compared first. Rounds go from way to way; printed are the median and the least to greatest of the seconds, and of the
ratio to `pytorch` of the same round. Threads are PyTorch's: set OMP_NUM_THREADS.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from networks import named
from rounds import append, measure, spread, thinned
from torch import Tensor

from budwood.bench.environment import environment
from budwood.bench.onnxruntime import OnnxRuntime
from budwood.bench.zeros import with_random_zeros
from budwood.core.spec import Recipe
from budwood.models.network import Network
from budwood.tasks.folder import Folder
from budwood.transfer.crops import Crops, dataset
from budwood.transfer.features import BATCH, backbone, features
from budwood.transfer.linear import fit_head, linear


def opened(model: str, sparsity: float) -> Network:
    network = named(model)
    return replace(network, module=with_random_zeros(network.module, sparsity))


def by_onnxruntime(network: Network, task: Folder, crops: Path) -> Tensor:
    size = network.lineage.preprocessing.size
    module, _ = backbone(network, accelerate=False)
    images = dataset(task, "train", network.lineage.preprocessing, crops)
    assert isinstance(images, Crops), "not enough free disk for crops"
    run = OnnxRuntime().prepare(module, torch.zeros(BATCH, 3, size, size), torch.get_num_threads())  # type: ignore[arg-type]
    return torch.from_numpy(np.concatenate([run(pixels) for pixels, _ in images.batches(BATCH)]))


def ways(network: Network, task: Folder, scratch: Path) -> dict[str, Callable[[], object]]:
    def afresh() -> Path:
        shutil.rmtree(scratch, ignore_errors=True)
        return scratch

    def seen(accelerate: bool) -> Tensor:
        return features(network, task, ["train"], None, afresh(), accelerate=accelerate)[0]["train"][0]

    def whole(accelerate: bool) -> object:
        return linear(network.copy(), task, Recipe().for_linear(), 0, crops=afresh(), accelerate=accelerate)

    return {
        "features pytorch": partial(seen, False),
        "features onnxruntime": lambda: by_onnxruntime(network, task, afresh()),
        "features engine": partial(seen, True),
        "transfer pytorch": partial(whole, False),
        "transfer engine": partial(whole, True),
    }


def compared(named: dict[str, Callable[[], object]]) -> None:
    """Refuses to time what gives other features."""
    expected = named["features pytorch"]()
    for name in ("features onnxruntime", "features engine"):
        torch.testing.assert_close(named[name](), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--images", type=int, default=2000, help="of the training split, drawn evenly")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    task, network = Folder(options.folder), opened(options.model, options.sparsity)
    for split, most in {"train": options.images, "val": options.images // 5, "test": options.images // 5}.items():
        task.samples[split] = thinned(task.samples[split], most)
    print("; ".join(f"{name}: {value}" for name, value in environment().items()))
    print(f"{options.model}, {options.sparsity:.0%} zeros; images: {task.sizes}; {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as scratch:
        named = ways(network, task, Path(scratch) / "crops")
        compared(named)
        taken = measure(named, options.rounds)
        found, _ = features(network, task, ["train", "val"], None)
    start = time.perf_counter()
    fit_head(found["train"], found["val"], len(task.classes), Recipe().for_linear(), task.metric, 0)
    head = time.perf_counter() - start
    for name, values in taken.items():
        base = taken[name.split()[0] + " pytorch"]
        ratios = [b / value for value, b in zip(values, base, strict=True)]
        print(f"  {name:<21} {spread(values, 2)} s    {spread(ratios, 2)} times as fast as PyTorch")
    print(f"  of a transfer the head takes {head:.2f} s")
    if options.csv is not None:
        facts = {"model": options.model, "sparsity": options.sparsity, "images": len(task.samples["train"])}
        append(options.csv, facts | {"threads": torch.get_num_threads()}, "seconds", taken)


if __name__ == "__main__":
    main()
