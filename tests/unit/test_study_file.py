"""A study's file: what is refused in one line, what its words stand for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from budwood.core.errors import UserError
from budwood.study import grid
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
    everything = StudyFile.model_validate(yaml.safe_load(uncommented(*range(len(examples())))))
    assert everything.upstream.calibration == Path("images/")
    assert everything.transfers["full"].recipe.epochs == 10 and len(everything.tasks) == 3
    assert everything.methods[1].options == {"allocation": "erk"} and everything.models[2].label == "gmp, longer"


def examples() -> list[list[int]]:
    """The lines of each example that is commented out in the template: a list's item or a setting, and its parts."""
    found: list[list[int]] = []
    for number, line in enumerate(TEMPLATE.splitlines()):
        if re.match(r" *# (- |\w+: )", line):
            found.append([number])
        elif found and re.match(r" *#   ", line) and found[-1][-1] == number - 1:
            found[-1].append(number)
    return found


def uncommented(*which: int) -> str:
    lines = TEMPLATE.splitlines()
    for number in (number for k in which for number in examples()[k]):
        lines[number] = lines[number].replace("# ", "", 1)
    return "\n".join(lines)


def test_each_example_of_the_template_can_be_used_alone(tmp_path: Path) -> None:
    assert [len(lines) for lines in examples()] == [1, 2, 2, 2, 3, 2, 3]
    for k in range(len(examples())):
        assert read(written(tmp_path, uncommented(k))) != read(written(tmp_path, TEMPLATE)), examples()[k]


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


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    text = yaml.safe_dump(LEAST)
    line = text.count("\n") + 1
    assert f"line {line}: name is there twice" in refusal(tmp_path, text + "name: again\n")
    twice = text.replace("  linear: null", "  full: {seeds: 2}\n  full: {seeds: 3}")
    assert "full is there twice" in refusal(tmp_path, twice)
    # What a merge brings is no second key.
    merged = text.replace("  linear: null", "  full: {recipe: &one {epochs: 3, lr: 0.1}}\n  linear:")
    merged += "upstream: {recipe: {<<: *one, epochs: 5}}\n"
    study = read(written(tmp_path, merged))
    assert study.transfers["full"].recipe.epochs == 3
    assert (study.upstream.recipe.epochs, study.upstream.recipe.lr) == (5, 0.1)


@pytest.mark.parametrize("seeds", [[0, 0], [], True, [True], -1, [-1], 0, 1001, "5", 2.5, [2**31], {}])
def test_seeds_that_are_none(seeds: Any, tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST | {"transfers": {"full": {"seeds": seeds}}})
    assert "study.yaml: transfers.full.seeds: must be a number of seeds from 1 to 1000, or a list of differ" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": [{"model": "a", "modle": "b"}]}, "models.0.modle: there is no such setting"),
        ({"models": [{"label": "a"}]}, "models.0.model: is missing"),
        ({"models": [3]}, "models.0: must be a mapping of settings"),
        ({"models": "torchvision:resnet18"}, "models: Input should be a valid list"),
        ({"name": ["n"]}, "name: Input should be a valid string"),
        ({"out": "~nobody-at-all/x"}, "'~nobody-at-all/x' is no path"),
        ({"out": "a\0b"}, "is no path: it has a null byte"),
        ({"models": ["~nobody-at-all/*.safetensors"]}, "is no path"),
        ({"models": ["x" * 5000]}, "is no path"),
        ({"tasks": [{"data": "dtd", "root": "a\0"}]}, "is no path"),
        ({"tasks": [{"data": "dtd", "manifest": "~nobody-at-all/m.csv"}]}, "is no path"),
    ],
)
def test_what_is_wrong_has_its_place(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST | changes)
    assert words in said and str(tmp_path / "study.yaml") in said


@pytest.mark.parametrize(
    ("protocol", "recipe", "words"),
    [
        ("cvpr22", {"head": "lbfgs"}, "the cvpr22 protocol fixes head of a linear transfer; leave it out"),
        ("cvpr22", {"epochs": 10, "lr": 0.1}, "the cvpr22 protocol fixes epochs, lr of a linear transfer; leave them"),
        ("budwood", {"head": "sgd", "batch_size": 32}, "batch_size does not count for a linear head"),
        ("cvpr22", {"head": "sgd", "epochs": 150, "lr": 0.01, "size": 128}, ""),
        ("budwood", {"head": "sgd", "size": 128, "select": "last"}, ""),
    ],
)
def test_what_a_linear_transfer_has_no_use_for(protocol: str, recipe: Any, words: str, tmp_path: Path) -> None:
    content = LEAST | {"protocol": protocol, "transfers": {"linear": {"recipe": recipe}, "full": {"recipe": {"lr": 1}}}}
    if words:
        assert words in refusal(tmp_path, content)
    else:
        assert read(written(tmp_path, content)).transfers["linear"].recipe.size == 128


@pytest.mark.parametrize(
    "content",
    [
        {"transfers": {"full": {"recipe": {"head": "sgd"}}}},
        {"upstream": {"data": "photos", "recipe": {"head": "sgd"}}},
    ],
)
def test_what_counts_for_a_head_alone(content: dict[str, Any], tmp_path: Path) -> None:
    assert "recipe.head counts for a linear head alone" in refusal(tmp_path, LEAST | content)


def test_the_folder_of_the_file_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]*?"
    (folder / "sparse").mkdir(parents=True)
    for name in ("one", "two"):
        (folder / f"sparse/{name}.safetensors").touch()
    study = read(written(folder, LEAST | {"models": ["sparse/*.safetensors", "sparse/one.safetensors"]}))
    models = [Path(entry.model) for entry in grid._models(study)]
    assert models == [folder / f"sparse/{name}.safetensors" for name in ("one", "two", "one")]


# -- the schema ---------------------------------------------------------------------------------------------

STUDIES = Path(__file__).parents[2] / "docs/results/study"
GOOD: list[Any] = [
    LEAST,
    LEAST | {"transfers": {"linear": {"seeds": 5}, "full": {"seeds": [0, 7]}}},
    LEAST | {"methods": ["wanda", {"method": "gmp", "options": {"allocation": "erk"}}], "sparsities": [0.5]},
    LEAST | {"tasks": ["elpv", {"data": "photos", "metric": "top1"}], "transfers": {"full": {"seeds": None}}},
    *(yaml.safe_load(path.read_text()) for path in sorted(STUDIES.glob("*.yaml"))),
    yaml.safe_load(TEMPLATE),
    *(yaml.safe_load(uncommented(k)) for k in range(len(examples()))),
]
BAD: list[Any] = [
    *(LEAST | {"transfers": {"full": {"seeds": seeds}}} for seeds in ([], [0, 0], 0, -1, True, [-1], "5", {})),
    *(LEAST | {"models": models} for models in ("a", [], [3], [None], [{}], [{"model": "a", "x": 1}], [["a"]])),
    *(LEAST | {"transfers": ways} for ways in ({}, None, {"both": None}, {"full": 3}, {"full": {"recipe": None}})),
    *(LEAST | {"tasks": [task]} for task in (7, {"metric": "top1"}, {"data": "a", "metric": "f1"})),
    *(LEAST | changes for changes in ({"speed": 3}, {"protocol": "x"}, {"methods": "gmp"}, {"sparsities": [1]})),
    {name: value for name, value in LEAST.items() if name != "out"},
    [],
]


def test_the_schema_accepts_what_is_read_and_nothing_else() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(json.loads(schema()))
    jsonschema.Draft202012Validator.check_schema(checker.schema)
    assert len(GOOD) == 4 + 3 + 1 + 7
    for content in GOOD:
        StudyFile.model_validate(content)
        assert not list(checker.iter_errors(content)), content
    for content in BAD:
        with pytest.raises(ValidationError):
            StudyFile.model_validate(content)
        assert list(checker.iter_errors(content)), content
