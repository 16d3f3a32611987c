"""Two processes that are broken off in the middle of an epoch go on to what they would have come to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DRIVER = """
import hashlib
import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from torch import nn
from torch.utils.data import TensorDataset

from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.spec import Recipe
from budwood.core.registry import methods
from budwood.models.network import prunable
from budwood.train import distributed
from budwood.train.fit import Fit

state, stop, kind = Path(sys.argv[1]), int(sys.argv[2]), methods.get(sys.argv[3])
distributed.join()
rank = distributed.rank()
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.4), nn.AdaptiveAvgPool2d(2),
    nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3),
)
data = TensorDataset(torch.randn(160, 3, 6, 6), torch.arange(160) % 3)
recipe = Recipe(epochs=2, batch_size=8, lr=0.1, ema=0.5)


class Stopped(Exception):
    pass


def progress(done, total, how):
    first.append(done)
    if done == stop:
        raise Stopped


first, said = [], ""
pruner = kind(0.6, kind.Options(**json.loads(sys.argv[4])))
fit = Fit(
    model, pruner, Mask.ones(prunable(model, head=True)), data, data, recipe,
    state_path=state, save_seconds=-1.0, progress=progress,
)
try:
    fit.run()
except Stopped:
    said = "stopped"
except UserError as error:
    said = str(error)
sha = hashlib.sha256()
for value in model.parameters():
    sha.update(value.detach().numpy().tobytes())
found = {"first": first[:1], "weights": sha.hexdigest(), "mask": fit.mask.digest()}
found["history"] = [] if rank else fit.history  # only the first one's loss is kept
Path(f"{state.name}.{rank}.json").write_text(json.dumps(found | {"said": said}))
distributed.leave()
"""


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rigl", {"every": 7}),
        pytest.param("snfs", {"every": 7}, marks=pytest.mark.slow),
        pytest.param("topkast", {"every": 7}, marks=pytest.mark.slow),
        pytest.param("str", {}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_go_on_in_the_middle_of_an_epoch(
    method: str, options: dict[str, Any], process: Callable[..., Any], tmp_path: Path
) -> None:
    """20 steps an epoch; after 16 the first process is asked whether to save."""
    (tmp_path / "driver.py").write_text(DRIVER)

    def run(state: str, stop: int = 0, processes: int = 2) -> list[dict[str, Any]]:
        how = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        said = process(*how, "driver.py", state, str(stop), method, json.dumps(options))
        assert said.code == 0, said.err[-2000:]
        return [json.loads((tmp_path / f"{state}.{rank}.json").read_text()) for rank in range(processes)]

    whole = run("whole")
    assert whole[0]["weights"] == whole[1]["weights"] and len(whole[0]["history"]) == 2
    stopped = run("state", stop=38)
    assert [found["said"] for found in stopped] == ["stopped", "stopped"]
    (alone,) = run("state", processes=1)
    assert "of the middle of an epoch of 2 processes, not of 1; go on with as many" in alone["said"]
    again = run("state")
    assert [found["first"] for found in again] == [[33], [33]]
    assert [found | {"first": [1]} for found in again] == whole
