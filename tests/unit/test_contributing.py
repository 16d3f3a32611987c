"""The examples of CONTRIBUTING.md do what they say."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image

from budwood.core.mask import Mask
from budwood.core.pruner import Family, Plan, Pruner
from budwood.core.registry import methods, sources, tasks
from budwood.core.task import SPLITS
from budwood.testing.pruners import check_pruner

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(), re.DOTALL)


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples register, in registries that forget it afterwards."""
    made: dict[str, Any] = {}
    for registry in (methods, tasks, sources):
        before = {name: registry.get(name) for name in registry.names()}
        monkeypatch.setattr(registry, "_members", dict(before))
    for example in EXAMPLES:
        exec(compile(example, "CONTRIBUTING.md", "exec"), {"__name__": "example"})
    for registry, name in ((methods, "coin"), (tasks, "leaves"), (sources, "tiny")):
        made[name] = registry.get(name)
    return made


def test_a_method_and_a_source(members: dict[str, Any]) -> None:
    network = members["tiny"]("16", 4, pretrained=False)
    assert network.module(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    mask = members["coin"](sparsity=0.75).start(network.module, network.mask, Plan(1, 1))
    assert isinstance(mask, Mask) and mask.kept == network.mask.total // 4
    coin = members["coin"]  # what test_recipe.py and test_methods_page.py ask of every method
    assert coin.cost != Pruner.cost and coin.tags.family in get_args(Family)
    assert coin.tags.family == "controls" or (coin.tags.paper and coin.papers)


@pytest.mark.parametrize(
    ("options", "sparsity"), [({}, 0.7), ({"pattern": "2:4"}, 0.5), ({"allocation": "erk", "pattern": "1x4"}, 0.7)]
)
def test_the_method_keeps_the_contract(members: dict[str, Any], options: dict[str, Any], sparsity: float) -> None:
    check_pruner("coin", options, sparsity)


def test_a_task(members: dict[str, Any], tmp_path: Path) -> None:
    for label in members["leaves"].classes:
        (tmp_path / label).mkdir()
        for shade in range(10):
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / label / f"{shade}.jpg")
    task = members["leaves"](tmp_path)
    assert sum(task.sizes.values()) == 20 and all(task.sizes[split] > 0 for split in SPLITS)
    image, target = task.load("train", lambda image: image)[0]
    assert image.size == (8, 8) and target in (0, 1)
    assert task.digest() == members["leaves"](tmp_path).digest() != members["leaves"](tmp_path, seed=1).digest()
