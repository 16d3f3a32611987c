"""Which kernel a convolution that is trained goes through: what was measured decides, and is remembered."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import budwood
from budwood.engine.native import instruction_set
from budwood.engine.training import choice


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "budwood" / "kernels.json"


def network(density: float) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    weight = net[3].weight
    with torch.no_grad():
        weight *= (torch.randperm(weight.numel()) < density * weight.numel()).view_as(weight)
    return net


def trained(net: nn.Module) -> str:
    """Does one pass and checks its gradients; what explain() says of the convolution with zeros."""
    x, target = torch.randn(4, 3, 20, 20), torch.tensor([0, 1, 2, 3])
    plain = copy.deepcopy(net)
    F.cross_entropy(plain(x), target).backward()
    fast = budwood.accelerate(net)
    F.cross_entropy(fast(x), target).backward()
    expected = plain[3].weight.grad[plain[3].weight != 0]
    torch.testing.assert_close(fast.get_parameter("3.weight").grad, expected, rtol=1e-3, atol=1e-6)
    return next(line for line in fast.explain().splitlines() if line.startswith("  3 "))


def invert(path: Path) -> None:
    """As if everything had been measured the other way round."""
    every = json.loads(path.read_text())
    path.write_text(json.dumps({m: {key: pair[::-1] for key, pair in seen.items()} for m, seen in every.items()}))
    choice._here.clear()


@pytest.mark.parametrize(("density", "kind"), [(0.1, "sparse"), (0.95, "dense")])
def test_far_from_the_border_nothing_is_measured(density: float, kind: str, cache: Path) -> None:
    line = trained(network(density))
    assert f"forward {kind}, backward {kind}" in line
    assert not cache.exists()


def test_near_the_border_what_was_measured_decides_and_is_remembered(cache: Path) -> None:
    first = trained(network(0.6))
    assert first.count("times as fast as") == 2
    measured = cache.read_text()
    assert trained(network(0.6)) == first and cache.read_text() == measured
    invert(cache)
    other = trained(network(0.6))
    swapped = {"sparse (": "dense (", "dense (": "sparse ("}
    for kind, opposite in swapped.items():
        assert first.count(kind) == other.count(opposite)


def test_both_passes_of_both_kernels_give_pytorchs_gradients(cache: Path) -> None:
    trained(network(0.6))
    machine, seen = next(iter(json.loads(cache.read_text()).items()))
    for pair, kind in (([1.0, 2.0], "sparse"), ([2.0, 1.0], "dense")):
        cache.write_text(json.dumps({machine: dict.fromkeys(seen, pair)}))
        choice._here.clear()
        line = trained(network(0.6))
        assert line.count(f"{kind} (2.00 times as fast") == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}', "null", "\x00"])
def test_a_damaged_memory_is_as_good_as_none(text: str, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert "times as fast as" in trained(network(0.6))
    assert json.loads(cache.read_text())


@pytest.mark.parametrize("pair", [None, [], [0, 1], [-1, 2], ["a", 1], [1, 2, 3], [1, float("nan")]])
def test_damaged_figures_are_measured_anew(pair: object, cache: Path) -> None:
    trained(network(0.6))
    every = {m: dict.fromkeys(seen, pair) for m, seen in json.loads(cache.read_text()).items()}
    cache.write_text(json.dumps(every))
    choice._here.clear()
    assert "times as fast as" in trained(network(0.6))


def test_a_memory_that_cannot_be_written_serves_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first = trained(network(0.6))
    assert "times as fast as" in first and trained(network(0.6)) == first


def test_what_another_process_measured_meanwhile_is_kept(cache: Path) -> None:
    trained(network(0.6))
    mine = choice.known(instruction_set())
    choice._here.clear()
    cache.write_text(json.dumps({m: {key: [3.0, 1.0] for key in s} for m, s in json.loads(cache.read_text()).items()}))
    for key, pair in list(mine.items()):
        assert choice._remembered(instruction_set(), key, pair) == (3.0, 1.0)
