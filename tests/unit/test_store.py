"""The store: what is put in comes out, from many processes at once, and nothing finished is lost to a failure."""

import json
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from budwood.core.errors import UserError
from budwood.core.result import Layer, Result
from budwood.core.spec import RunSpec
from budwood.study.store import FILE, Origin, Store

LAYERS = [Layer(name="conv", shape=(8, 3, 3, 3), kept=100, total=216, flops_dense=10, flops=5)]
TASK = {"name": "photos", "classes": ["a", "b"], "sizes": {"train": 2}, "metric": "top1", "notes": []}


def spec(seed: int = 0, model: str = "timm:resnet18") -> RunSpec:
    return RunSpec(model=model, parent="p" * 64, task="photos", data="d" * 64, seed=seed)


def result(seed: int = 0, status: str = "done", reason: str = "") -> Result:
    s = spec(seed)
    return Result(
        run_id=s.run_id, spec=s, status=status, reason=reason, metrics={"test_top1": 0.5 + seed / 1000},  # type: ignore[arg-type]
        per_class=[0.5, float("nan")], history=[{"epoch": 0.0}], layers=LAYERS, mask_digest="m", seconds=1.5,
        environment={"cpu": "x"}, task=TASK,
    )  # fmt: skip


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    origins = {"p" * 64: Origin("a.safetensors", "mine", 0.9, 0.7), "run:1": Origin(label="gmp")}
    store.plan("s", [spec(0), spec(1), spec(2)], origins)
    store.record([result(0), result(1, "failed", "no disk")])
    by_seed = {found.spec.seed: found for found in store.results()}
    wanted = json.loads(result(0).model_copy(update={"history": []}).model_dump_json())
    assert json.loads(by_seed[0].model_dump_json()) == wanted
    assert (by_seed[1].status, by_seed[1].reason) == ("failed", "no disk")
    assert by_seed[2].status == "skipped" and "planned" in by_seed[2].reason
    assert store.origins() == origins
    store.record_speeds({"run:1": {"ms_per_image": 2.5}})
    assert store.speeds() == {"run:1": {"ms_per_image": 2.5}}
    assert set(store.statuses().values()) == {"done", "failed", "planned"}


def test_a_failure_never_replaces_what_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.record([result(0, "failed", "once")])
    store.record([result(0)])
    store.record([result(0, "failed", "again")])
    assert store.statuses() == {spec(0).run_id: "done"}


def test_a_plan_that_shrinks_forgets_what_never_began(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.plan("one", [spec(0), spec(1), spec(2)], {})
    store.plan("two", [spec(3)], {})
    store.record([result(0)])
    store.plan("one", [spec(1)], {})
    assert set(store.statuses()) == {spec(seed).run_id for seed in (0, 1, 3)}


def test_shared_parts_are_stored_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.record(result(seed) for seed in range(50))
    with sqlite3.connect(tmp_path / FILE) as db:
        assert db.execute("SELECT count(*) FROM shared").fetchone() == (3,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def write_many(root: str, first: int) -> None:
    store = Store(Path(root))
    for seed in range(first, first + 40):
        store.record([result(seed)])


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(str(tmp_path), 40 * k)) for k in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sorted(found.spec.seed for found in Store(tmp_path).results()) == list(range(160))


def test_no_store_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study has run"):
        Store.existing(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="cannot be used") as caught:
        Store.existing(tmp_path)
    assert "\n" not in str(caught.value)
