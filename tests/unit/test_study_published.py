"""The published results: every mean and relative error to the last digit that was worked out elsewhere."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from budwood.cli import main
from budwood.report import published
from budwood.report.study.cells import Backbone, Group
from budwood.report.study.compare import comparisons, tally
from budwood.report.study.rank import mean_ranks
from budwood.report.study.relate import linear_against_full
from budwood.report.study.summary import by_grain, relative_error

HERE = Path(__file__).parents[1]
SHARED = HERE.parents[1] / "shared"
"""Where the study's raw files and a text with its tables may lie beside a checkout."""

RESNET, MOBILENET = published.MODELS
LINEAR, FULL = Group("linear", "cvpr22", 150), Group("full", "cvpr22", 150)


def golden() -> list[dict[str, str]]:
    lines = (HERE / "golden" / "published_means.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def shown(row: published.Row) -> dict[str, str]:
    """A row as the golden file writes it."""
    texts = {task: f"{100 * mean:.2f}" for task, mean in row.means.items()}
    return texts | {"mean": f"{100 * row.mean:.2f}", "relative_error": f"{100 * row.relative_error:+.1f}%"}


def key(row: published.Row) -> tuple[str, str, str, str]:
    return row.group.transfer, row.backbone.model, row.backbone.method, f"{row.backbone.sparsity:g}"


def test_every_mean_and_relative_error() -> None:
    ours = {key(row): row for row in published.rows()}
    theirs = golden()
    assert len(ours) == len(theirs) == 60
    for row in theirs:
        names = ("transfer", "model", "method", "sparsity")
        found = ours[tuple(row.pop(name) for name in names)]
        count = row.pop("no_worse")
        assert shown(found) == row
        if count:
            assert found.no_worse == int(count)


def test_markdown_has_the_same_rows() -> None:
    text = published.markdown()
    tasks = published.table().tasks
    for row in golden():
        sparsity = f"{100 * float(row['sparsity']):g}"
        cells = [row["method"], sparsity, *(row[t] for t in tasks), row["mean"], row["relative_error"]]
        assert f"| {' | '.join(cells)} | " in text
    assert len(re.findall("^## ", text, re.M)) == 4


@pytest.mark.skipif(not SHARED.exists(), reason="the study's own files are not beside this checkout")
def test_golden_file_against_the_text_it_came_from() -> None:
    text = (SHARED / "spec" / "protocol.md").read_text()
    found = []
    for section in ("2.3", "2.4", "2.5", "2.6"):
        table = text.partition(f"\n### {section} ")[2].partition("\n### ")[0]
        rows = [
            [cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if line[:1] == "|"
        ]
        found += [sorted(row[2:]) for row in rows[2:]]
    assert found == [sorted(list(row.values())[4:-1]) for row in golden()]


@pytest.mark.skipif(not SHARED.exists(), reason="the study's own files are not beside this checkout")
def test_every_row_is_its_source_s() -> None:
    sources = {
        "resnet50_linear": "linear_transfer", "resnet50_full": "full_transfer",
        "mobilenet_v1_linear": "linear_mobilenet_transfer", "mobilenet_v1_full": "full_mobilenet_transfer",
    }  # fmt: skip
    assert set(sources) == set(published.FILES)
    names: dict[str, set[str]] = {}
    for ours, theirs in sources.items():
        with (SHARED / "data" / "published" / f"{theirs}_results.csv").open() as file:
            raw = list(csv.DictReader(file))
        rows = list(published._rows(ours))
        assert len(rows) == len(raw)
        for row, source in zip(rows, raw, strict=True):
            assert (row["accuracy"], f"seed_{row['seed']}") == (source["val_acc"], source["seed"])
            assert float(row["sparsity"]) == float(source["sparsity"])
            names.setdefault(source["dset"], set()).add(row["task"])
            names.setdefault(source["model"], set()).add(row["method"])
    assert all(len(renamed) == 1 for renamed in names.values()) and len(names) == 12 + 8
    assert len({name for renamed in names.values() for name in renamed}) == 20


def test_seeds_of_the_cells() -> None:
    """Five in linear transfer; three in full, but for three cells of four; one on MobileNet, but for twelve of two."""
    counts = Counter((c.backbone.model, c.group.transfer, c.n) for c in published.table().cells)
    assert counts == {
        (RESNET, "linear", 5): 240, (RESNET, "full", 3): 237, (RESNET, "full", 4): 3,
        (MOBILENET, "linear", 5): 120, (MOBILENET, "full", 1): 108, (MOBILENET, "full", 2): 12,
    }  # fmt: skip
    twice = published.table().at(FULL, Backbone(MOBILENET, "str", 0.75), "fgvcaircraft")
    assert twice is not None and dict(twice.scores) == {21: 0.7443, 1021: 0.7422}


def test_upstream_accuracies_are_of_networks_that_were_transferred() -> None:
    found = published.upstream()
    known = set(published.table().backbones)
    assert set(found) <= known and len(found) == 16
    assert found[Backbone(RESNET, "rigl erk 5x", 0.9)] == 0.759  # without label smoothing, as it was transferred
    assert not any(b.method == "str" for b in found)  # the study trained its own
    assert set(published.FINE_GRAINED) == set(published.table().tasks)
    assert set(published.FAMILIES) == {b.method for b in known if not b.dense}


def test_headlines_of_the_study() -> None:
    """Re-growth and regularisation lead linear transfer, second-order pruning full transfer; the gains of linear
    transfer are on fine-grained tasks."""
    table = published.table()
    families = {}
    for group in (LINEAR, FULL):
        for ranks in mean_ranks(table, group):
            if ranks.model == RESNET and ranks.sparsity < 0.98:
                families[group.transfer, ranks.sparsity] = list(ranks.by_family(published.FAMILIES))
                assert len(ranks.tasks) == 12
    assert {best[0] for (way, _), best in families.items() if way == "full"} == {"second-order"}
    assert {best[0] for (way, _), best in families.items() if way == "linear"} <= {"re-growth", "regularisation"}
    assert {best[-1] for (way, _), best in families.items() if way == "linear"} == {"lottery-ticket"}
    for sparsity in (0.8, 0.9, 0.95):
        fine, general = by_grain(table, LINEAR, Backbone(RESNET, "acdc", sparsity), published.FINE_GRAINED)
        assert fine is not None and general is not None
        assert fine.value < min(0, general.value)
        assert len(fine.tasks) == len(general.tasks) == 6
    gains = linear_against_full(table, LINEAR, FULL)
    below = {(g.backbone.method, g.task) for g in gains if g.gain < 0}
    assert len(gains) == 360 and {("rigl erk 1x", "sun397"), ("rigl erk 5x", "sun397")} <= below  # the known anomaly


def test_outcomes_and_intervals_on_real_numbers() -> None:
    table = published.table()
    found = comparisons(table, LINEAR)
    assert len(found) == 28 * 12 and {c.test.name for c in found} == {"paired t"}
    bad = tally(found, Backbone(RESNET, "lth-t", 0.95))
    assert (bad.loss, bad.no_worse) == (12, 0)
    full = comparisons(table, FULL)
    untested = {c.backbone.model for c in full if c.outcome == "untested"}
    assert untested == {MOBILENET}  # its dense network has one seed
    error = relative_error(table, LINEAR, Backbone(RESNET, "acdc", 0.8))
    assert error is not None and error.interval is not None and error.interval[0] < error.value < error.interval[1]


# -- budwood report published ---------------------------------------------------------------------------------


def budwood(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == code


def test_json_is_unrounded(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    budwood("report", "published", "--json")
    rows = json.loads(capsys.readouterr().out)
    dense = rows[0]
    assert (dense["model"], dense["transfer"], dense["protocol"], dense["method"]) == (
        RESNET, "linear", "cvpr22", "dense",
    )  # fmt: skip
    assert dense["means"]["fgvcaircraft"] == pytest.approx((0.4923 + 0.4926 + 0.4912 + 0.4903 + 0.4915) / 5)


def test_on_the_screen_and_in_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    budwood("report", "published", "-o", "tables.md")
    assert (tmp_path / "tables.md").read_text() == published.markdown()
    out, err = capsys.readouterr()
    assert not out and "│ acdc │ 80 % │ 75.53 │ -3.2% │ 9/12 │ 84.65 │ +7.7% │ 0/12 │" in " ".join(err.split())
    budwood("report", "published", "-o", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "75.53" in page and "401.6" in page and "Apache-2.0" in page


def test_a_folder_of_that_name_is_the_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "published").mkdir()
    budwood("report", "published", code=2)
    assert "no finished run in published" in capsys.readouterr().err


def test_another_kind_of_file_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    budwood("report", "published", "-o", "tables.pdf", code=2)
    assert capsys.readouterr().err == "budwood: tables.pdf: the published results are written as NAME.html or NAME.md\n"
