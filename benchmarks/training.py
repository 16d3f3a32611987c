#!/usr/bin/env python3
"""How fast a whole training step is at a fixed mask, against dense PyTorch; what memory it takes.

    python benchmarks/training.py --csv training.csv
    python benchmarks/training.py --only resnet50@0.9 --rounds 5

A step is forward, loss, backward and SGD with momentum, on random images of 224 px. Masks are random: uniform over the
convolutions but the stem, for the mobile networks over the 1 x 1 ones only. Ways:

    eager       PyTorch, channels-last
    compile     torch.compile of that, where it works
    engine      budwood.accelerate
    sparseprop  SparseProp, where it is installed: the layers that its own timing finds faster sparse are replaced

Rounds go from way to way, so that a change of the machine's speed hits all alike; printed are the median and the least
to greatest of the seconds, and of how many times as fast each was as the faster of PyTorch's ways in the same round.
First the gradients of the head are compared. Memory is the greatest resident size of a process of its own that does
three steps, less what it had before. Threads are PyTorch's: set OMP_NUM_THREADS.
"""

import argparse
import contextlib
import copy
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from memory import peak_mb
from networks import named
from rounds import append, measure, spread
from torch import Tensor, nn
from torch.nn import functional as F

import budwood
from budwood.bench.environment import environment

WAYS = ("eager", "compile", "engine", "sparseprop")
PYTORCH = WAYS[:2]


@dataclass(frozen=True)
class Case:
    model: str  # source:name
    sparsity: float
    batch: int
    only_1x1: bool = False

    @property
    def name(self) -> str:
        return f"{self.model.split(':')[1]}@{self.sparsity}"


CASES = (
    Case("torchvision:resnet50", 0.9, 16),
    Case("torchvision:resnet50", 0.95, 16),
    Case("torchvision:resnet18", 0.95, 64),
    Case("timm:mobilenetv1_100", 0.9, 16, only_1x1=True),
    Case("timm:tf_efficientnet_lite0", 0.9, 16, only_1x1=True),
)


def opened(case: Case) -> nn.Module:
    torch.manual_seed(0)
    model = named(case.model).module
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for conv in convs[1:]:
            if not case.only_1x1 or conv.kernel_size == (1, 1):
                conv.weight *= torch.rand_like(conv.weight) >= case.sparsity
    return model.train()


def chosen(text: str) -> Case:
    """The case of a network, NAME@SPARSITY: with its own sparsity or with another."""
    name, _, sparsity = text.partition("@")
    found = {case.name.split("@")[0]: case for case in CASES}
    with contextlib.suppress(KeyError, ValueError):
        return replace(found[name], sparsity=float(sparsity))
    raise SystemExit(f"no case {text!r}: give NAME@SPARSITY, NAME one of {', '.join(found)}")


Step = Callable[[], Tensor]


def network(way: str, model: nn.Module, batch: int) -> nn.Module:
    """A copy of the model, as this way has it."""
    model = copy.deepcopy(model)
    if way in PYTORCH:
        return model.to(memory_format=torch.channels_last)
    return budwood.accelerate(model) if way == "engine" else by_sparseprop(model, batch)


def by_sparseprop(model: nn.Module, batch: int) -> nn.Module:
    try:
        import sparseprop
        from sparseprop.modules import SparseConv2d, SparseLinear
        from sparseprop.utils import swap_modules_with_sparse
    except ImportError:
        raise RuntimeError("not installed: pip install sparseprop") from None
    sparseprop.set_num_threads(torch.get_num_threads())
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    with contextlib.redirect_stdout(io.StringIO()):  # it says of every layer what becomes of it
        model = swap_modules_with_sparse(model, (batch, 3, 224, 224))
    swapped = sum(isinstance(m, SparseConv2d | SparseLinear) for m in model.modules())
    print(f"  sparseprop: {swapped} of {layers} layers sparse")
    return model


def prepared(way: str, model: nn.Module, batch: int) -> Step:
    """A training step of what `network` gave."""
    images, target = torch.randn(batch, 3, 224, 224), torch.arange(batch) * 7 % 1000
    if way in PYTORCH:
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    called: Callable[[Tensor], Tensor] = torch.compile(model) if way == "compile" else model

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(called(images), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def compared(model: nn.Module, other: nn.Module) -> None:
    """Refuses to time what gives other gradients of the head, to which the whole forward pass leads."""
    images, target = torch.randn(8, 3, 224, 224), torch.arange(8)  # SparseProp needs a multiple of eight
    found = []
    for net in (copy.deepcopy(model), copy.deepcopy(other)):
        F.cross_entropy(net(images), target).backward()
        last = list(net.parameters())[-2:]
        found.append(torch.cat([p.grad.flatten() for p in last if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3 * float(found[0].abs().max()))


def memory(case: Case, way: str) -> float:
    """MiB that three steps take at the most, in a process of their own; the network before it not counted."""
    command = [sys.executable, __file__, "--memory-of", case.name, way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_memory(case: Case, way: str) -> None:
    model = opened(case)
    before = peak_mb()
    step = prepared(way, network(way, model, case.batch), case.batch)
    for _ in range(3):
        step()
    print(peak_mb() - before)


def report(case: Case, rounds: int, ways: list[str], path: Path | None) -> None:
    model = opened(case)
    print(f"{case.name}, batch {case.batch}")
    steps = {}
    for way in ways:
        try:
            net = network(way, model, case.batch)
            compared(model, net)
            step = prepared(way, net, case.batch)
            step()
            steps[way] = step
        except Exception as error:
            print(f"  {way:<10} does not work: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
    taken = measure(steps, rounds, warm=2)
    others = [values for way, values in taken.items() if way in PYTORCH] or [*taken.values()]
    pytorch = [min(turn) for turn in zip(*others, strict=True)]
    for way, values in taken.items():
        mib = memory(case, way)
        ratios = [base / value for value, base in zip(values, pytorch, strict=True)]
        print(f"  {way:<10} {spread(values, 3)} s   {spread(ratios, 2)} times as fast   {mib:6.0f} MiB", flush=True)
        if path is not None:
            facts = {"model": case.model, "sparsity": case.sparsity, "batch": case.batch}
            append(path, facts | {"threads": torch.get_num_threads(), "mib": round(mib)}, "seconds", {way: values})
    if {"engine", "sparseprop"} <= taken.keys():
        ratios = [theirs / ours for theirs, ours in zip(taken["sparseprop"], taken["engine"], strict=True)]
        print(f"  engine     {spread(ratios, 2)} times as fast as sparseprop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--only", type=chosen, nargs="+", metavar="NAME@SPARSITY", default=CASES, help=names)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        return print_memory(chosen(options.memory_of[0]), options.memory_of[1])
    print("; ".join(f"{name}: {value}" for name, value in environment().items()))
    for case in options.only:
        report(case, options.rounds, options.ways, options.csv)
    return None


if __name__ == "__main__":
    main()
