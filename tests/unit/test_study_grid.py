"""A study's plan: networks that a report could not tell apart, and where the runs may go."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from budwood.core.errors import UserError
from budwood.models.network import open_network
from budwood.study.file import StudyFile
from budwood.study.grid import expand

NETWORK = """
from torch import nn

def small(num_classes=3):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    net.preprocessing = {"size": 32, "resize": 32}
    return net
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two dense networks of one architecture, images to transfer to, and two prunings on the way."""
    (tmp_path / "gridnet.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    for seed in (0, 1):
        torch.manual_seed(seed)
        open_network("py:gridnet.small").checkpoint().save(tmp_path / f"{seed}.safetensors")
    for k, label in enumerate(("a", "b")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (8, 8), (k * 90, n, 0)).save(tmp_path / "photos" / label / f"{n}.png")
    return {
        "name": "n", "out": tmp_path / "runs", "tasks": [str(tmp_path / "photos")], "when": "downstream",
        "models": [str(tmp_path / "0.safetensors"), {"model": str(tmp_path / "1.safetensors"), "label": "other"}],
        "methods": ["magnitude"], "sparsities": [0.5, 0.8], "transfers": {"linear": None, "full": {"seeds": 2}},
    }  # fmt: skip


def refusal(study: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        expand(StudyFile.model_validate(study))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_two_networks_pruned_downstream_need_an_architecture_each(study: dict[str, Any]) -> None:
    said = refusal(study)
    assert "0.safetensors and " in said and "1.safetensors are both magnitude (one-shot) at 0.5" in said
    assert "leave one of them out" in said
    # Without pruning the label tells them apart, and one of them alone can be pruned.
    assert len(expand(StudyFile.model_validate(study | {"methods": [], "sparsities": []})).specs) == 2 * 3
    assert len(expand(StudyFile.model_validate(study | {"models": study["models"][:1]})).specs) == 3 * 3


def test_seeds_of_a_head_that_has_none_count_where_a_mask_has_one(study: dict[str, Any]) -> None:
    one = study | {"models": study["models"][:1], "sparsities": [0.5], "transfers": {"linear": {"seeds": 3}}}
    for methods, seeds in ((["magnitude"], [0]), (["magnitude", "random"], [0, 1, 2])):
        specs = expand(StudyFile.model_validate(one | {"methods": methods})).specs
        assert [(spec.method, spec.seed) for spec in specs] == [(m, s) for s in seeds for m in ("dense", *methods)]
    upstream = expand(StudyFile.model_validate(one | {"methods": ["random"], "when": "upstream"}))
    assert [spec.seed for spec in upstream.transfers] == [0, 0]  # pruned once, for all seeds


@pytest.mark.parametrize("when", ["upstream", "downstream"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["magnitude", "magnitude"]}, "magnitude at 0.5 is there twice"),
        ({"sparsities": [0.8, 0.80001]}, "magnitude at 0.8 is there twice"),
        ({"methods": ["magnitude", {"method": "magnitude", "options": {"allocation": "erk"}}]}, ""),
    ],
)
def test_a_pruning_that_is_there_twice(when: str, changes: dict[str, Any], words: str, study: dict[str, Any]) -> None:
    study |= {"when": when, "models": study["models"][:1]} | changes
    if words:
        assert words in refusal(study)
        return
    specs = expand(StudyFile.model_validate(study)).specs
    assert len({spec.run_id for spec in specs}) == len(specs)


def test_a_folder_that_is_none_for_runs(study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/spec.json").touch()
    for out, words in (("photos", "holds other files"), ("gridnet.py", "is a file"), ("run", "the folder of one run")):
        assert words in refusal(study | {"out": tmp_path / out})
    ours, study = tmp_path / "ours", study | {"models": study["models"][:1]}
    for name in (".hidden", "budwood.json", "report.html"):
        ours.mkdir(exist_ok=True)
        (ours / name).touch()
        if name != "report.html":
            assert expand(StudyFile.model_validate(study | {"out": ours})).specs
    assert expand(StudyFile.model_validate(study | {"out": ours})).specs
