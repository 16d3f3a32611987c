"""Run specs: the same run has the same name everywhere, and a different one never has."""

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

import budwood.core.spec as spec_module
from budwood.core.files import canonical_json
from budwood.core.spec import Recipe, RunSpec
from budwood.core.task import Preprocessing

BASE: dict[str, Any] = {
    "model": "torchvision:resnet50",
    "parent": "ab" * 32,
    "preprocessing": Preprocessing(),
    "task": "cifar10",
    "metric": "top1",
    "data": "cd" * 32,
    "method": "gmp",
    "where": "downstream",
    "sparsity": 0.9,
    "options": {"allocation": "erk", "schedule": {"end": 0.5, "updates": 8}},
    "transfer": "full",
    "seed": 3,
    "recipe": Recipe(epochs=3),
    "teacher": "ef" * 8,
}
OTHER: dict[str, Any] = {
    "model": "torchvision:resnet18",
    "parent": "ba" * 32,
    "preprocessing": Preprocessing(size=160),
    "task": "cifar100",
    "metric": "mean_per_class",
    "data": "dc" * 32,
    "method": "magnitude",
    "where": "one-shot",
    "sparsity": 0.95,
    "options": {"allocation": "erk", "schedule": {"end": 0.5, "updates": 9}},
    "transfer": "none",
    "seed": 4,
    "recipe": Recipe(epochs=4),
    "protocol": "cvpr22",
    "teacher": None,
}
RECIPE: dict[str, Any] = {
    "epochs": 11, "batch_size": 33, "accumulate": 2, "lr": 0.02, "momentum": 0.8, "weight_decay": 1e-4,
    "schedule": "constant", "milestones": (51,), "gamma": 0.5, "warmup_epochs": 1, "label_smoothing": 0.1, "ema": 0.9,
    "amp": True, "distill": 0.5, "select": "last", "size": 128, "augment": False, "head": "sgd",
    "adapt_bn": True,
}  # fmt: skip


def test_run_id_changes_with_every_field() -> None:
    assert set(OTHER) == set(RunSpec.model_fields), "a new field of the spec needs a line here"
    ids = [RunSpec(**BASE | {name: value}).run_id for name, value in OTHER.items()]
    assert len({RunSpec(**BASE).run_id, *ids}) == len(OTHER) + 1


def test_run_id_changes_with_every_setting_of_the_recipe() -> None:
    assert set(RECIPE) == set(Recipe.model_fields), "a new setting needs a line here"
    ids = [RunSpec(**BASE | {"recipe": Recipe(**{name: value})}).run_id for name, value in RECIPE.items()]
    assert len({RunSpec(**BASE | {"recipe": Recipe()}).run_id, *ids}) == len(RECIPE) + 1


@pytest.mark.parametrize("component", spec_module.COMPONENT_VERSIONS)
def test_run_id_changes_with_every_components_version(component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = RunSpec(**BASE).run_id
    monkeypatch.setitem(spec_module.COMPONENT_VERSIONS, component, 10**6)
    assert RunSpec(**BASE).run_id != before


def test_run_id_does_not_depend_on_order_or_process() -> None:
    spec = RunSpec(**BASE)
    schedule = dict(reversed(BASE["options"]["schedule"].items()))
    turned = BASE | {"options": {"schedule": schedule, "allocation": "erk"}}
    assert RunSpec(**dict(reversed(turned.items()))).run_id == spec.run_id
    assert RunSpec(**BASE | {"recipe": {"epochs": 3}}).run_id == spec.run_id
    code = (
        f"from budwood.core.spec import RunSpec; print(RunSpec.model_validate_json({spec.model_dump_json()!r}).run_id)"
    )
    for seed in ("0", "1", "random"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.strip() == spec.run_id


def test_run_id_can_name_a_folder() -> None:
    run_id = RunSpec(**BASE).run_id
    assert len(run_id) == 16 and set(run_id) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": 1.0}, {"sparsity": -0.1}, {"sparsity": float("nan")}, {"seed": -1}, {"seed": 2**31},
        {"where": "sideways"}, {"transfer": "half"}, {"unknown": 1}, {"recipe": {"epoch": 3}},
        {"transfer": "linear", "where": "downstream"},
    ],
)  # fmt: skip
def test_impossible_runs(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RunSpec(**BASE | change)


@pytest.mark.parametrize(
    "setting",
    [{"lr": 0}, {"lr": float("nan")}, {"momentum": 1}, {"batch_size": 0}, {"ema": 1.0}, {"distill": 1.1}, {"size": 8}],
)
def test_impossible_recipes(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe(**setting)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        RunSpec(**BASE).seed = 5  # type: ignore[misc]


def test_what_counts_for_a_linear_head() -> None:
    given = Recipe(epochs=7, lr=3.0, size=96, select="last")
    fitted = given.for_linear()
    assert fitted == Recipe(size=96, select="last"), "L-BFGS has neither epochs nor a learning rate"
    trained = given.model_copy(update={"head": "sgd"}).for_linear()
    settings = (trained.epochs, trained.batch_size, trained.lr, trained.schedule, trained.size)
    assert settings == (150, 64, 0.01, "constant", 96)


def test_canonical_json() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "ä"}) == '{"a":"\\u00e4","b":[1,2.5,null,true]}'
    with pytest.raises(ValueError):
        canonical_json(float("nan"))
