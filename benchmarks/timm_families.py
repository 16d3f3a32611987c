"""Which of timm's families the engine can read: the smallest network of each, compiled and compared with PyTorch.

    python benchmarks/timm_families.py [FAMILY ...] > docs/explain/families.md

A family is a module of timm whose networks hold five convolutions or more with kernels larger than 1 x 1; so hybrids
with attention are among them, plain transformers and MLPs are not. A network is read in float64 with every number at
random and said to work if its interpreted graph agrees with it to a relative RMS error of 1e-9 on other images, and
the program that is made of it in float32 to 1e-3, for 1, 4 and 16 images.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from budwood.engine.from_export import graph_from_module
from budwood.engine.interpret import interpret
from budwood.engine.passes import optimize
from budwood.engine.program import CHUNKS, Program
from budwood.testing.networks import randomize

HEADING = (
    "# Which networks the engine can read",
    "",
    "The engine reads a network as `torch.export` gives it.",
    "What it has no operator for it refuses before anything runs, and names the operator and where it stands.",
    "Of torchvision, every convolutional classifier works.",
    "The table shows the smallest network of every family of timm {version} that holds convolutions, hybrids with "
    "attention included; where that is refused but a larger one is not, the larger one, too.",
    "`yes` means that with every parameter and statistic at random the graph, interpreted in float64, gave the numbers "
    "of PyTorch, and the compiled program the same but for rounding, for 1, 4 and 16 images at once.",
    "{works} of {count} families work.",
    "",
    "```sh",
    "python benchmarks/timm_families.py > docs/explain/families.md",
    "```",
    "",
    "| family | network | compiles |",
    "|---|---|---|",
)
LARGEST_SIZE, FEWEST_CONVOLUTIONS, MOST_TRIED = 128, 5, 6


def families(only: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Family and names, the smallest first; networks that exist for timm's own tests are left out."""
    for family in only or timm.list_modules():
        sizes: dict[str, int] = {}
        for name in timm.list_models(module=family):
            if name.startswith("test_"):
                continue
            model = _skeleton(name)
            if sum(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in model.modules()) < FEWEST_CONVOLUTIONS:
                break
            sizes[name] = sum(p.numel() for p in model.parameters())
        if sizes:
            yield family, sorted(sizes, key=lambda name: sizes[name])


def _skeleton(name: str) -> nn.Module:
    """The network without memory for its numbers, where it can be built so."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (RuntimeError, NotImplementedError):
        return timm.create_model(name)


def outcome(name: str) -> str:
    """`yes`, or why not."""
    try:
        return _compared(name)
    except Exception as error:  # a network may fail in as many ways as there are
        lines = str(error).replace("|", "/").split()
        return re.sub(r"/\S*?/site-packages/", "", f"no: {' '.join(lines) or type(error).__name__}")


def _compared(name: str) -> str:
    model = timm.create_model(name)
    config: Any = model.pretrained_cfg
    channels, height, width = config["input_size"]
    if not config.get("fixed_input_size"):
        height, width = min(height, LARGEST_SIZE), min(width, LARGEST_SIZE)
    images = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(1))
    randomize(model, 0, images)
    model, images = model.double().eval(), images.double()
    graph = graph_from_module(model, images, dtype=np.float64)
    with torch.no_grad():
        expected, (found,) = model(images), interpret(graph, images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    difference = ((found - expected).norm() / expected.norm()).item()
    if difference > 1e-9:
        return f"no: the relative error is {difference:.1e}"
    program = Program(optimize(graph_from_module(model.float(), images.float())), threads=1)
    difference = 0.0
    for count in CHUNKS:
        given = images.float().repeat(-(-count // 3), 1, 1, 1)[:count].contiguous()
        wanted = expected.repeat(-(-count // 3), 1)[:count]
        made = torch.full_like(wanted, torch.nan, dtype=torch.float32).contiguous()
        program.plan(count).run([given.numpy()], [made.numpy()], 1)
        difference = max(difference, ((made - wanted).norm() / wanted.norm()).item())
    return "yes" if difference < 1e-3 else f"no: the engine's relative error is {difference:.1e}"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows: list[tuple[str, str, str]] = []
    for family, names in families(sys.argv[1:]):
        for i, name in enumerate(names[:MOST_TRIED]):
            found = outcome(name)
            print(family, name, found, file=sys.stderr, flush=True)
            if i == 0 or found == "yes":
                rows.append((family, name, found))
            if found == "yes":
                break
    works, count = sum(found == "yes" for _, _, found in rows), len({family for family, _, _ in rows})
    print("\n".join(HEADING).format(version=timm.__version__, works=works, count=count))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
