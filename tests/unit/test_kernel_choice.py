"""Which kernel the model of costs gives a convolution."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import budwood
from budwood.engine.lowering.conv import blocks

DENSITIES = np.linspace(0.05, 1, 20)


def kernel(inputs: int, outputs: int, window: int, groups: int, density: float) -> str:
    layer = nn.Conv2d(inputs, outputs, window, padding=window // 2, groups=groups, bias=False)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape, generator=random) < density)
    program = budwood.compile(nn.Sequential(layer, nn.ReLU()).eval(), example=torch.zeros(1, inputs, 28, 28))
    (row,) = [row for row in program.profile(batch=1, rounds=1).rows if row.op == "Conv"]
    assert "by the model" in row.reason
    return row.kernel


def border(inputs: int, outputs: int, window: int, groups: int) -> float:
    """The greatest density at which it is sparse; there is one border."""
    found = [kernel(inputs, outputs, window, groups, density) for density in DENSITIES]
    sparse = sum(k == "sparse" for k in found)
    assert found == ["sparse"] * sparse + ["dense"] * (len(found) - sparse)
    return sparse / len(found)


@given(st.integers(1, 600), st.integers(1, 49), st.integers(1, 200), st.integers(1, 2500), st.floats(1, 1e4))
def test_blocks_of_inputs(channels: int, taps: int, lines: int, budget: int, longest: float) -> None:
    """Whole channels, in order and none left out; no block takes too many lines, or too many operands, but that one
    alone may take 1.4 times the lines, and a channel is never cut."""
    cut = blocks(channels, taps, lines, budget, longest)
    assert cut[0] == 0 and cut[-1] == channels * taps and not (cut % taps).any()
    sizes = np.diff(cut) // taps
    assert (sizes >= 1).all() and sizes.max() - sizes.min() <= 1
    for size in sizes:
        assert size == 1 or (size * lines <= (1.4 if len(sizes) == 1 else 1) * budget and size * taps <= longest)
    fits = channels * lines <= 1.4 * budget and channels * taps <= longest
    assert (len(sizes) == 1) == (fits or channels == 1), "and not cut for nothing"
    assert np.array_equal(blocks(channels, taps, lines, budget), blocks(channels, taps, lines, budget, np.inf))


def test_the_border_falls_with_the_inputs_of_a_row() -> None:
    wide, narrow, least = border(128, 64, 1, 1), border(128, 128, 3, 32), border(64, 64, 1, 16)
    assert 0.65 <= border(64, 64, 3, 1) == wide <= 0.8  # 576 and 128 inputs, more than a block has
    assert 0.5 <= narrow < wide  # 36
    assert least == 0  # four: storing the sums is most of the work


def test_every_plan_of_a_program_takes_the_same_kernels() -> None:
    """Or the place in a batch would decide about 0 x NaN: near the border, planes of all sizes."""
    layers = [
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.Conv2d(16, 96, 1),
        nn.Conv2d(96, 96, 3, 2, 1, groups=4),
        nn.Conv2d(96, 24, 1),
    ]
    network = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU()))).eval()
    random = torch.Generator().manual_seed(0)
    for density in (0.55, 0.6, 0.65, 0.7, 0.75, 0.8):
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_((torch.rand(layer.weight.shape, generator=random) < density).float())
        program = budwood.compile(network, example=torch.zeros(1, 16, 56, 56))
        kernels = [[row.kernel for row in program.plan(images).steps if row.op == "Conv"] for images in (1, 4, 16)]
        assert kernels[0] == kernels[1] == kernels[2] and len(kernels[0]) == 4
