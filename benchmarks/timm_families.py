"""Which of timm's families the engine can read: the smallest network of each, imported and compared with PyTorch.

    python benchmarks/timm_families.py [FAMILY ...] > docs/explain/families.md

A family is a module of timm whose networks hold five convolutions or more with kernels larger than 1 x 1; so hybrids
with attention are among them, plain transformers and MLPs are not. A network is read in float64 with every number at
random and said to work if its interpreted graph agrees with it to a relative RMS error of 1e-9 on other images.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import timm
import torch
from torch import nn

from budwood.core.errors import UserError
from budwood.engine.from_export import graph_from_module
from budwood.engine.interpret import interpret
from budwood.testing.networks import randomize

HEADING = """# Which networks the engine can read

The engine reads a network as `torch.export` gives it and refuses what it has no operator for before anything runs, naming the operator and where it stands.
Of torchvision, every convolutional classifier works; the table shows the smallest network of every family of timm {version} that holds convolutions, hybrids with attention included.
`yes` means that the graph, interpreted in float64, gave the numbers of PyTorch, every parameter and statistic of the network being random. {works} of {count} work.

```sh
python benchmarks/timm_families.py > docs/explain/families.md
```

| family | network | imports |
|---|---|---|"""
SMALLEST_SIZE, FEWEST_CONVOLUTIONS = 128, 5


def smallest_networks(only: list[str]) -> Iterator[tuple[str, str]]:
    """Family and name; networks that exist for timm's own tests are left out."""
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
            yield family, min(sizes, key=lambda name: sizes[name])


def _skeleton(name: str) -> nn.Module:
    """The network without memory for its numbers, where it can be built so."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (RuntimeError, NotImplementedError):
        return timm.create_model(name)


def outcome(name: str) -> str:
    """`yes`, or why not."""
    model = timm.create_model(name)
    channels, height, width = model.pretrained_cfg["input_size"]
    if not model.pretrained_cfg.get("fixed_input_size"):
        height, width = min(height, SMALLEST_SIZE), min(width, SMALLEST_SIZE)
    images = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(1))
    randomize(model, 0, images)
    model, images = model.double().eval(), images.double()
    try:
        graph = graph_from_module(model, images, dtype=np.float64)
    except UserError as error:
        return f"no: {error}"
    with torch.no_grad():
        expected, (found,) = model(images), interpret(graph, images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    error = ((found - expected).norm() / expected.norm()).item()
    return "yes" if error < 1e-9 else f"no: the relative error is {error:.1e}"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for family, name in smallest_networks(sys.argv[1:]):
        try:
            found = outcome(name)
        except Exception as error:
            found = f"no: {type(error).__name__}: {error}"
        rows.append((family, name, " ".join(found.replace("|", "/").split())))
        print(*rows[-1], file=sys.stderr, flush=True)
    works = sum(found == "yes" for _, _, found in rows)
    print(HEADING.format(version=timm.__version__, works=works, count=len(rows)))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
