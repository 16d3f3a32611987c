"""`budwood bench` as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Verb = Callable[..., Any]
QUICK = ("--seconds", "0", "--threads", "1", "--backends", "eager", "engine")


def test_a_table_for_every_batch(budwood: Verb, place: Path) -> None:
    said = budwood("bench", "py:toynet.small", "--batch", "1", "4", "--layers", *QUICK)
    assert said.code == 0, said
    for word in ("32 px, batch 1, 1 threads", "32 px, batch 4, 1 threads", "eager", "engine", "1.00x", "GFLOP/s"):
        assert word in said.out, said.out


def test_json_with_the_machine_and_random_zeros(budwood: Verb, place: Path) -> None:
    said = budwood(
        "bench",
        "py:toynet.small",
        "--sparsity",
        "0",
        "0.9",
        "--batch",
        "2",
        "--size",
        "48",
        "--json",
        "--layers",
        *QUICK,
    )
    assert (said.code, said.err) == (0, ""), said
    found = json.loads(said.out)
    rows = found["rows"]
    assert [(row["label"], row["backend"], row["status"]) for row in rows] == [
        (label, backend, "done") for label in ("dense", "90 % zeros") for backend in ("eager", "engine")
    ]
    assert all(row["q1"] <= row["ms_per_image"] <= row["q3"] and row["size"] == 48 for row in rows)
    assert rows[0]["zeros"] == 0 and rows[2]["zeros"] == pytest.approx(0.9 * 1152 / (216 + 1152 + 48), abs=0.01)
    assert found["environment"]["threads"] == "1" and found["environment"]["cpu"]
    assert [layer["label"] for layer in found["layers"]] == ["dense", "90 % zeros"]
    assert {"name", "op", "kernel", "ms", "rate", "share"} <= found["layers"][1]["rows"][0].keys()


def test_zeros_shared_out_as_erk_does(budwood: Verb, place: Path) -> None:
    request = ("bench", "py:toynet.small", "--sparsity", "0.5", "--allocation", "erk", "--batch", "1", "--json")
    found = json.loads(budwood(*request, "--layers", *QUICK).out)
    assert {row["label"] for row in found["rows"]} == {"50 % zeros, ERK"}
    zeros = [layer["sparsity"] for layer in found["layers"][0]["rows"] if layer["op"] == "Conv"]
    # By hand: of 684 weights that are left the layers of 8 x 3 x 3 x 3 and 16 x 8 x 3 x 3 would have 17 and 30 parts of
    # 47. The first has only 216, so it stays dense, and 468 are the second's.
    assert zeros == pytest.approx([0, 1 - 468 / 1152], abs=0.01)


def test_a_backend_that_is_not_there_is_a_row_with_the_reason(budwood: Verb, place: Path) -> None:
    from budwood.core.registry import backends

    absent = [name for name in backends if backends.get(name)().available()]
    if not absent:
        pytest.skip("all backends are installed")
    rows = json.loads(
        budwood(
            "bench", "py:toynet.small", "--batch", "1", "--seconds", "0", "--backends", "eager", absent[0], "--json"
        ).out
    )["rows"]
    assert rows[1]["status"] == "skipped" and rows[1]["reason"]


def test_wrong_requests_are_one_line(budwood: Verb, place: Path) -> None:
    for arguments, wanted in [
        (("bench", "py:toynet.small", "--backends", "engin"), "did you mean engine"),
        (("bench", "py:toynet.small", "--sparsity", "90"), "did you mean 0.9?"),
        (("bench", "py:toynet.small", "--batch", "0"), "--batch"),
        (("bench", "nothing"), "no file at nothing"),
        (("bench", "py:toynet.small", "--allocation", "erk"), "give --sparsity as well"),
        (("bench", "py:toynet.small", "--sparsity", "0.9", "--allocation", "str"), "for ResNet-50 alone"),
    ]:
        said = budwood(*arguments)
        assert said.code == 2 and len(said.lines) == 1 and wanted in said.err, (arguments, said)
