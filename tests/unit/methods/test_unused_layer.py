"""A layer that the forward pass does not use has no gradient: it matters to nothing, and no method fails on it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.core.registry import methods
from budwood.testing.pruners import toy_data
from budwood.train.data import batches_from


class Idle(nn.Module):
    """`idle` is a part of the network, and its weights are the largest of all."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.used, self.idle, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.idle.weight.data.mul_(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.used(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [name for name in methods if methods.get(name).tags.data != "none"])
def test_it_changes_nothing_but_may_go(name: str) -> None:
    """To SNIP it matters nothing, to the layer-wise methods neither; for a Fisher matrix of dampening alone large
    weights are worth keeping, and none of them moves with another."""
    kind, model = methods.get(name), Idle()
    if not kind.tags.at_once:
        pytest.skip("does not prune at once")
    allocation = "uniform" if name == "wanda" else "global"
    options: dict[str, Any] = kind.brief | {"allocation": allocation, "keep_dense": []}
    mask = Mask.ones({"used.weight": model.used.weight, "idle.weight": model.idle.weight})
    before = model.idle.weight.detach().clone()
    draw = batches_from(toy_data(), 0, 0, torch.device("cpu"))
    found = kind(0.5, kind.Options(**options)).start(model, mask, Plan(0, 0, batches=draw))
    assert found.sparsity == 0.5 and bool(torch.isfinite(model.used.weight).all())
    kept = found["idle.weight"]
    assert torch.equal(model.idle.weight[kept], before[kept])
    if name in ("snip", "exact-obs", "sparsegpt"):
        assert not kept.any()
