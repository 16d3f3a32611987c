"""A few hundred damaged files of every kind; `python -m tests.fuzz --count N` takes more."""

from __future__ import annotations

import random
import sys

import pytest

pytest.importorskip("onnx")

from .__main__ import Target, all_targets, run
from .mutations import mutations

TARGETS = all_targets()


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and RLIMIT_AS")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    found = list(run(name, TARGETS[name], first=0, count=150))
    failures = [f"{number}: {text}" for number, kind, text in found if kind == "failed"]
    assert len(found) == 150 and not failures, "\n".join(failures[:3])


def test_a_mutation_is_the_same_again() -> None:
    data = bytes(range(200))
    made = [mutations(data, random.Random(i)) for i in range(300)]
    assert made == [mutations(data, random.Random(i)) for i in range(300)]
    assert sum(m != data for m in made) > 250 and mutations(b"", random.Random(0)) is not None


def test_what_counts_as_a_failure() -> None:
    from budwood.core.errors import UserError

    def refuses(rng: random.Random) -> None:
        raise UserError("no")

    def breaks(rng: random.Random) -> None:
        raise KeyError("k")

    def crashes(rng: random.Random) -> None:
        import os

        os.abort()

    cases: dict[str, tuple[Target, str]] = {
        "accepted": (lambda rng: None, "accepted"),
        "refused": (refuses, "refused"),
        "broken": (breaks, "failed"),
        "crashed": (crashes, "failed"),
    }
    for name, (target, wanted) in cases.items():
        assert [kind for _, kind, _ in run(name, target, 5, 3)] == [wanted] * 3, name
