#!/usr/bin/env python3
"""What a task's images cost on their way to a network's features, over the network alone.

    python benchmarks/features.py FOLDER --model packaged:tf_efficientnet_lite0 torchvision:resnet50 --csv features.csv

FOLDER holds labelled images as `budwood transfer` takes them. Each way goes through the same images of the test split:

    memory      tensors that are ready in memory: the network alone, what the ratios are to
    first       decoded, kept as crops on disk, and shown to the network
    second      from the crops that `first` left
    loader N    decoded and normalised one by one by PyTorch's DataLoader with N processes, without crops
    decode      what of `first` is not the network: crops made and written
    read        what of `second` is not the network: crops read and normalised

Rounds go from way to way, so that a drift of the machine's speed hits all alike. Printed are ms per image, median and
least to greatest of the rounds, and the same of the ratio to `memory` of the same round; `--csv` appends every round.
Weights are random, which changes nothing of the times. Threads are PyTorch's: set OMP_NUM_THREADS.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from networks import named
from rounds import append, measure, spread, thinned
from torch import Tensor

from budwood.bench.environment import environment
from budwood.models.network import Network
from budwood.tasks.folder import Folder
from budwood.transfer import features as module
from budwood.transfer.crops import Crops, dataset
from budwood.transfer.features import features


def opened(model: str, size: int | None) -> Network:
    network = named(model)
    network.module.eval().to(memory_format=torch.channels_last)
    if size is None:
        return network
    at = network.lineage.preprocessing.at(size)
    return replace(network, lineage=network.lineage.model_copy(update={"preprocessing": at}))


@torch.inference_mode()
def forward(network: Network, batches: list[tuple[Tensor, Tensor]]) -> None:
    for images, _ in batches:
        network.module(images)


def read(task: Folder, network: Network, crops: Path) -> list[tuple[Tensor, Tensor]]:
    images = dataset(task, "test", network.lineage.preprocessing, crops)
    assert isinstance(images, Crops), "not enough free disk for crops"
    return list(images.batches(module.BATCH))


def ways(task: Folder, network: Network, scratch: Path, workers: list[int]) -> dict[str, Callable[[], object]]:
    """What is timed, in the order of a round: `read` and `second` find the crops that `decode` and `first` made."""

    def afresh(folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    preprocessing, crops, decoded = network.lineage.preprocessing, scratch / "crops", scratch / "decoded"
    ready = read(task, network, decoded)
    return {
        "memory": lambda: forward(network, ready),
        "first": lambda: features(network, task, ["test"], None, afresh(crops), accelerate=False),
        "second": lambda: features(network, task, ["test"], None, crops, accelerate=False),
        "decode": lambda: dataset(task, "test", preprocessing, afresh(decoded)),
        "read": lambda: read(task, network, decoded),
    } | {f"loader {n}": partial(features, network, task, ["test"], workers=n, accelerate=False) for n in workers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", nargs="+", default=["packaged:tf_efficientnet_lite0", "torchvision:resnet50"])
    parser.add_argument("--size", type=int, help="image size in pixels; each network's own if not given")
    parser.add_argument("--images", type=int, default=256, help="images of a round, drawn evenly from the test split")
    parser.add_argument("--batch", type=int, default=module.BATCH, help="images in a forward pass")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    module.BATCH = options.batch
    task = Folder(options.folder)
    task.samples["test"] = thinned(task.samples["test"], options.images)
    images = len(task.samples["test"])
    print("; ".join(f"{name}: {value}" for name, value in environment().items()))
    for model in options.model:
        network = opened(model, options.size)
        size = network.lineage.preprocessing.size
        with tempfile.TemporaryDirectory(dir=options.csv.parent if options.csv else None) as scratch:
            seconds = measure(ways(task, network, Path(scratch), options.workers), options.rounds, warm=1)
        taken = {name: [value / images * 1000 for value in values] for name, values in seconds.items()}
        print(f"\n{model}, {images} images at {size} px, {options.batch} a pass, {options.rounds} rounds")
        for name, values in taken.items():
            ratios = [value / base for value, base in zip(values, taken["memory"], strict=True)]
            print(f"  {name:<9} {spread(values, 2)} ms an image    {spread(ratios, 3)} of memory")
        if options.csv is not None:
            facts = {"model": model, "size": size, "batch": module.BATCH, "images": images}
            append(options.csv, facts | {"threads": torch.get_num_threads()}, "ms_per_image", taken)


if __name__ == "__main__":
    main()
