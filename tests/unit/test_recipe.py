"""Recipes as files: every method's can be written, read, and says the same again; the command line counts more."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from budwood.core.errors import UserError
from budwood.core.pruner import Settings
from budwood.core.registry import methods
from budwood.core.spec import Recipe
from budwood.prune.schedule import Cubic
from budwood.study.recipe import RecipeFile, merged, read, write
from budwood.train.optim import learning_rate

CASES: list[tuple[str, Settings | None]] = [
    (name, settings) for name in methods for settings in (None, *methods.get(name).papers.values())
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_written_and_read(name: str, settings: Settings | None, tmp_path: Path) -> None:
    kind = methods.get(name)
    options = kind.Options(**settings.options) if settings else kind.Options()
    recipe = settings.recipe if settings else Recipe()
    text = write(RecipeFile(method=name, sparsity=0.5, recipe=recipe), options)
    (tmp_path / "recipe.toml").write_text(text)
    back = read(tmp_path / "recipe.toml")
    assert (back.method, back.sparsity, back.recipe) == (name, 0.5, recipe)
    assert kind.Options(**back.option) == options


@pytest.mark.parametrize("name", methods.names())
def test_every_option_is_explained_and_every_cost_told(name: str) -> None:
    kind = methods.get(name)

    def undocumented(model: type[BaseModel]) -> list[str]:
        inner = [f.annotation for f in model.model_fields.values()]
        parts = [p for p in inner if isinstance(p, type) and issubclass(p, BaseModel)]
        own = [n for n, f in model.model_fields.items() if not f.description and f.annotation not in parts]
        return own + [n for part in parts for n in undocumented(part)]

    assert not undocumented(kind.Options)
    assert kind.tags.density == "given" or kind.tags.paper or kind.tags.family == "controls"
    assert kind.tags.density == "given" or kind.cost != "none beyond the training", "what it costs is not told"
    if kind.tags.paper and name not in ("magnitude", "l1"):  # these never had a recipe for ImageNet
        assert kind.papers, "the authors' settings are missing"
        assert all(settings.source for settings in kind.papers.values())


@pytest.mark.parametrize(
    ("method", "settings", "start", "every", "end"),
    [
        ("woodfisher", "resnet50", 40, 6, 90),
        ("gmp", "post-training", 40, 6, 90),
        ("woodfisher", "mobilenetv1", 30, 1, 100),
    ],
)
def test_the_learning_rates_of_woodfishers_program(
    method: str, settings: str, start: int, every: int, end: int
) -> None:
    """IST-DASLab/WoodFisher, policies/trainers.py: the scheduler steps when an epoch ends, (start, every, end) says
    which."""
    recipe = methods.get(method).papers[settings].recipe
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.005)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.92 if every == 1 else 0.6)
    for epoch in range(100):
        assert learning_rate(recipe, 7 * epoch + 3, 7) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if start <= epoch <= end and (epoch - start) % every == 0:
            scheduler.step()


GOLDEN: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("acdc", "global", {"epochs": 100, "batch_size": 256, "lr": 0.256, "momentum": 0.875,
                        "weight_decay": 3.0517578e-5, "warmup_epochs": 5, "label_smoothing": 0}, {}),
    ("gmp", "from-scratch", {"lr": 0.256, "momentum": 0.875, "warmup_epochs": 5, "label_smoothing": 0.1}, {}),
    ("rigl", "erk", {"batch_size": 4096, "lr": 1.6, "weight_decay": 1e-4, "milestones": (30, 70, 90),
                     "label_smoothing": 0.1}, {"every": 100, "allocation": "erk"}),
    ("rigl", "erk-5x", {"milestones": (150, 350, 450)}, {"every": 100}),
    ("str", "resnet50", {"weight_decay": 2.251757813e-5}, {"initial": -3200}),
    ("str", "mobilenetv1", {"weight_decay": 3.751757813e-5}, {"initial": -12800}),
    ("cram", "multi", {"lr": 0.2, "batch_size": 512, "weight_decay": 1e-4, "warmup_epochs": 5},
     {"rho": 0.05, "levels": (0.5, 0.7, 0.9)}),
    ("st3", "st3", {"lr": 0.2, "weight_decay": 5e-5}, {"scaled": False}),
    ("lth-t", "imagenet", {"lr": 1e-4, "batch_size": 256}, {"share": 0.2}),
    ("woodfisher", "resnet50-80", {"lr": 0.005, "batch_size": 256},
     {"update_scale": 0.9, "block": 2000, "dampening": 1e-5}),
    ("woodfisher", "resnet50-98", {"batch_size": 180}, {"block": 1000}),
    ("cap", "resnet50d", {}, {"gradients": 4096, "block": 256, "dampening": 1e-8}),
]  # fmt: skip
"""From the papers and the authors' files, by way of a table that was made before the code."""


@pytest.mark.parametrize(("method", "settings", "recipe", "options"), GOLDEN, ids=[f"{m}-{s}" for m, s, *_ in GOLDEN])
def test_the_authors_settings(method: str, settings: str, recipe: dict[str, Any], options: dict[str, Any]) -> None:
    kind = methods.get(method)
    theirs = kind.papers[settings]
    for given, wanted in ((theirs.recipe, recipe), (kind.Options(**theirs.options), options)):
        found = {name: getattr(given, name) for name in wanted}
        assert {n: v for n, v in found.items() if isinstance(v, str | tuple)} == {
            n: v for n, v in wanted.items() if isinstance(v, str | tuple)
        }
        numbers = {n: v for n, v in wanted.items() if not isinstance(v, str | tuple)}
        assert {n: found[n] for n in numbers} == pytest.approx(numbers, rel=1e-6)


def test_gmp_from_scratch_prunes_in_the_epochs_20_to_79() -> None:
    found = Cubic(**methods.get("gmp").papers["from-scratch"].options["schedule"]).at(0.9, 100)
    assert list(found) == list(range(20, 80)) and found[49] == pytest.approx(0.9 * (1 - (30 / 59) ** 3))


def test_by_hand(tmp_path: Path) -> None:
    text = 'method = "gmp"\nsparsity = 0.9\n[option.schedule]\nend = 0.5\n[recipe]\nepochs = 3\nlr = 0.1\n'
    (tmp_path / "r.toml").write_text(text)
    found = read(tmp_path / "r.toml")
    assert found.option == {"schedule": {"end": 0.5}} and found.recipe == Recipe(epochs=3, lr=0.1)
    assert merged(found, Recipe(lr=0.2)) == Recipe(epochs=3, lr=0.2)
    assert merged(found, Recipe()) == found.recipe
    assert tomllib.loads(write(found, methods.get("gmp").Options(**found.option)))["recipe"]["epochs"] == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("method = ", "is no TOML"),
        ('sparsity = 0.5\nmethod = "gmp"\nspeed = 1', "speed: Extra inputs are not permitted"),
        ('method = "gmp"\nsparsity = 2', "sparsity: Input should be less than 1"),
        ('method = "gmp"\n[recipe]\nlr = 0', "recipe.lr: Input should be greater than 0"),
        ('method = "gmp"\n[recipe]\nschedule = "step"', "Input should be 'cosine' or 'constant'"),
        ("x = " + "[" * 5000, "is no TOML"),
        ("#" * 70_000, "is no recipe: it has 70000 bytes"),
        ("sparsity = 0.5", "method: Field required"),
    ],
)
def test_wrong_ones(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UserError, match="r.toml.*" + complaint):
        read(tmp_path / "r.toml")
