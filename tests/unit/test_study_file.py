"""A study's file: what is refused in one line, what its words stand for."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from budwood.core.errors import UserError
from budwood.study.file import TEMPLATE, StudyFile, read, schema

LEAST: dict[str, Any] = {"name": "n", "out": "runs", "models": ["torchvision:resnet18"], "tasks": ["dtd"]}
LEAST["transfers"] = {"linear": None}


def written(folder: Path, content: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refusal(folder: Path, content: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(written(folder, content))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_template_is_a_study(tmp_path: Path) -> None:
    study = read(written(tmp_path, TEMPLATE))
    assert study.methods[0].method == "magnitude" and study.sparsities == [0.5, 0.7]
    uncommented = "\n".join(
        line[1:] if line.startswith(("#  ", "# upstream", "#   ")) else line for line in TEMPLATE.splitlines()
    ).replace("\n upstream:", "\nupstream:")
    everything = StudyFile.model_validate(yaml.safe_load(uncommented))
    assert everything.upstream.calibration == Path("images/")
    assert everything.transfers["full"].recipe.epochs == 10 and len(everything.tasks) == 3
    assert everything.methods[1].options == {"allocation": "erk"} and everything.models[2].label == "gmp, longer"


def test_every_setting_has_a_word_in_the_schema() -> None:
    found = json.loads(schema())
    for part in (found, *found["$defs"].values()):
        for name, about in part["properties"].items():
            assert about.get("description"), name


def test_short_forms_and_numbers_of_seeds(tmp_path: Path) -> None:
    study = read(written(tmp_path, LEAST | {"transfers": {"linear": {"seeds": 2}, "full": {"seeds": [7, 3]}}}))
    assert [entry.model for entry in study.models] == ["torchvision:resnet18"]
    assert [entry.data for entry in study.tasks] == ["dtd"]
    assert study.seeds("linear") == [0, 1] and study.seeds("full") == [7, 3]
    study = read(written(tmp_path, LEAST | {"protocol": "cvpr22", "transfers": {"linear": None, "full": {}}}))
    assert study.seeds("linear") == [0, 1, 2, 3, 4] and study.seeds("full") == [0, 1, 2]


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("photos", "net.safetensors"):
        (tmp_path / name).mkdir()
    upstream = {"upstream": {"calibration": "photos"}, "methods": ["wanda"], "sparsities": [0.5]}
    tasks = ["photos", {"data": "dtd", "root": "data", "manifest": "m.csv"}]
    models = ["net.safetensors", "sparse/*.safetensors", "timm:resnet18"]
    path = written(tmp_path, LEAST | {"tasks": tasks, "models": models} | upstream)
    monkeypatch.chdir("/")
    study = read(path)
    assert study.out == tmp_path / "runs" and study.upstream.calibration == tmp_path / "photos"
    assert study.tasks[0].data == str(tmp_path / "photos")
    assert study.tasks[1].data == "dtd" and study.tasks[1].root == tmp_path / "data"
    assert study.tasks[1].manifest == tmp_path / "m.csv"
    first, second, third = (entry.model for entry in study.models)
    assert first == str(tmp_path / "net.safetensors") and second == str(tmp_path / "sparse/*.safetensors")
    assert third == "timm:resnet18"


def test_with_a_root_it_is_a_tasks_name_whatever_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    study = read(written(tmp_path, LEAST | {"tasks": [{"data": "dtd", "root": "data"}]}))
    assert study.tasks[0].data == "dtd" and study.tasks[0].root == tmp_path / "data"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": []}, "models: "),
        ({"speed": 3}, "speed: "),
        ({"methods": ["gmp"]}, "methods and sparsities need each other"),
        ({"methods": ["gmp"], "sparsities": [1.5]}, "sparsities.0: "),
        ({"transfers": {"both": {}}}, "transfers.both"),
        ({"transfers": {"full": {"recipe": {"epoch": 3}}}}, "transfers.full.recipe.epoch: "),
        ({"transfers": {"full": {"seeds": 0}}}, "transfers.full.seeds"),
        ({"transfers": {"full": {"recipe": {"distill": 0.5}}}}, "downstream"),
        ({"upstream": {"calibration": "a", "data": "b"}}, "leave one of them out"),
        ({"when": "downstream", "upstream": {"data": "b"}}, "only where pruning is done upstream"),
        ({"protocol": "cvpr23"}, "protocol: "),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path, LEAST | changes)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no YAML" in refusal(tmp_path, "name: [")
    assert "no settings" in refusal(tmp_path, "just words")
    assert "is no YAML" in refusal(tmp_path, "a: " * 3)
    assert "is no YAML" in refusal(tmp_path, "name: !!python/object/apply:os.system [true]")
    with pytest.raises(UserError, match="no file at"):
        read(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(UserError, match="is no study"):
        read(tmp_path / "large.yaml")
