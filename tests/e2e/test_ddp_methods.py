"""Every method in two processes: their masks and weights are the same, at every step and at the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from budwood.core.registry import methods

DRIVER = """
import hashlib
import json
import os
from pathlib import Path

import torch

torch.set_num_threads(1)
from budwood.core.mask import Mask
from budwood.core.registry import methods
from budwood.models.network import prunable
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train import distributed
from budwood.train.fit import Fit


def weights(model):
    sha = hashlib.sha256()
    for parameter in model.parameters():
        sha.update(parameter.detach().numpy().tobytes())
    return sha.hexdigest()


distributed.join()
ends = {}
for name in methods:
    kind, model, data, masks = methods.get(name), toy_network(), toy_data(), []
    fit = Fit(model, kind(0.7, kind.Options(**kind.brief)), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
    fit.progress = lambda done, total, loss: masks.append(fit.mask.digest())
    try:
        fitted = fit.run()
        ends[name] = [*masks, fitted.mask.digest(), weights(model)]
    except Exception as error:
        ends[name] = [f"{type(error).__name__}: {error}", distributed.rank()]
        raise
    finally:
        Path(f"rank{distributed.rank()}.json").write_text(json.dumps(ends))
distributed.leave()
"""


APART = """
import torch

torch.set_num_threads(1)
from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Pruner, Tags
from budwood.models.network import prunable
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train import distributed
from budwood.train.fit import Fit


class Apart(Pruner):
    tags = Tags(density="target", gradual=True)

    def update(self, model, mask, step, batch):
        if step != 5:
            return mask
        entry = mask["0.weight"].clone()
        entry.flatten()[distributed.rank()] = False
        return Mask(dict(mask) | {"0.weight": entry})


distributed.join()
model, data = toy_network(), toy_data()
fit = Fit(model, Apart(0.7), Mask.ones(prunable(model, head=True)), data, data, RECIPE)
try:
    fit.run()
except UserError as error:
    print(f"{fit.step} {error}\\n", end="", flush=True)  # in one piece, or the two processes' lines may mix
distributed.leave()
"""


def test_processes_that_disagree_stop_at_that_step(process: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(APART)
    said = process("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "driver.py")
    assert (said.code, said.out.count("5 the processes hold different masks")) == (0, 2), said.err[-2000:]


def test_two_processes_agree(process: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    said = process("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "driver.py")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert said.code == 0, (said.err[-2000:], list(first)[-1:])
    assert list(first) == methods.names()
    differ = [name for name in first if first[name] != second[name]]
    assert not differ, "masks or weights are not the same on both processes"
