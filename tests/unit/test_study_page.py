"""The study's page: self-contained, escaped, complete without its script, true to the cells; its CSV and PDF files."""

import base64
import csv
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood.core.result import Result
from budwood.report import published
from budwood.report.figure import COLOURS, MORE, PAPER, Plot
from budwood.report.study import headline, tables
from budwood.report.study.cells import Backbone, Cell, Group, Table, table
from budwood.report.study.matrix import matrix, p_value
from budwood.report.study.numbers import Study
from budwood.report.study.page import SCRIPT, figures, page, write
from budwood.report.study.plots.common import looks

from .test_report_frame import TASK, result
from .test_report_html import EVIL, Page, _contrast, check_accessible

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LINEAR, FULL = Group("linear", "budwood"), Group("full", "budwood", 10)
DENSE = Backbone("net", "dense", 0.0)


def cell(method: str, sparsity: float, task: str, *scores: float, group: Group = LINEAR, model: str = "net") -> Cell:
    return Cell(group, Backbone(model, method, sparsity), task, dict(enumerate(scores)))


def runs() -> list[Result]:
    """Two tasks, dense and three pruned networks, both ways; one run failed, one is waited for, one cell is missing."""
    found = []
    for task, model in itertools.product(("bark", "leaves"), ("resnet18",)):
        for method, sparsity in (("rigl", 0.0), ("rigl", 0.8), ("rigl", 0.95), ("gmp", 0.8)):
            for transfer, seed in (("linear", 0), ("linear", 1), ("full", 0)):
                accuracy = 0.9 - sparsity / 20 - (method == "gmp") / 50 + seed / 200 + (task == "bark") / 100
                made = result(
                    accuracy, sparsity, method=method, task={**TASK, "name": task.title()}, data=task, seed=seed,
                    model=model, transfer=transfer, protocol="budwood",
                )  # fmt: skip
                spec = made.spec.model_copy(update={"task": task})
                metrics = {**made.metrics, "test_loss": 0.4, "test_ece": 0.05 + sparsity / 50}
                classes = [accuracy + 0.01 * seed, accuracy, accuracy - 0.02 * (sparsity > 0.9)]
                found.append(
                    made.model_copy(
                        update={"spec": spec, "run_id": spec.run_id, "metrics": metrics, "per_class": classes}
                    )
                )
    lost = {"status": "failed", "reason": "out of memory", "metrics": {}}
    waiting = {"status": "skipped", "reason": "planned, not finished", "metrics": {}}
    places = {("gmp", "bark", "full", 0): lost, ("gmp", "bark", "linear", 1): waiting}
    whole = [
        r.model_copy(update=places.get((r.spec.method, r.spec.task, r.spec.transfer, r.spec.seed), {})) for r in found
    ]
    return [r for r in whole if (r.spec.method, r.spec.task, r.spec.transfer) != ("gmp", "leaves", "linear")]


def known(of: Table) -> dict:
    own = of.backbones
    return {
        "upstream": {b: 0.7 - i / 100 for i, b in enumerate(own)},
        "speed": {b: 30.0 - 5 * i for i, b in enumerate(own)},
        "fine_grained": {"bark": True, "leaves": False},
        "families": {"rigl": "re-growth", "gmp": "magnitude"},
        "published": Table(of.cells[:3]),
    }


@functools.cache
def study() -> tuple[Table, str, Page]:
    of = table(runs())
    html = page(of, "A study", **known(of))
    return of, html, Page(html)


def rows(html: str, heading: str) -> list[str]:
    """The table whose caption begins so: the caption, then the text of each row, a space between its cells."""
    for found in re.findall(r"<table.*?</table>", html, flags=re.S):
        caption = Page(re.search("<caption.*?</caption>", found, flags=re.S)[0]).text  # type: ignore[index]
        if caption.startswith(heading):
            parts = [re.sub("<(td|small)", r" <\1", row) for row in re.findall(r"<tr.*?</tr>", found, flags=re.S)]
            return [caption, *(" ".join(Page(part).text.split()) for part in parts)]
    raise AssertionError(f"no table {heading}")


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


# -- the file -------------------------------------------------------------------------------------------------


def test_one_script_that_the_page_itself_allows_and_nothing_is_loaded() -> None:
    _, html, parsed = study()
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(str(m["content"]) for m in parsed.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(parsed.named("script")) == 1 and parsed.named("script")[0] == {}
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in parsed.tags}
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on")]
    assert "@import" not in html and "@font-face" not in html and "fetch(" not in html and "</" not in script
    assert all(link.startswith("#") for link in parsed.loads)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", html))


def test_ids_are_unique_and_links_lead_somewhere() -> None:
    _, html, parsed = study()
    assert len(parsed.ids) == len(set(parsed.ids))
    wanted = {link[1:] for link in parsed.loads} | set(re.findall(r"url\(#([^)]*)\)", html))
    wanted |= {str(a["aria-labelledby"]) for _, a in parsed.tags if "aria-labelledby" in a}
    assert wanted <= set(parsed.ids)
    assert len(parsed.named("svg")) == len(re.findall("<figure>", html)) == 14


def test_accessible() -> None:
    _, _, parsed = study()
    check_accessible(parsed)
    assert not parsed.named("button")[1:], "a button that does nothing without the script"
    assert "hidden" in parsed.named("aside")[0]  # which holds the one


def test_colours_are_the_papers_and_readable() -> None:
    light, dark = (
        dict(re.findall(r"--(\w+): #([0-9a-f]{6})", s)) for s in re.findall(r":root \{(.*?)\}", study()[1], re.S)
    )
    for scheme in (light, dark):
        assert set(COLOURS | MORE) <= set(scheme)
        assert all(_contrast(scheme[name], scheme["bg"]) >= 4.5 for name in ("fg", "muted", "accent"))
        assert all(_contrast(scheme[f"c{i}"], scheme["bg"]) >= 3 for i in range(1, 9))
    assert {name: f"#{light[name]}" for name in PAPER if name != "bg"} == {n: c for n, c in PAPER.items() if n != "bg"}


def test_every_text_is_escaped() -> None:
    long = "x" * 300
    task = {**TASK, "name": EVIL, "classes": [EVIL, "$x^2$", "oak"]}
    made = []
    for method, sparsity in itertools.product((EVIL, "gmp " + long, "$b$"), (0.0, 0.8)):
        for name in (EVIL, long):
            one = result(0.8 - sparsity / 9, sparsity, method=method, model=EVIL, task=task if name == EVIL else {})
            one.spec = one.spec.model_copy(update={"task": name})
            one.per_class, one.environment = [0.9, 0.8, 0.7], {EVIL: EVIL}
            one.metrics |= {"test_ece": 0.1}
            made.append(one)
    made = [r for i, r in enumerate(made) if r.spec.sparsity or i < 2]
    failed = result(status="failed", reason=EVIL, model=EVIL)
    of = table([*made, failed])
    html = page(of, EVIL, published=of, families={"$b$": EVIL}, fine_grained={EVIL: True}, notes=[EVIL])
    assert html.lower().count("<script") == 1
    parsed = Page(html)
    assert parsed.text.count(EVIL) > 30 and "$b$" in parsed.text
    assert max(len(str(a.get("id", ""))) for _, a in parsed.tags) < 60


# -- the numbers ----------------------------------------------------------------------------------------------


def test_every_cell_is_there_and_leads_to_its_runs() -> None:
    of, html, _ = study()
    listed = {m[1]: m[0] for m in re.findall(r'(<tr id="(r\d+)">.*?</tr>)', html, flags=re.S)}
    assert len(listed) == len(of.cells) == 14
    for number, found in enumerate(of.cells, 1):
        text = " ".join(Page(listed[f"r{number}"]).text.split())
        assert f"{100 * statistics.fmean(found.scores.values()):.2f}" in text
        assert len(found.run_ids) == found.n and all(f"({run_id})" in text for run_id in found.run_ids.values())
        assert f'<a href="#r{number}">{100 * statistics.fmean(found.scores.values()):.2f}</a>' in html


def test_what_is_missing_is_a_dash_with_its_reason() -> None:
    html = study()[1]
    full = rows(html, "resnet18, full transfer")
    assert full[0] == "resnet18, full transfer (protocol budwood, 10 epochs): 1 cell of 8 missing, shown as a dash."
    linear = rows(html, "resnet18, linear transfer")
    assert any("1 of 2 runs" in row for row in linear), "a cell that lacks a run says so"
    gaps = re.findall(r'<td class="gap" title="([^"]*)">–', html)
    assert gaps == ["missing: not run", "missing: failed, out of memory"]
    text = study()[2].text
    assert "2 cells are missing (1 not run and 1 failed)" in text
    (gmp,) = [row for row in full if row.startswith("gmp")]
    assert "1 of 2 tasks" in gmp and gmp.startswith("gmp 80 % – "), "no mean over the tasks that are left"
    lost = rows(html, "Not counted anywhere")
    assert any("failed out of memory" in row and "Bark" in row for row in lost)
    assert any(row.startswith("1 run – skipped planned") for row in lost)


WORDS = {  # method, sparsity: mean and relative error of protocol.md, tables 2.3 to 2.6
    ("torchvision:resnet50", "linear"): {("acdc", 80): ("75.53", "−3.2"), ("lth-t", 95): ("15.94", "+401.6"),
                                         ("rigl erk 5x", 90): ("75.25", "+0.2"), ("str", 98): ("67.55", "+38.1")},
    ("torchvision:resnet50", "full"): {("woodfisher", 80): ("85.23", "+0.7"), ("acdc", 95): ("83.01", "+21.3")},
    ("published:mobilenet_v1", "linear"): {("acdc", 30): ("72.77", "+1.1"), ("mfac", 89): ("70.92", "+10.9")},
    ("published:mobilenet_v1", "full"): {("str", 90): ("75.95", "+44.9"), ("acdc", 40): ("82.00", "+3.1")},
}  # fmt: skip


def test_the_published_study() -> None:
    html = page(published.table(), published.TITLE, upstream=published.upstream())
    for (model, transfer), expected in WORDS.items():
        found = rows(html, f"{model}, {transfer} transfer (protocol cvpr22, 150 epochs): all")
        for (method, sparsity), (mean, error) in expected.items():
            assert [r for r in found if r.startswith(f"{method} {sparsity} % {mean} {error} ")], (method, sparsity)
    acdc = next(r for r in rows(html, "torchvision:resnet50, linear") if r.startswith("acdc 80 %"))
    means = "58.45 92.38 84.64 90.89 74.70 74.35 55.12 92.72 73.81 92.31 56.60 60.41"  # by the tasks' names
    assert " ".join(re.findall(r"(\d\d\.\d\d) ±", acdc)) == means
    told = {what: plain(said) for what, said in headline.findings(Study(published.table()))}
    linear, full = (told[f"torchvision:resnet50, {way} transfer"] for way in ("linear", "full"))
    assert "acdc at 80 % (−3.2 %), 90 % (−2.0 %) and 95 % (+1.7 %)" in linear
    assert "Dense is matched on average up to 90 % pruned (acdc, −2.0 %" in linear
    assert "woodfisher at 80 % (+0.7 %), 90 % (+4.0 %) and 95 % (+13.4 %)" in full
    assert "No pruned network matches dense" in full
    assert "came without run ids" in html


def test_headline_compares_only_what_ran_on_the_same_tasks() -> None:
    cells = [cell("dense", 0.0, t, 0.8, 0.8) for t in ("a", "b", "c")]
    cells += [cell("good", 0.9, t, 0.8, 0.8) for t in ("a", "b", "c")]  # an error of 0 %
    cells += [cell("bad", 0.9, t, 0.7, 0.7) for t in ("a", "b", "c")]  # 0.3 against 0.2: +50 %
    cells += [cell("easy", 0.9, "a", 0.9, 0.9), cell("alone", 0.95, "a", 0.9, 0.9)]
    of = Study(Table(tuple(cells)))
    best = of.best(LINEAR, "net")
    assert {s: (b.backbone.method, b.rivals) for s, b in best.items()} == {0.9: ("good", 2)}
    (found,) = headline.findings(of)
    assert found[0] == "net, linear transfer"
    assert plain(found[1]) == (
        "Best method at each sparsity, by mean relative error against dense: good at 90 % (0.0 %). Dense is matched "
        "on average up to 90 % pruned (good, 0.0 %, 95 % interval 0.0 to 0.0; 3 tasks)."
    )
    worse = Table(tuple(c for c in cells if c.backbone.method in ("dense", "bad")))
    assert "No pruned network matches dense on average; the nearest has 90" in headline.findings(Study(worse))[0][1]
    nothing = Table(tuple(c for c in cells if not c.backbone.dense))
    assert "no dense network" in headline.findings(Study(nothing))[0][1]


def test_cautions() -> None:
    told = " ".join(headline.cautions(study_of(runs())))
    assert "One seed a cell (resnet18 full)" in told and "Fewer than five seeds (resnet18 linear)" in told
    assert "smallest test split has 100 images" in told and "A test over 2 tasks can find nothing" in told
    assert "best on the test images" not in told
    enough = [cell(m, s, t, *[0.5] * 5) for m, s in (("dense", 0.0), ("gmp", 0.9)) for t in "abcdef"]
    assert headline.cautions(Study(Table(tuple(enough)))) == []
    assert "The cvpr22 protocol keeps" in " ".join(headline.cautions(study_of([result(0.8, protocol="cvpr22")])))


def study_of(results: list[Result]) -> Study:
    return Study(table(results))


def test_a_task_that_a_way_of_transfer_does_not_have_is_no_gap() -> None:
    cells = [cell(m, s, t, 0.5, 0.6) for m, s in (("dense", 0.0), ("gmp", 0.9)) for t in "abc"]
    cells += [cell(m, s, t, 0.7, group=FULL) for m, s in (("dense", 0.0), ("gmp", 0.9)) for t in "ab"]
    of = Study(Table(tuple(cells)))
    assert of.gaps.total() == 0
    full = matrix(of, FULL, "net", {(c.group, c.backbone, c.task): "r" for c in cells})
    assert full is not None and full.tasks == ["a", "b"] and full.rows[1].summary[1].sub == "0.0 to 0.0"
    assert "10 of 10 cells filled" in headline.opening(of)


TASKS, METHODS = ("a", "b", "c"), (DENSE, Backbone("net", "gmp", 0.9), Backbone("net", "rigl", 0.9))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1000), max_size=3), min_size=9, max_size=9))
def test_a_matrix_shows_every_cell_and_invents_none(scores: list[list[int]]) -> None:
    places = [*itertools.product(METHODS, TASKS)]
    cells = {(LINEAR, b, t): Cell(LINEAR, b, t, {i: n / 1000 for i, n in enumerate(found)})
             for (b, t), found in zip(places, scores, strict=True) if found}  # fmt: skip
    shown = matrix(Study(Table(tuple(cells.values()))), LINEAR, "net", {place: "r" for place in cells})
    if shown is None:
        assert not cells
        return
    present = [b for b in METHODS if any((LINEAR, b, t) in cells for t in TASKS)]
    assert len(shown.rows) == len(present) and shown.size - shown.gaps == len(cells)
    for row, backbone in zip(shown.rows, present, strict=True):
        for entry, task in zip(row.cells, shown.tasks, strict=True):
            found = cells.get((LINEAR, backbone, task))
            assert entry.gap is (found is None)
            assert entry.text == (f"{100 * found.mean:.2f}" if found else "–")
        whole = all((LINEAR, backbone, task) in cells for task in shown.tasks)
        assert (row.summary[0].text != "–") is whole


def test_beside_the_published() -> None:
    ours = Table((cell("gmp", 0.9, "a", 0.81, 0.83), cell("gmp", 0.8, "a", 0.5), cell("gmp", 0.9, "b", 0.5)))
    theirs = Group("linear", "cvpr22", 150)
    other = Table(
        (
            cell("gmp", 0.9, "a", 0.85, group=theirs),
            cell("gmp", 0.9, "b", 0.5, group=Group("full", "cvpr22", 150)),
            cell("gmp", 0.8, "a", 0.5, group=theirs, model="other"),
        )
    )
    html = page(ours, "x", published=other)
    found = rows(
        html, "This study's linear transfer (protocol budwood) beside the published linear transfer (protocol c"
    )
    assert found[2:] == ["net gmp 90 % a 82.00 ± 1.41 85.00 −3.00"]
    assert "No cell here has the network" in Page(page(ours, "x", published=Table(()))).text
    assert "published" not in page(ours, "x")


def test_sections_without_numbers_are_left_out() -> None:
    bare = Page(page(Table((cell("gmp", 0.9, "a", 0.8), cell("dense", 0.0, "a", 0.8))), "x")).text
    for title in ("Calibration", "Classes that", "against speed", "against size", "up- and downstream", "families"):
        assert title not in bare
    whole = study()[2].text
    for title in ("Calibration", "Classes that", "against speed", "against size", "up- and downstream", "families"):
        assert title in whole
    empty = Page(page(Table(()), "x")).text
    assert "No run of this study has a result." in empty
    waiting = [r for r in runs() if r.status != "done"]
    assert "2 runs" not in Page(page(Table((), tuple(waiting)), "x")).text


def test_tables_by_hand() -> None:
    (networks,) = tables.networks(study_of(runs()), tables.Costs({}, {}, {Backbone("resnet18", "rigl", 0.8): 2.5e6}))
    assert networks.heads == ("Zeros", "FLOPs of dense", "MB")
    told = {names[1:]: [e.text for e in entries] for names, entries in networks.rows}
    assert told["rigl", "80\u00a0%"] == ["80.00\u00a0%", "20.00\u00a0%", "2.50"]
    (linear, full) = tables.calibrations(study_of(runs()))
    assert full.heads == ("ECE", "NLL") and [e.text for e in full.rows[0][1]] == ["5.00", "0.400"]
    assert "means over 2 tasks" in full.caption or "means over 1 task" in full.caption
    assert linear.rows[0][0] == ("resnet18", "Dense", "–")
    assert [p_value(p) for p in (0.0004, 0.0371, 0.46)] == ["< 0.001", "0.037", "0.46"]


# -- plots ----------------------------------------------------------------------------------------------------


def test_a_method_looks_the_same_everywhere_and_unlike_the_others() -> None:
    names = [f"m{i:02}" for i in range(24)]
    seen = looks(names)
    assert len({(look.colour, look.marker, str(look.line)) for look in seen.values()}) == 24
    assert looks(reversed(names)) == seen
    assert len({look.colour for look in looks(names[:8]).values()}) == 8
    long = [f"gmp {'option=' * 9}{i} and on" for i in range(4)] + ["x" * 60, "x" * 61, "Gmp", "gmp"]
    labels = [look.label for look in looks(long).values()]
    assert len(set(labels)) == len(long) and max(map(len, labels)) <= 31


def test_plots_leave_colour_and_font_to_the_page() -> None:
    html = study()[1]
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S):
        assert not re.findall(r"[:\"] ?#[0-9a-f]{6}", svg), "a colour that dark mode cannot change"
        assert "font-family" not in svg and "<style" not in svg and "<text" in svg
        assert not re.search(r'd="[^"]*\.\d{3}', svg), "more digits than anyone can see"


def test_a_papers_plot_has_real_colours() -> None:
    with Plot(1.0, paper=True) as plot:
        plot.axes[0].plot([0, 1], color=plot.colours["c8"])
        svg = plot.svg("a", "b")
    assert PAPER["c8"] in svg and "var(" not in svg
    with Plot(1.0) as plot:
        plot.axes[0].plot([0, 1], color=plot.colours["c8"])
        assert "var(--c8)" in plot.svg("a", "b")


def test_figures(tmp_path: Path) -> None:
    of = study()[0]
    paths = figures(of, tmp_path / "figures", **known(of))
    assert {p.name for p in paths} == {p.name for p in (tmp_path / "figures").iterdir()} and len(paths) == 14
    assert all(p.read_bytes().startswith(b"%PDF-") for p in paths)
    again = figures(of, tmp_path / "again", **known(of))
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]
    names = {p.stem.split("-")[0] for p in paths}
    assert names == {"error", "tasks", "linear", "upstream", "speed", "size", "layers", "calibration"}


# -- files ----------------------------------------------------------------------------------------------------


def test_write(tmp_path: Path) -> None:
    of = study()[0]
    paths = write(of, tmp_path / "new" / "report.html", "Ünïcode", **known(of))
    assert [p.name for p in paths] == ["report.html", "report-cells.csv", "report-runs.csv"]
    parsed = Page(paths[0].read_text(encoding="utf-8"))
    assert {link for link in parsed.loads if not link.startswith("#")} == {f"./{p.name}" for p in paths[1:]}
    cells = [*csv.DictReader(paths[1].open(encoding="utf-8"))]
    assert len(cells) == 14
    place = {"method": "rigl", "sparsity": "0.8", "task": "leaves", "transfer": "linear"}
    (one,) = [c for c in cells if place.items() <= c.items()]
    assert float(one["mean"]) == pytest.approx(0.8625) and float(one["std"]) == pytest.approx(0.005 / 2**0.5)
    assert (one["n"], one["seeds"], len(one["run_ids"].split())) == ("2", "0 1", 2)
    single = next(c for c in cells if c["transfer"] == "full")
    assert single["std"] == "" and single["n"] == "1"
    every = [*csv.DictReader(paths[2].open(encoding="utf-8"))]
    assert {r["run_id"] for r in every} == {r.run_id for r in runs()} and len(every) == len(runs())
    assert {r["status"] for r in every} == {"done", "failed", "skipped"}


def test_published_runs_as_csv(tmp_path: Path) -> None:
    paths = write(Table((cell("gmp", 0.9, "a", 0.8, 0.7),)), tmp_path / "x.html", "x")
    every = [*csv.DictReader(paths[2].open(encoding="utf-8"))]
    assert [(r["seed"], r["accuracy"], r["method"]) for r in every] == [("0", "0.8", "gmp"), ("1", "0.7", "gmp")]


def test_a_file_of_any_name_is_linked(tmp_path: Path) -> None:
    paths = write(Table((cell("gmp", 0.9, "a", 0.8),)), tmp_path / "javascript:a b#c?.html", "x")
    links = [link for link in Page(paths[0].read_text()).loads if not link.startswith("#")]
    assert links == ["./javascript%3Aa%20b%23c%3F-cells.csv", "./javascript%3Aa%20b%23c%3F-runs.csv"]


def test_equal_results_give_equal_bytes() -> None:
    of = table(runs()[:6])
    assert page(of, "x") == page(of, "x")


# -- the script -----------------------------------------------------------------------------------------------

ASK = """{
const cells = (column) => [...document.querySelectorAll("table.matrix")[0].tBodies[0].rows].map(
  (row) => row.cells[column].innerText.split("\\n")[0].trim());
const heads = document.querySelectorAll("table.matrix")[0].tHead.rows[0].cells;
const click = (column) => { heads[column].querySelector("button").click(); return cells(column); };
const said = { up: click(3), down: click(3), sort: heads[3].getAttribute("aria-sort"), names: click(0),
  other: heads[3].getAttribute("aria-sort"), gaps: click(8) };
const link = document.querySelector("table.matrix td > a");
link.focus(); link.click();
const panel = document.getElementById("runs-of");
said.shown = !panel.hidden; said.runs = panel.textContent;
said.row = document.querySelector(link.hash).textContent;
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
said.closed = panel.hidden; said.back = document.activeElement === link;
document.title = JSON.stringify(said);
}"""


def dumped(html: str, folder: Path) -> str:
    (folder / "page.html").write_text(html, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    uri = (folder / "page.html").as_uri()
    return subprocess.run([*command, uri], capture_output=True, text=True, timeout=100, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_in_a_browser(tmp_path: Path) -> None:
    html = study()[1]
    plain = dumped(html, tmp_path)
    assert plain.count("<button") > html.count("<button") + 20, "the page's own policy lets its script run"
    open_ = re.sub("script-src '[^']*'", "script-src 'unsafe-inline'", html)
    asked = dumped(open_.replace("</body>", f"<script>{ASK}</script></body>"), tmp_path)
    told = json.loads(re.search("<title>(.*?)</title>", asked, re.S)[1])  # type: ignore[index]
    errors = [float(t.replace("−", "-")) for t in told["up"] if t != "reference"]
    assert len(errors) == 3 and errors == sorted(errors)
    assert [t for t in told["down"] if t != "reference"] == [t for t in told["up"] if t != "reference"][::-1]
    assert (told["sort"], told["other"]) == ("descending", None)
    assert told["names"] == sorted(told["names"], key=str.casefold)
    assert told["gaps"][-1] == "–" and told["gaps"][:-1] == sorted(told["gaps"][:-1], key=float)
    assert told["shown"] and told["closed"] and told["back"]
    assert told["runs"] == told["row"] + "Close", "what the panel shows is the list's row, then its button"


def test_the_script_can_stand_in_a_page() -> None:
    assert "</" not in SCRIPT.read_text(encoding="utf-8") and "<!--" not in SCRIPT.read_text(encoding="utf-8")
