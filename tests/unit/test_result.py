"""Results: one flat row, the same after a round trip, and one line where a file is none."""

import json
import math
from pathlib import Path

import pytest

from budwood.core.errors import UserError
from budwood.core.result import Layer, Result
from budwood.core.spec import Recipe, RunSpec

SPEC = RunSpec(
    model="torchvision:resnet18", parent="ab", task="cifar10", data="cd", method="gmp", where="downstream",
    sparsity=0.9, options={"allocation": "erk"}, seed=2, recipe=Recipe(epochs=3, lr=0.05),
)  # fmt: skip
LAYERS = [
    Layer(name="conv", shape=(4, 3, 3, 3), kept=10, total=108, flops_dense=2160, flops=200),
    Layer(name="fc", shape=(3, 4), kept=12, total=12, flops_dense=24, flops=24),
]


def result() -> Result:
    return Result(
        run_id=SPEC.run_id, spec=SPEC, status="done", metrics={"test_top1": 0.91},
        history=[{"epoch": 0.0, "loss": 1.5}],
        layers=LAYERS, sparsity=0.8167, mask_digest="ef", checkpoint_bytes=100, dense_bytes=480, seconds=1.5,
        environment={"cpu": "x"}, task={"name": "cifar10", "classes": ["a", "b"]}, notes=["a note"],
    )  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    before = result()
    before.save(tmp_path / "result.json")
    after = Result.load(tmp_path / "result.json")
    assert after == before and after.spec.run_id == before.run_id


def test_row_is_flat_and_loses_nothing_that_is_compared() -> None:
    row = result().row()
    assert all(isinstance(value, str | int | float | None) for value in row.values())
    expected = {
        "run_id": SPEC.run_id, "status": "done", "model": "torchvision:resnet18", "method": "gmp", "sparsity": 0.9,
        "seed": 2, "task": "cifar10", "test_top1": 0.91, "measured_sparsity": 0.8167, "bytes": 100, "dense_bytes": 480,
        "flops": 224, "flops_dense": 2184, "recipe_epochs": 3, "recipe_lr": 0.05, "seconds": 1.5,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_a_metric_that_is_no_number_is_kept_and_the_file_stays_json(tmp_path: Path) -> None:
    before = result()
    before.metrics = {"val_loss": math.nan, "other": math.inf}
    before.history = [{"val_loss": -math.inf}]
    before.save(tmp_path / "result.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    after = Result.load(tmp_path / "result.json")
    assert math.isnan(after.metrics["val_loss"])
    assert after.metrics["other"] == math.inf and after.history == [{"val_loss": -math.inf}]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"run_id":'])
def test_what_is_no_result(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"result\.json") as caught:
        Result.load(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.json"):
        with pytest.raises(UserError):
            Result.load(path)


def test_a_field_more_or_a_status_that_is_none_is_refused(tmp_path: Path) -> None:
    stored = json.loads(result().model_dump_json())
    for change in ({"extra": 1}, {"status": "perhaps"}, {"layers": [{"name": "x"}]}):
        (tmp_path / "r.json").write_text(json.dumps(stored | change))
        with pytest.raises(UserError):
            Result.load(tmp_path / "r.json")
