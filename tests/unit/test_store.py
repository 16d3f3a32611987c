"""The store: what is put in comes out, from many processes at once, and nothing finished is lost to a failure."""

import json
import multiprocessing
import sqlite3
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert by_seed[2].status == "skipped" and by_seed[2].reason == "not done yet"
    assert store.origins() == origins
    store.record_speeds({"run:1": {"ms_per_image": 2.5}})
    assert store.speeds() == {"run:1": {"ms_per_image": 2.5}}
    assert set(store.statuses().values()) == {"done", "failed", "planned"}
    with sqlite3.connect(tmp_path / FILE) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


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


seeds = st.lists(st.integers(0, 5), unique=True)


@settings(max_examples=20, deadline=None)  # every step waits for the disk
@given(st.lists(st.one_of(st.tuples(st.sampled_from("ab"), seeds), st.integers(0, 5)), max_size=8))
def test_plans_of_two_studies(steps: list[tuple[str, list[int]] | int]) -> None:
    """Whatever is planned and done in whatever order: a study has its last plan, and a result is never lost."""
    plans: dict[str, list[int]] = {"a": [], "b": []}
    done: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for step in steps:
            if isinstance(step, int):
                store.record([result(step)])
                done.add(step)
            else:
                store.plan(step[0], [spec(seed) for seed in step[1]], {})
                plans[step[0]] = step[1]

        def found(study: str | None) -> dict[int, str]:
            return {r.spec.seed: r.status for r in store.results(study)}

        def wanted(planned: set[int]) -> dict[int, str]:
            return {seed: "done" if seed in done else "skipped" for seed in planned}

        assert found("a") == wanted(set(plans["a"])) and found("b") == wanted(set(plans["b"]))
        assert found(None) == wanted({*plans["a"], *plans["b"]})
        assert set(store.statuses()) == {spec(seed).run_id for seed in {*plans["a"], *plans["b"], *done}}


def test_shared_parts_are_stored_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.record(result(seed) for seed in range(50))
    with sqlite3.connect(tmp_path / FILE) as db:
        assert db.execute("SELECT count(*) FROM shared").fetchone() == (3,)


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
    assert Store(tmp_path).statuses() == {spec(seed).run_id: "done" for seed in range(160)}


def open_together(root: str, together: Barrier) -> None:
    for k in range(60):
        together.wait(60)
        for _ in range(3):
            Store(Path(root) / str(k)).record([])


def test_new_stores_that_many_processes_open_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(6)
    openers = [context.Process(target=open_together, args=(str(tmp_path), together)) for _ in range(6)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
        assert opener.exitcode == 0
    assert {path.name for path in (tmp_path / "0").iterdir()} == {FILE}


def plan_often(root: str, study: str) -> None:
    for _ in range(20):
        Store(Path(root)).plan(study, [spec(seed) for seed in range(len(study), 30)], {})


def test_studies_that_are_planned_at_once(tmp_path: Path) -> None:
    """From no file at all: one process makes the tables, and no plan is cut by another."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=plan_often, args=(str(tmp_path), "s" * length)) for length in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = Store(tmp_path)
    assert [len(store.results("s" * length)) for length in (1, 2, 3)] == [29, 28, 27] and len(store.results()) == 29


def test_no_store_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study has run"):
        Store.existing(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="cannot be used") as caught:
        Store.existing(tmp_path)
    assert "\n" not in str(caught.value)


def changed(folder: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(folder / FILE) as db:
        db.execute(statement, values)
    db.close()


def test_another_version_is_one_line(tmp_path: Path) -> None:
    Store(tmp_path).record([result()])
    changed(tmp_path, "PRAGMA user_version = 7")
    with pytest.raises(UserError, match="has version 7, this Budwood reads 1; delete it"):
        Store.existing(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        ("UPDATE runs SET result = '{\"run_id\": 1}'",),
        ("UPDATE runs SET result = 'x'",),
        ("UPDATE shared SET value = '{'",),
        ("DELETE FROM shared",),
        ("UPDATE shared SET value = '[{\"name\": 1}]'",),
        ("DROP TABLE shared",),
    ],
)
def test_a_row_that_cannot_be_read_is_one_line(damage: tuple[str], tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.plan("s", [spec()], {})
    store.record([result()])
    changed(tmp_path, *damage)
    with pytest.raises(UserError, match=r"cannot be used .*delete it: `budwood study run` makes it again"):
        store.results()


def test_a_spec_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.plan("s", [spec()], {})
    changed(tmp_path, "UPDATE runs SET spec = '{}'")
    with pytest.raises(UserError, match="Field required"):
        store.results()


def test_a_file_from_before_there_were_plans(tmp_path: Path) -> None:
    """Its results stay, and each run is in the plan of the one study that it knew."""
    db = sqlite3.connect(tmp_path / FILE)
    db.executescript(
        "PRAGMA journal_mode=WAL;"
        "CREATE TABLE runs (run_id TEXT PRIMARY KEY, study TEXT NOT NULL, spec TEXT NOT NULL,"
        " status TEXT NOT NULL DEFAULT 'planned', reason TEXT NOT NULL DEFAULT '', result TEXT, task TEXT,"
        " environment TEXT, mask TEXT);"
        "CREATE TABLE shared (digest TEXT PRIMARY KEY, value TEXT NOT NULL);"
        "CREATE TABLE networks (parent TEXT PRIMARY KEY, source TEXT, label TEXT, sparsity REAL, accuracy REAL);"
        "CREATE TABLE speeds (parent TEXT PRIMARY KEY, row TEXT NOT NULL);"
        "INSERT INTO shared VALUES ('t', '{}'), ('m', '[]');"
        """INSERT INTO speeds VALUES ('run:1', '{"ms_per_image":2.5}')"""
    )
    for seed, study in ((0, "a"), (1, "b")):
        row = (spec(seed).run_id, study, spec(seed).model_dump_json(), result(seed).model_dump_json())
        db.execute("INSERT INTO runs VALUES (?, ?, ?, 'done', '', ?, 't', 't', 'm')", row)
    db.execute("INSERT INTO runs (run_id, study, spec) VALUES (?, 'a', ?)", (spec(2).run_id, spec(2).model_dump_json()))
    db.commit()
    db.close()
    store = Store.existing(tmp_path)
    assert [(found.spec.seed, found.status) for found in store.results("a")] == [(0, "done"), (2, "skipped")]
    assert [found.spec.seed for found in store.results("b")] == [1] and len(store.results()) == 3
    assert store.speeds() == {"run:1": {"ms_per_image": 2.5}}
    Store(tmp_path).record([result(2)])
    assert [found.status for found in Store(tmp_path).results("a")] == ["done", "done"]
