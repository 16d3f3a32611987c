"""A linear layer of non-zeros, which is a 1 x 1 convolution to the engine."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _native
from ..lowering.conv import WIDEST
from ..lowering.linear import SPARSE_BELOW
from ..native import instruction_set
from .function import through
from .nodes import Convolve, Pattern
from .plan import TrainingPlan
from .region import INPUT, Region
from .sparse import SparseWeight

NAME = "linear"


class SparseLinear(SparseWeight):
    """A linear layer of non-zeros.

    Called with float32 on the CPU it computes through the engine where there are zeros enough for it to pay, else with
    PyTorch and the zeros filled in.
    """

    def __init__(self, linear: nn.Linear, kept: Tensor) -> None:
        super().__init__(linear, kept)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.plans = _Plans()

    @property
    def density(self) -> float:
        return self.weight.numel() / max(math.prod(self.shape), 1)

    @property
    def kind(self) -> str:
        return "sparse" if 0 < self.density < SPARSE_BELOW else "dense"

    def forward(self, x: Tensor) -> Tensor:
        if not self._fits(x):
            return F.linear(x, self.dense(), self.bias)
        rows = x.reshape(-1, self.in_features)
        images, width = _images(len(rows), max(self.shape))
        gradients = torch.is_grad_enabled() and (self.weight.requires_grad or x.requires_grad)
        plan = self.plans.plan(self, images, width, gradients, gradients and x.requires_grad)
        missing = images * width - len(rows)
        padded = F.pad(rows, (0, 0, 0, missing)) if missing else rows
        planes = padded.view(images, width, -1).transpose(1, 2).unsqueeze(2)
        made = through(plan, planes, {(NAME, "weight"): self.weight}, {}, {})
        out = made.squeeze(2).transpose(1, 2).reshape(images * width, -1)[: len(rows)]
        return (out if self.bias is None else out + self.bias).view(*x.shape[:-1], self.out_features)

    def _fits(self, x: Tensor) -> bool:
        plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, self.weight))
        other = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
        return plain and not other and x.numel() > 0 and self.kind == "sparse" and x.shape[-1] == self.in_features

    def extra_repr(self) -> str:
        return f"{self.shape}, {self.weight.numel()} non-zeros, bias={self.bias is not None}"


def _images(rows: int, channels: int) -> tuple[int, int]:
    """Images that share vectors, so that each lane has an image of its own, and pixels of each: one for each row.

    What is too many is filled with rows of zeros. An image has as many pixels as a tile, but fewer where the kernel
    could not count the operands in 16 bits.
    """
    lanes = _native.lanes(instruction_set())
    widest = max(min(WIDEST, (1 << 16) // channels), 2)  # no plan is made for planes of a single pixel
    groups = -(-rows // (lanes * widest))
    return lanes * groups, max(-(-rows // (lanes * groups)), 2)


class _Plans:
    """A layer's plans, made at their first use. A copy begins without any."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, bool, bool], TrainingPlan] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return _Plans, ()

    def __len__(self) -> int:
        return len(self._made)

    def plan(self, layer: SparseLinear, images: int, width: int, gradients: bool, to_rows: bool) -> TrainingPlan:
        key = (images, width, gradients, to_rows)
        with self._lock:
            if key not in self._made:
                out, inside = layer.shape
                pattern = Pattern((out, inside, 1, 1), 1, layer.index.numpy())
                node = Convolve(NAME, (INPUT,), pattern, (1, 1), (0, 0, 0, 0), (1, 1))
                region, isa = Region((node,), NAME, True), instruction_set()
                self._made[key] = TrainingPlan(region, images, (inside, 1, width), {}, gradients, isa, to_rows)
            return self._made[key]
