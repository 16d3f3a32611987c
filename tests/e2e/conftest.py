"""A network and images small enough to be trained in a second, and the command."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from budwood.cli import main

NETWORKS = '''
import torch
from torch import nn


def small(num_classes=3, width=8, seed=3):
    """Two convolutions, batch norm and dropout at 32 pixels; always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(2 * width, num_classes),
        )
    net.preprocessing = {"size": 32, "resize": 32}
    return net


def leaky(num_classes=3):
    """The same weights and shapes; other activations."""
    net = small(num_classes)
    net[2], net[5] = nn.LeakyReLU(0.5), nn.LeakyReLU(0.5)
    return net


def wide(num_classes=3):
    return small(num_classes, width=12)


def plain(num_classes=3):
    """Without batch norm and dropout: what a batch is split into does not matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes),
        )
    net.preprocessing = {"size": 32, "resize": 32}
    return net


def pooled(num_classes=3):
    """Its second pool leaves nothing of images below 32 pixels."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(8), nn.Conv2d(8, 8, 1, bias=False), nn.MaxPool2d(4), nn.Flatten(),
        nn.BatchNorm1d(8), nn.Linear(8, num_classes),
    )
    net.preprocessing = {"size": 32, "resize": 32}
    return net


def convolutional_head(num_classes=3):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, num_classes, 1), nn.Flatten(),
    )
    net.preprocessing = {"size": 32, "resize": 32}
    return net
'''
COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}


def draw(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """A disc of some colour on a dark ground, 32 x 32 pixels."""
    chance = random.Random(f"{path.parent.name} {seed}")
    image = Image.new("RGB", (32, 32), tuple(chance.randrange(60) for _ in range(3)))  # type: ignore[arg-type]
    x, y = chance.randrange(16), chance.randrange(16)
    ImageDraw.Draw(image).ellipse((x, y, x + 12, y + 12), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toynet.py, shapes/ (three classes of 20 photos) and few/ (three classes of 6)."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "toynet.py").write_text(NETWORKS)
    for name, count in (("shapes", 20), ("few", 6)):
        for label, colour in COLOURS.items():
            for k in range(count):
                draw(folder / name / label / f"{k:02}.png", colour, k)
    return folder


@pytest.fixture
def shapes(place: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(place / "shapes", tmp_path / "shapes"))


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Of stderr."""
        return self.err.splitlines()


@pytest.fixture
def budwood(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """The command, called in this process in an empty folder: (code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("COLUMNS", "120")
    threads = torch.get_num_threads()

    def call(*arguments: object) -> Said:
        capfd.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        torch.set_num_threads(threads)
        out, err = capfd.readouterr()
        return Said(code, out, err)

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def process(place: Path, tmp_path: Path) -> Callable[..., Said]:
    """`python ARGUMENTS` in a process of its own, in an empty folder, with the toy networks importable."""

    def call(*arguments: object, timeout: float = 600, **environment: str) -> Said:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=tmp_path, env=surroundings(place) | environment,
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    return call


def surroundings(place: Path) -> dict[str, Any]:
    return dict(os.environ) | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
