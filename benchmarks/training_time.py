#!/usr/bin/env python3
"""Where the time of a training step goes, in PyTorch and in an accelerated network, as a picture.

    python benchmarks/training_time.py                       # docs/images/training-time.svg

Steps as benchmarks/training.py has them. PyTorch's parts are the self times of its operators as torch.profiler sees
them in forward and backward pass, the engine's those of the native steps of its plan. Each part is the median over the
rounds; `rest` is what the parts leave of the whole step: the loss, the optimizer, and what an operator or a step of
neither kind takes. Threads are PyTorch's: set OMP_NUM_THREADS.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from training import CASES, Case, chosen, network, opened

from budwood.bench.environment import environment
from budwood.engine.lower import StepInfo
from budwood.engine.training.plan import TrainingPlan

HERE = Path(__file__).resolve().parent
DEFAULT = [case for case in CASES if case.name in ("resnet50@0.9", "tf_efficientnet_lite0@0.9")]
LABELS = {"resnet50": "ResNet-50", "tf_efficientnet_lite0": "EfficientNet-Lite0"}
# Blue: convolutions as PyTorch has them; orange to red: as the engine has them; green: what both have.
COLOURS = {
    "convolution, forward": "#1f77b4",
    "convolution, backward": "#7fb2dc",
    "sparse, forward": "#fdae6b",
    "sparse, to the input": "#f16913",
    "sparse, to the weights": "#a63603",
    "dense": "#9467bd",
    "depthwise": "#c5b0d5",
    "norms, elementwise": "#2ca02c",
    "pooling": "#17becf",
    "laying out": "#e7ba52",
    "rest": "#bdbdbd",
}
Parts = dict[str, float]  # seconds


def of_operator(name: str) -> str:
    """The part of one of PyTorch's operators."""
    if "conv" in name:
        return "convolution, backward" if "backward" in name else "convolution, forward"
    if "pool" in name or name.startswith("aten::mean"):
        return "pooling"
    elementwise = ("norm", "relu", "clamp", "threshold", "hardtanh", "aten::add", "aten::clone", "aten::copy")
    return "norms, elementwise" if any(word in name for word in elementwise) else "rest"


def of_step(step: StepInfo) -> str:
    """The part of one of the engine's steps."""
    if step.kernel in ("norm", "statistics", "add"):
        return "norms, elementwise"
    if step.kernel in ("pool", "average", "spread"):
        return "pooling"
    if step.kernel == "depthwise":
        return "depthwise"
    if step.kernel == "dense" or (step.kernel == "gradient" and not step.sparsity):
        return "dense"
    if step.kernel == "gradient":
        return "sparse, to the weights"
    if step.kernel == "sparse":
        return "sparse, forward" if step.op == "forward" else "sparse, to the input"
    return "laying out"


@contextmanager
def native(into: Counter[str]) -> Iterator[None]:
    """Adds up what the plans' native steps take."""
    methods = {name: getattr(TrainingPlan, name) for name in ("forward", "backward")}

    def timed(run: Any) -> Any:
        def call(plan: TrainingPlan, *given: Any) -> list[float]:
            taken: list[float] = run(plan, *given, timed=True)
            for step, seconds in zip(plan.steps, taken, strict=True):
                into[of_step(step)] += seconds
            return taken

        return call

    for name, run in methods.items():
        setattr(TrainingPlan, name, timed(run))
    try:
        yield
    finally:
        for name, run in methods.items():
            setattr(TrainingPlan, name, run)


@contextmanager
def profiled(into: Counter[str]) -> Iterator[None]:
    """Adds up what PyTorch's operators take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield
    for event in profile.key_averages():
        into[of_operator(event.key)] += event.self_cpu_time_total / 1e6


def measured(way: str, case: Case, rounds: int) -> Parts:
    net = network(way, opened(case), case.batch)
    images, target = torch.randn(case.batch, 3, 224, 224), torch.arange(case.batch) * 7 % 1000
    if way == "eager":
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    found: list[Counter[str]] = []
    for _ in range(rounds + 2):
        parts: Counter[str] = Counter()
        optimizer.zero_grad()
        with native(parts) if way == "engine" else profiled(parts):
            start = time.perf_counter()
            F.cross_entropy(net(images), target).backward()
            took = time.perf_counter() - start
        start = time.perf_counter()
        optimizer.step()
        took += time.perf_counter() - start
        del parts["rest"]
        parts["rest"] = took - sum(parts.values())
        found.append(parts)
    return {part: statistics.median(f[part] for f in found[2:]) for part in COLOURS}


def draw(bars: dict[str, Parts], title: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.65 * len(bars)))
    longest = max(sum(parts.values()) for parts in bars.values())
    for row, parts in enumerate(bars.values()):
        left = 0.0
        for part, colour in COLOURS.items():
            axes.barh(row, parts[part], left=left, color=colour, height=0.7, edgecolor="white", linewidth=0.5)
            if parts[part] > 0.04 * longest:
                axes.text(left + parts[part] / 2, row, f"{parts[part]:.2f}", ha="center", va="center", fontsize=8)
            left += parts[part]
        axes.text(left + 0.01 * longest, row, f"{left:.2f} s", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.09 * longest)
    axes.set_xlabel("seconds a step")
    axes.set_title(title, fontsize=10)
    axes.grid(True, axis="x", lw=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    there = [part for part in COLOURS if any(parts[part] > 0 for parts in bars.values())]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[part]) for part in there]
    figure.legend(handles, there, fontsize=8, ncol=4, loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.08 + 0.5 / (1.4 + 0.65 * len(bars)) / 2, 1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=chosen, nargs="+", metavar="NAME@SPARSITY", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/images/training-time.svg")
    options = parser.parse_args()
    print("; ".join(f"{name}: {value}" for name, value in environment().items()))
    bars: dict[str, Parts] = {}
    for case in options.only:
        name = case.name.split("@")[0]
        for way, label in (("eager", "PyTorch"), ("engine", "engine")):
            parts = measured(way, case, options.rounds)
            bars[f"{LABELS.get(name, name)}, {case.sparsity:.0%}\n{label}"] = parts
            print(f"{case.name} {way}: {sum(parts.values()):.3f} s")
            for part, seconds in parts.items():
                if seconds > 0:
                    print(f"  {part:<23} {seconds:.3f} s  {seconds / sum(parts.values()):4.0%}", flush=True)
    count = torch.get_num_threads()
    batches = ", ".join(sorted({str(case.batch) for case in options.only}))
    title = f"A training step, batch {batches}, {count} thread{'s' if count > 1 else ''}"
    draw(bars, title, options.out)


if __name__ == "__main__":
    main()
