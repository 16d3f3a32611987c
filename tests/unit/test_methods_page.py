"""docs/explain/methods.md has every method, under its family."""

import re
from pathlib import Path

from budwood.core.registry import methods

PAGE = (Path(__file__).parents[2] / "docs" / "explain" / "methods.md").read_text()
TITLES = {
    "magnitude": "Magnitude", "second-order": "Second order", "re-growth": "Re-growth",
    "lottery-ticket": "Lottery tickets", "regularisation": "Regularisation",
    "one-shot": "At once, with little data", "controls": "Controls",
}  # fmt: skip


def test_every_method_stands_in_its_family() -> None:
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
    told = {title: set(re.findall(r"\*\*`([\w-]+)`\*\*", parts[title])) for title in TITLES.values()}
    wanted: dict[str, set[str]] = {title: set() for title in TITLES.values()}
    for name in methods:
        wanted[TITLES[methods.get(name).tags.family]].add(name)
    assert told == wanted
