"""Which kernel the model of costs gives a convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import budwood

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


@pytest.mark.parametrize(
    ("shape", "least", "most"),
    [
        ((64, 64, 3, 1), 0.6, 0.85),
        ((128, 64, 1, 1), 0.6, 0.85),
        ((128, 128, 3, 32), 0.3, 0.75),  # 36 inputs a row
        ((64, 64, 1, 16), 0.0, 0.3),  # four inputs a row: storing the sums is most of the work
    ],
)
def test_one_border_that_falls_with_the_inputs_of_a_row(
    shape: tuple[int, int, int, int], least: float, most: float
) -> None:
    found = [kernel(*shape, density) for density in DENSITIES]
    border = sum(k == "sparse" for k in found)
    assert found == ["sparse"] * border + ["dense"] * (len(found) - border)
    assert least <= border / len(found) <= most


class Unshuffled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_unshuffle(x, 2).relu()


def test_copies_are_sparse_whatever_they_cost() -> None:
    """Four inputs and one weight a row, so dense would be the faster; but a NaN beside may not come in."""
    x = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    x[0, 3, 4, 5] = torch.nan
    program = budwood.compile(Unshuffled(), example=x)
    torch.testing.assert_close(program(x), Unshuffled()(x), equal_nan=True)
