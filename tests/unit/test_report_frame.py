"""Grouping, references, means, deltas and intervals, all computed by hand."""

import io

import pytest
from rich.console import Console

from budwood.core.result import Layer, Result
from budwood.core.spec import Recipe, RunSpec
from budwood.report import words
from budwood.report.frame import Stat, frames, latency_frames, wilson
from budwood.report.screen import text_table

TASK = {
    "name": "Leaves",
    "classes": ["ash", "elm", "oak"],
    "sizes": {"train": 300, "val": 100, "test": 100},
    "metric": "top1",
    "source": "a folder of images",
    "licence": "CC0",
    "notes": [],
}


def result(
    accuracy: float = 0.9, sparsity: float = 0.0, *, method: str = "rigl", status: str = "done",
    measured: float | None = None, task: dict | None = None, metric: str = "top1", layers: int = 2,
    reason: str = "", **spec,
) -> Result:  # fmt: skip
    """A run of 100 kB dense; pruned unless its sparsity is zero."""
    where = spec.pop("where", "upstream" if sparsity else "none")
    method = method if sparsity else "dense"
    fields = {"model": "torchvision:resnet18", "parent": "p", "task": "leaves", "data": "d", **spec}
    made = RunSpec(method=method, where=where, sparsity=sparsity, **fields)
    each = [Layer(name=f"layer{i}.conv", shape=(10, 10, 1, 1), kept=round(100 * (1 - sparsity)), total=100,
                  flops_dense=10**9, flops=round(10**9 * (1 - sparsity))) for i in range(layers)]  # fmt: skip
    done = status == "done"
    return Result(
        run_id=made.run_id, spec=made, status=status, reason=reason, layers=each if done else [],
        metrics={f"test_{metric}": accuracy, f"val_{metric}": accuracy + 0.01} if done else {},
        sparsity=sparsity if measured is None else measured, mask_digest="m" * 64 if sparsity else "",
        checkpoint_bytes=int(1e5 * (1 - sparsity)), dense_bytes=100_000, seconds=90,
        environment={"budwood": "0.1.0", "cpu": "a processor"}, task=TASK if task is None else task,
    )  # fmt: skip


def times(label: str, backend: str, ms: float | None, batch: int = 1, reason: str = "") -> dict:
    return {
        "label": label, "backend": backend, "size": 224, "batch": batch, "threads": 2,
        "status": "done" if ms else "skipped", "reason": reason,
        "ms_per_image": ms, "q1": ms and ms * 0.9, "q3": ms and ms * 1.1,
    }  # fmt: skip


def test_wilson_interval_against_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    published = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)]
    for hits, n, low, high in published:
        assert wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)


def test_stat() -> None:
    stat = Stat.of([1, 2, 4])
    assert stat is not None
    assert (stat.mean, stat.std, stat.n) == pytest.approx((7 / 3, (7 / 3) ** 0.5, 3))  # variance (16+1+25)/9 / 2
    assert Stat.of([5]) == Stat(5, None, 1)
    assert Stat.of([]) is None


def test_seeds_become_one_row_and_deltas_are_paired_by_seed() -> None:
    runs = [result(0.90, seed=0), result(0.94, seed=1)]
    runs += [result(0.89, 0.8, seed=0), result(0.92, 0.8, seed=1), result(0.10, 0.8, seed=2)]
    (frame,) = frames(runs)
    dense, pruned = frame.rows
    assert (dense.dense, pruned.dense) == (True, False)
    assert dense.test == Stat(pytest.approx(0.92), pytest.approx(0.02 * 2**0.5), 2)
    assert dense.delta is None
    assert pruned.test is not None and pruned.test.n == 3
    assert pruned.delta == Stat(pytest.approx(-1.5), pytest.approx(0.5**0.5), 2)  # -1 and -2; seed 2 has no reference


def test_a_reference_is_of_the_same_transfer_and_of_the_same_recipe_where_there_is_one() -> None:
    long = Recipe(epochs=100)
    runs = [result(0.5, transfer="linear"), result(0.8), result(0.9, recipe=long)]
    runs += [
        result(0.89, 0.8, recipe=long),
        result(0.49, 0.9, transfer="linear"),
        result(0.7, 0.5, recipe=Recipe(epochs=3)),
    ]
    deltas = {r.spec.sparsity: r.delta.mean for r in frames(runs)[0].rows if r.delta}
    assert deltas == pytest.approx({0.8: -1, 0.9: -1, 0.5: -10})


def test_without_a_reference_there_is_no_delta() -> None:
    (frame,) = frames([result(0.9, transfer="linear"), result(0.8, 0.9)])
    assert [r.delta for r in frame.rows] == [None, None]
    assert "no dense run to compare with" in words.headline(frame)


def test_rows_differ_by_everything_but_seed_and_parent() -> None:
    runs = [result(sparsity=0.8, seed=1, parent="a"), result(sparsity=0.8, seed=2, parent="b")]
    runs += [result(sparsity=0.8, options={"block": 4}), result(sparsity=0.8, where="one-shot"), result(sparsity=0.9)]
    (frame,) = frames(runs)
    assert sorted(len(r.results) for r in frame.rows) == [1, 1, 1, 2]
    assert "upstream, block 4" in {words.details(r, frame) for r in frame.rows}


def test_tasks_and_versions_of_their_data_stay_apart() -> None:
    assert len(frames([result(), result(data="other"), result(task={}, data="third")])) == 3
    assert frames([]) == []


def test_the_task_names_its_metric() -> None:
    (frame,) = frames([result(0.7, metric="mean_per_class", task={**TASK, "metric": "mean_per_class"})])
    assert frame.rows[0].test == Stat(0.7, None, 1)
    assert "70.0\u00a0% mean per-class accuracy" in words.headline(frame)


@pytest.mark.parametrize(
    ("pruned", "told"),
    [
        ([(0.895, 0.8), (0.891, 0.9), (0.85, 0.95)], "With 90\u00a0% of its weights pruned (rigl, upstream) it"),
        ([(0.891, 0.9)], "it reaches 89.1\u00a0%, 0.9 points less."),
        ([(0.91, 0.8)], "it reaches 91.0\u00a0%, 1.0 points more."),
        ([(0.90, 0.8)], "it reaches 90.0\u00a0%, as much."),
        ([(0.5, 0.8), (0.3, 0.9)], "No pruned network comes within 1 point of that. The nearest has 80\u00a0%"),
        ([], "No pruned network is among these runs."),
    ],
)  # fmt: skip
def test_headline_tells_the_sparsest_that_is_close(pruned: list[tuple[float, float]], told: str) -> None:
    (frame,) = frames([result(0.9), *(result(a, s) for a, s in pruned)])
    assert told in words.headline(frame)
    assert words.headline(frame).startswith("Dense, torchvision:resnet18 reaches 90.0\u00a0% top-1 accuracy")


def test_a_weak_dense_reference_flatters_nothing() -> None:
    runs = [result(0.9), result(0.5, transfer="linear"), result(0.8, 0.8), result(0.5, 0.99, transfer="linear")]
    (frame,) = frames(runs)
    assert "No pruned network comes within 1 point" in words.headline(frame)


def test_headline_says_when_a_difference_may_be_noise() -> None:
    noise = "smaller than the uncertainty"  # 100 test images, 86 %: the interval is 77.9 to 91.5, half of it 6.8
    assert noise in words.headline(frames([result(0.9), result(0.86, 0.8)])[0])
    assert noise not in words.headline(frames([result(0.9), result(0.7, 0.8)])[0])


def test_headline_without_a_finished_run() -> None:
    (frame,) = frames([result(status="failed", reason="boom")])
    assert words.headline(frame) == "No run on Leaves finished."
    assert words.cautions(frame) == []


def test_cautions() -> None:
    told = " ".join(words.cautions(frames([result(0.9)])[0]))
    low, high = wilson(0.9, 100)
    assert f"100 test images, an accuracy of 90.0\u00a0% is uncertain by about ±{50 * (high - low):.1f} points" in told
    assert "±6.0 points" in told  # 82.56 to 94.48
    assert "Fewer than three seeds" in told and "first impression" not in told
    tiny = {**TASK, "sizes": {"train": 3, "val": 3, "test": 1}}
    told = " ".join(words.cautions(frames([result(1.0, task=tiny)])[0]))
    assert "So few images for 3 classes (3 training, 1 test)" in told and "1 test image, " in told


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (94.3, "94.3"), (8.113, "8.11"), (0.638, "0.638"), (1234.5, "1234"), (0.00051, "0.000510")],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert words.number(value) == text


def test_small_words() -> None:
    assert words.signed(-0.04) == "0.0" and words.signed(-1.25) == "−1.2" and words.signed(2) == "+2.0"
    assert words.sparsity(0.95) == "95\u00a0%" and words.sparsity(0.99999) == "99.99\u00a0%"
    assert [words.duration(s) for s in (0.5, 59, 61, 3 * 3600 + 120)] == [
        "0.500\u00a0s", "59\u00a0s", "1\u00a0min 1\u00a0s", "3\u00a0h 2\u00a0min",
    ]  # fmt: skip
    assert words.count(1, "class") == "1 class" and words.count(1020, "image") == "1,020 images"


def test_latency_ratios_are_within_a_backend_and_a_batch() -> None:
    rows = [
        times("dense", "eager", 50),
        times("95 %", "eager", 40),
        times("dense", "engine", 30),
        times("95 %", "engine", 10),
    ]
    rows += [times("dense", "eager", 5, batch=8), times("95 %", "eager", 5, batch=8)]
    one, eight = latency_frames(rows)
    assert [one.ratio(r) for r in one.rows] == [None, 1.25, None, 3.0]
    assert [eight.ratio(r) for r in eight.rows] == [None, 1.0]


def test_latency_sentence_says_what_was_measured() -> None:
    claim = "Zeros alone do not make PyTorch or ONNX Runtime faster"
    agree = latency_frames([times("dense", "eager", 50), times("95 %", "eager", 49)])
    told = words.latency_sentence(agree)
    assert claim in told and "at 1.02× the speed of dense on eager" in told
    against = latency_frames([times("dense", "eager", 50), times("95 %", "eager", 25)])
    assert "Not so in this measurement: 95 % at 2.00× on eager (batch 1)." in words.latency_sentence(against)
    engine = words.latency_sentence(latency_frames([times("dense", "engine", 30), times("95 %", "engine", 10)]))
    assert claim not in engine and "Where zeros are skipped (engine)" in engine and "3.00×" in engine
    assert words.latency_sentence(latency_frames([times("dense", "eager", 50)])) == ""
    assert words.latency_sentence([]) == ""


def test_a_backend_missing_for_all_networks_is_one_row() -> None:
    rows = [times(label, "openvino", None, reason="not installed") for label in ("dense", "95 %")]
    rows += [times("dense", "eager", 1), times("95 %", "eager", None, reason="disagrees")]
    (frame,) = latency_frames(rows)
    shown = [(r["backend"], r["label"]) for r in frame.reading()]
    assert shown == [("openvino", ""), ("eager", "dense"), ("eager", "95 %")]


def test_text_table_has_every_row_and_takes_brackets_as_text() -> None:
    runs = [result(0.9), result(0.8, 0.8, method="[bold]odd"), result(status="failed", reason="[red]boom")]
    tables = text_table(
        runs, [times("dense [x]", "eager", 1), times("dense [x]", "openvino", None, reason="[y] missing")]
    )
    assert [t.row_count for t in tables] == [3, 2]
    console = Console(width=200, file=io.StringIO())
    console.print(*tables)
    text = console.file.getvalue()
    for part in ("[bold]odd", "[red]boom", "dense [x]", "[y] missing", "−10.0"):
        assert part in text
