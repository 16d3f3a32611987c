"""The page, parsed: self-contained, escaped, unique ids, colours left to the page, and whole when parts are missing."""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from budwood.report.accuracy import accuracy_plot, position
from budwood.report.figure import COLOURS
from budwood.report.frame import frames, latency_frames
from budwood.report.html import page, write
from budwood.report.latency import latency_plot
from budwood.report.layers import layers_plot, thousands

from .test_report_frame import TASK, result, times

EVIL = "<script>alert('1')</script>"
LOADING = {"src", "srcset", "data", "poster", "action", "background", "xlink:href", "href"}


class Page(HTMLParser):
    """What a page holds: tags, ids, what it would load, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert self.open == [], "tags are not balanced"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [str(found["id"])] if "id" in found else []
        self.loads += [str(value) for name, value in found.items() if name in LOADING]

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def full() -> tuple[list, list]:
    other = {**TASK, "name": "Bark"}
    runs = [result(0.9 - s / 50 + seed / 500, s, seed=seed, transfer=t)
            for s in (0.0, 0.8, 0.95) for seed in (0, 1) for t in ("full", "linear")]  # fmt: skip
    runs += [result(0.7, data="e", task=other), result(0.6, 0.9, data="e", task=other)]
    runs += [result(status="failed", reason="out of memory")]
    latency = [
        times(label, b, 10.0, batch) for label in ("dense", "95 %") for b in ("eager", "engine") for batch in (1, 8)
    ]
    return runs, latency


def test_nothing_is_loaded_and_ids_are_unique_and_links_lead_somewhere() -> None:
    html = page(*full(), "A study")
    parsed = Page(html)
    assert len(parsed.named("svg")) == 2 + 2 + 2  # accuracy and layers of two tasks, two batches
    assert parsed.loads and all(link.startswith("#") for link in parsed.loads)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.tags}
    assert "@import" not in html and "@font-face" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", html))
    assert len(parsed.ids) == len(set(parsed.ids))
    wanted = {link[1:] for link in parsed.loads} | set(re.findall(r"url\(#([^)]*)\)", html))
    wanted |= {str(a["aria-labelledby"]) for _, a in parsed.tags if "aria-labelledby" in a}
    assert wanted <= set(parsed.ids)


def check_accessible(parsed: Page) -> None:
    """What holds for every page of Budwood's."""
    assert parsed.named("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in parsed.named("svg"))
    assert len(parsed.named("caption")) == len(parsed.named("table"))
    assert all(th.get("scope") for th in parsed.named("th"))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_accessible() -> None:
    check_accessible(Page(page(*full(), "A study")))


def test_plots_leave_colour_and_font_to_the_page() -> None:
    runs, latency = full()
    (frame, _) = frames(runs)
    plots = [accuracy_plot(frame, "a"), layers_plot(runs[4], "b"), latency_plot(latency_frames(latency)[0], "c")]
    for svg in plots:
        assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
        assert "var(--fg)" in svg and "var(--muted)" in svg
        assert not re.findall(r"[:\"] ?#[0-9a-f]{6}", svg), "a colour that dark mode cannot change"
        assert "font-family" not in svg and "<style" not in svg and "<text" in svg
    variables = set(re.findall(r"var\(--([a-z0-9]+)\)", "".join(plots)))
    html = page(runs, latency, "A study")
    assert variables <= set(COLOURS)
    for name in COLOURS:
        assert len(re.findall(rf"--{name}: #", html)) == 2, f"{name} is not set for light and dark"


def _contrast(one: str, two: str) -> float:
    """WCAG 2 contrast ratio of two colours written as six hex digits."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_light_and_dark() -> None:
    schemes = re.findall(r":root \{(.*?)\}", page([], [], "x"), flags=re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): #([0-9a-f]{6})", scheme))
        for name in ("fg", "muted", "accent"):
            assert _contrast(colours[name], colours["bg"]) >= 4.5, name
        for name in ("c1", "c2", "c3", "c4", "c5", "c6"):
            assert _contrast(colours[name], colours["bg"]) >= 3, name


def test_every_text_is_escaped() -> None:
    task = {**TASK, "name": EVIL, "classes": [EVIL, "$x^2$"], "source": EVIL, "licence": EVIL, "notes": [EVIL]}
    runs = [
        result(0.9, model=EVIL, task=task),
        result(0.8, 0.8, method=EVIL, model=EVIL, task=task, options={EVIL: EVIL}),
    ]
    runs[1].layers = [layer.model_copy(update={"name": EVIL}) for layer in runs[1].layers]
    runs[1].notes, runs[1].environment = [EVIL], {EVIL: EVIL}
    runs.append(result(status="failed", reason=EVIL, task=task))
    html = page(runs, [times(EVIL, EVIL, 1.0), times("$b$", EVIL, 1.0), times(EVIL, "x", None, reason=EVIL)], EVIL)
    assert "<script" not in html.lower()
    parsed = Page(html)
    assert parsed.text.count(EVIL) > 15
    assert "$b$" in parsed.text and "$x^2$" in parsed.text
    plot = latency_plot(latency_frames([times("costs $5 or $6", "eager", 1.0)])[0], "a")
    assert "costs $5 or $6" in Page(plot).text  # not set as a formula


def test_the_numbers_are_on_the_page() -> None:
    html = page([result(0.9), result(0.89, 0.8, measured=0.7932)], [], "A study")
    text = Page(html).text
    told = [
        "79.32",
        "asked 80",
        "89.0",
        "−1.0",
        "0.100 → 0.0200",
        "5.0× smaller",
        "2.00 → 0.400",
        "1\u00a0min 30",
        "verified",
    ]
    for part in told:
        assert part in text, part
    assert "300 training, 100 validation, 100 test" in text and "CC0" in text and "ash, elm, oak" in text
    assert result(0.9).run_id in text and "m" * 64 in text


def test_an_unverified_mask_is_called_so() -> None:
    pruned = result(0.8, 0.8)
    pruned.mask_digest = ""
    assert "not verified" in Page(page([result(), pruned], [], "x")).text


@pytest.mark.parametrize("case", ["empty", "dense", "failed", "bare", "no_layers", "many", "latency_only"])
def test_missing_and_too_many_parts(case: str) -> None:
    runs, latency = [], []
    if case == "dense":
        runs = [result()]
    elif case == "failed":
        runs = [result(status="failed", reason="boom"), result(0.1, 0.5, status="skipped")]
    elif case == "bare":
        runs = [result(task={}, layers=0), result(0.8, 0.9, task={}, layers=0)]
        for run in runs:
            run.metrics, run.environment, run.checkpoint_bytes, run.dense_bytes = {}, {}, 0, 0
    elif case == "no_layers":
        runs = [result(), result(0.8, 0.9, layers=0)]
    elif case == "many":
        task = {**TASK, "classes": [f"class {i} " + "x" * 200 for i in range(700)], "name": "long" * 60}
        runs = [
            result(task=task),
            *(result(0.5, 0.9, method=f"method{i}" + "y" * 50, task=task, layers=200) for i in range(9)),
        ]
    else:
        latency = [times("dense", "openvino", None, reason="not installed")]
    parsed = Page(page(runs, latency, "x"))
    assert len(parsed.ids) == len(set(parsed.ids))
    expected = {
        "empty": "no results to report",
        "dense": "No pruned network",
        "failed": "boom",
        "bare": "no dense run",
        "no_layers": "90\u00a0% of its weights",
        "many": "All 700 classes",
        "latency_only": "not installed",
    }
    assert expected[case] in parsed.text


def test_equal_results_give_equal_bytes() -> None:
    assert page(*full(), "x") == page(*full(), "x")


def test_write(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write(*full(), path, "Ünïcode")
    assert "Ünïcode" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_axis_and_units() -> None:
    assert [position(s) for s in (0.9, 0.99, 0.999)] == pytest.approx([1, 2, 3])
    assert [thousands(v) for v in (864, 1200, 2.36e6, 1e6)] == ["864", "1.2 k", "2.36 M", "1 M"]
