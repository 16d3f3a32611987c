"""Training in two processes through the engine: the same as with DistributedDataParallel, statistics and all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

DRIVER = """
import torch

torch.set_num_threads(1)
from torch import nn
from torch.utils.data import TensorDataset

from budwood.core.mask import Mask
from budwood.core.registry import methods
from budwood.core.spec import Recipe
from budwood.train import distributed
from budwood.train.fit import Fit

METHODS = {"fixed": {}, "rigl": {"every": 12, "allocation": "uniform"}, "cram": {}}


def trained(name, accelerate):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )
    images = torch.randn(48, 3, 8, 8)
    data = TensorDataset(images, images.mean((2, 3)).argmax(1))
    mask = Mask({"3.weight": torch.rand(16, 8, 3, 3) < 0.3})
    kind = methods.get(name)
    pruner = kind(0.9, kind.Options(**METHODS[name]))
    recipe = Recipe(epochs=3, batch_size=8, accumulate=2, lr=0.05)
    fit = Fit(model, pruner, mask, data, data, recipe, accelerate=accelerate)
    masks, ends = [], []

    def after(step, steps, loss):
        masks.append(fit.mask.digest())
        ends[:] = [{n: t.clone() for n, t in model.state_dict().items()}]

    fit.progress = after
    fit.run()
    return {"masks": masks, "ways": fit.ways, "state": ends[0]}


distributed.join()
found = {name: [trained(name, accelerate) for accelerate in (True, False)] for name in METHODS}
torch.save(found, f"rank{distributed.rank()}.pt")
distributed.leave()
"""


@pytest.fixture
def found(process: Callable[..., Any], tmp_path: Path) -> list[Any]:
    (tmp_path / "driver.py").write_text(DRIVER)
    said = process("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "driver.py")
    assert said.code == 0, said.err[-2000:]
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_through_the_engine_two_processes_train_as_with_ddp(found: list[Any]) -> None:
    ways = {name: runs[0]["ways"] for name, runs in found[0].items()}
    assert ways["fixed"] == ways["cram"] == {"engine": 18}
    assert ways["rigl"]["engine"] == 8 and sum(ways["rigl"].values()) == 18
    for name, (engine, plain) in found[0].items():
        other = found[1][name][0]
        assert engine["masks"] == plain["masks"] == other["masks"], name
        assert plain["ways"] == {"off": 18} and other["ways"] == ways[name]
        for key, value in engine["state"].items():
            if "running" not in key:
                assert torch.equal(value, other["state"][key]), (name, key)
    for of_rank in found:  # the running statistics as well, of which every process has its own after a step
        for name, (engine, plain) in of_rank.items():
            for key, value in plain["state"].items():
                torch.testing.assert_close(engine["state"][key], value, rtol=1e-3, atol=1e-5, msg=f"{name} {key}")
