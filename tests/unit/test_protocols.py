"""The CVPR 2022 study's rules, against what its configuration files and scripts say (spelt out here by hand)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from budwood.core.errors import UserError
from budwood.core.registry import tasks
from budwood.core.spec import COMPONENT_VERSIONS, Protocol, Recipe, RunSpec
from budwood.core.task import Preprocessing
from budwood.train.optim import learning_rate
from budwood.transfer.protocols import SEEDS, check_full, check_linear, preprocessing_for, recipe_for, task_for

OWN = Preprocessing(resize=232, interpolation="bilinear")  # torchvision's newer ResNet-50
STATISTICS = {"dtd": (0.5322, 0.2642), "stanfordcars": (0.4513, 0.2900), "cifar10": (0.4914, 0.2023)}


def unopened(name: str) -> Any:
    """A task's class: what the protocol asks of it are facts of the class."""
    return tasks.get(name)


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    for k, label in enumerate(("b", "a", "c")):
        for n in range(10):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (20, 30), (k * 40, n, 0)).save(tmp_path / label / f"{n}.png")
    return tasks.get("folder")(tmp_path)


@pytest.mark.parametrize(("name", "lr"), [("dtd", 0.001), ("fgvcaircraft", 0.01), ("stanfordcars", 0.01)])
def test_full(name: str, lr: float) -> None:
    recipe = recipe_for("cvpr22", unopened(name), "full", Recipe())
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.weight_decay) == (lr, 150, 64, 5e-4)
    assert (recipe.momentum, recipe.label_smoothing, recipe.warmup_epochs) == (0.9, 0, 0)
    # PyTorch's own scheduler, stepped where the study's code steps it: at the end of an epoch whose number, counted
    # from 0, is a multiple of 50 and not 0. The rate is that of the epochs which follow.
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    for epoch in range(150):
        assert learning_rate(recipe, epoch * 7 + 3, 7) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if epoch >= 50 and epoch % 50 == 0:
            scheduler.step()


def test_settings_that_are_given_count_more() -> None:
    recipe = recipe_for("cvpr22", unopened("dtd"), "full", Recipe(epochs=3, size=128))
    assert (recipe.epochs, recipe.size, recipe.batch_size) == (3, 128, 64)


def test_linear() -> None:
    recipe = recipe_for("cvpr22", unopened("fgvcaircraft"), "linear", Recipe(epochs=3, lr=1))
    assert (recipe.head, recipe.lr, recipe.epochs, recipe.milestones) == ("sgd", 0.01, 150, (51, 101))
    assert SEEDS["cvpr22"] == {"linear": 5, "full": 3}


@pytest.mark.parametrize(
    ("protocol", "given", "full_too", "words"),
    [
        ("cvpr22", {"head": "lbfgs"}, True, "the cvpr22 protocol fixes --head of a linear transfer; leave it out"),
        ("cvpr22", {"epochs": 3, "lr": 1}, False, "the cvpr22 protocol fixes --epochs, --lr of a linear transfer"),
        ("cvpr22", {"epochs": 3, "lr": 1}, True, ""),
        ("cvpr22", {"head": "sgd", "epochs": 150, "lr": 0.01, "batch_size": 64, "size": 96}, False, ""),
        ("budwood", {"epochs": 3}, False, "--epochs does not count for a linear head"),
        ("budwood", {"head": "sgd", "epochs": 10}, False, "--epochs does not count for a linear head"),
        ("budwood", {"head": "lbfgs", "size": 96, "select": "last"}, False, ""),
    ],
)
def test_what_a_linear_transfer_passes_over_is_refused(
    protocol: Any, given: dict[str, Any], full_too: bool, words: str
) -> None:
    said = ""
    try:
        check_linear(protocol, Recipe(**given), full_too, lambda name: f"--{name}")
    except UserError as error:
        said = str(error)
    assert said.startswith(words) and bool(said) == bool(words)


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_images(name: str) -> None:
    full = preprocessing_for("cvpr22", unopened(name), "full", OWN, "acdc", None)
    assert (full.size, full.resize, full.interpolation) == (224, 256, "bilinear")
    assert (full.mean[0], full.std[0]) == STATISTICS[name]
    linear = preprocessing_for("cvpr22", unopened(name), "linear", OWN, "acdc", None)
    assert (linear.mean, linear.std, linear.resize) == (OWN.mean, OWN.std, 256)
    rigl = preprocessing_for("cvpr22", unopened(name), "full", OWN, "rigl", None)
    assert rigl.interpolation == "bicubic"
    assert preprocessing_for("cvpr22", unopened(name), "full", OWN, "acdc", 112).resize == 128
    assert preprocessing_for("budwood", unopened(name), "full", OWN, "rigl", None) == OWN


def test_splits(photos: Any) -> None:
    official = task_for("cvpr22", photos)
    assert task_for("budwood", photos) is photos
    val, test = photos.sizes["val"], photos.sizes["test"]
    assert official.sizes == {"train": 30 - test, "val": test, "test": test} and val > 0
    assert official.digest() != photos.digest()


def test_older_runs_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run_id of a spec as it was before there were protocols, worked out then."""
    monkeypatch.setitem(COMPONENT_VERSIONS, "prune", 2)
    monkeypatch.setitem(COMPONENT_VERSIONS, "fit", 2)
    spec = RunSpec(model="timm:resnet18", parent="p", task="t", data="d")
    assert spec.run_id == "7b5e869326c0ced4"
    assert spec.model_copy(update={"protocol": "cvpr22"}).run_id != spec.run_id


@pytest.mark.parametrize("protocol", ["budwood", "cvpr22"])
def test_what_a_head_alone_goes_by_is_not_in_a_full_transfers_recipe(protocol: Protocol) -> None:
    given = Recipe(epochs=3, head="sgd", adapt_bn=True)  # of a transfer in both ways
    assert recipe_for(protocol, unopened("dtd"), "full", given) == recipe_for(
        protocol, unopened("dtd"), "full", Recipe(epochs=3)
    )
    with pytest.raises(UserError, match="head counts for a linear head alone"):
        check_full(given)
    check_full(Recipe(epochs=3, adapt_bn=False))
