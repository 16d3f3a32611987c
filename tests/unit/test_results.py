"""What docs/results/methods keeps is that of its rows, and its page has their tables."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from budwood.core.checkpoint import Checkpoint

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "methods"
with (RESULTS / "rows.csv").open() as _file:
    ROWS = {row["cell"]: row for row in csv.DictReader(_file)}
CHECKPOINTS = sorted((RESULTS / "checkpoints").glob("*.safetensors"))


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_a_checkpoint_is_its_rows(path: Path) -> None:
    stored, row = Checkpoint.load(path), ROWS[path.stem]
    assert stored.mask.digest() == row["mask_digest"] and stored.mask.holds(stored.state)
    assert abs(stored.mask.density - float(row["density"])) < 1e-6
    assert all(bool(torch.isfinite(value).all()) for value in stored.state.values() if value.is_floating_point())


def test_what_a_run_names_rightly_is_what_its_row_counts() -> None:
    with (RESULTS / "right.csv").open() as file:
        for row in csv.DictReader(file):
            right = bytes.fromhex(row["right"])
            counted = ROWS[row["cell"]]
            assert row["mask_digest"] == counted["mask_digest"] and len(right) * 8 == 5000
            share = sum(byte.bit_count() for byte in right) / 5000
            assert abs(share - float(counted["test_top1"])) < 5e-4, row["cell"]


def test_the_dense_ones_and_every_pruned_row_of_the_first_seed_have_one() -> None:
    dense = {cell for cell in ROWS if cell.rpartition("-s")[0] == "dense"}
    kept = dense | {cell for cell, row in ROWS.items() if row["seed"] == "0" and float(row["sparsity"])}
    assert kept == {path.stem for path in CHECKPOINTS}


def test_the_page_has_the_tables_of_the_rows() -> None:
    made = subprocess.run([sys.executable, RESULTS / "tables.py"], capture_output=True, text=True, check=True).stdout
    page = set((RESULTS.parent / "methods.md").read_text().splitlines())
    tables = [line for line in made.splitlines() if line.startswith(("|", "Dense:"))]
    assert len(tables) > len(ROWS) and [line for line in tables if line not in page] == []
