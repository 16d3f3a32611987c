#!/usr/bin/env python3
"""Whether the engine gives each convolution the kernel that is the faster: both are timed in the same network.

    OMP_NUM_THREADS=2 python benchmarks/choice.py --sparsity 0.3 0.4 0.5 0.6 0.7 --batch 1 16

The network is compiled three times, with the engine's own choice, with all of its convolutions in the sparse and with
all in the dense kernel, and profiled in rounds that go from one to the next. Printed are the times, that of the faster
kernel in each layer, and the layers in which the choice costs more than `--least` of the layer's time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from networks import named

import budwood
from budwood.bench.zeros import with_random_zeros
from budwood.engine.explain import Row
from budwood.engine.lowering import conv

SHARES: dict[str, float | None] = {"chosen": None, "sparse": 0.0, "dense": 1.0}
"""What the sparse kernel is said to take of the dense one's time."""


@contextmanager
def said(share: float | None) -> Iterator[None]:
    model = conv.sparse_share
    if share is not None:
        conv.sparse_share = lambda *_: share
    try:
        yield
    finally:
        conv.sparse_share = model


def measure(model: str, sparsity: float, batch: int, rounds: int) -> dict[str, list[tuple[Row, float]]]:
    """The steps of each way with their median ms an image; those of a layer have the same place in all."""
    module = with_random_zeros(named(model).module.eval(), sparsity)
    programs = {}
    for way, share in SHARES.items():
        with said(share):  # plans are made at the first use, by the rules of that moment
            programs[way] = budwood.compile(module, image_size=224)
            programs[way].plan(batch)
    profiles = {way: [] for way in programs}  # type: dict[str, list[tuple[Row, ...]]]
    for _ in range(rounds):
        for way, program in programs.items():
            profiles[way].append(program.profile(batch=batch, rounds=3).rows)
    return {
        way: [(steps[0], statistics.median(step.ms for step in steps)) for steps in zip(*found, strict=True)]
        for way, found in profiles.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], choices=(1, 4, 16))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.1)
    options = parser.parse_args()
    heads = ("zeros", "batch", "chosen, ms", "all sparse", "all dense", "the faster in each layer", "lost")
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    wrong = []
    for sparsity in options.sparsity:
        for batch in options.batch:
            found = measure(options.model, sparsity, batch, options.rounds)
            chosen, total, others = 0.0, 0.0, 0.0
            layers = zip(found["sparse"], found["dense"], found["chosen"], strict=True)
            for (row, sparse), (_, dense), (own, _) in layers:
                if row.op != "Conv":
                    others += sparse
                    continue
                took, least = sparse if own.kernel == "sparse" else dense, min(sparse, dense)
                chosen, total = chosen + took, total + least
                if took > (1 + options.least) * least:
                    wrong.append(
                        f"{sparsity:.0%} zeros, batch {batch}, {row.source or row.name}: {own.kernel},"
                        f" {took:.3f} ms for {least:.3f}"
                    )
            whole = {way: sum(ms for _, ms in rows) for way, rows in found.items()}
            print(
                f"| {sparsity:.0%} | {batch} | {whole['chosen']:.2f} | {whole['sparse']:.2f} | {whole['dense']:.2f} |"
                f" {others + total:.2f} |"
                f" {chosen / total - 1:.1%} of the convolutions |",
                flush=True,
            )
    print("\nwhere the other kernel is faster by more:", *(wrong or ["nowhere"]), sep="\n")


if __name__ == "__main__":
    main()
