"""Solar cells seen by their own light: functional or defective, from the package `elpv-dataset`."""

import csv
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from budwood.core.errors import UserError
from budwood.core.files import digest_of
from budwood.core.registry import tasks
from budwood.core.task import SPLITS

from .inspection import inspect
from .samples import SampleTask, few, split_three_ways


@tasks.register("elpv")
class Elpv(SampleTask):
    """2,624 grey electroluminescence images of 300 x 300 pixels, in classes of quite unequal size.

    A cell is defective from a defect probability of 0.5 on. 70/15/15, stratified by class and by the kind of cell
    (mono- or polycrystalline). `root` is a folder with labels.csv and images/; None for the installed package's.
    """

    name = "elpv"
    metric = "mean_per_class"
    source = (
        "https://github.com/zae-bayern/elpv-dataset: Buerhop-Lutz, Deitsch, Maier, Gallwitz, Berger, Doll, Hauch,"
        " Camus, Brabec: A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence"
        " Imagery, EU PVSEC 2018, doi:10.4229/35thEUPVSEC20182018-5CV.3.15"
    )
    licence = "CC BY-NC-SA 4.0"
    declared_classes = 2
    declared_sizes = {"train": 1836, "val": 394, "test": 394}
    classes = ("functional", "defective")

    def __init__(self, root: Path | None = None, seed: int = 0) -> None:
        self.root = folder = Path(root) if root is not None else _package_data()
        rows = list(_labels(folder / "labels.csv"))
        seen = inspect([folder / name for name, _, _ in rows])
        bad = [f"{name} ({one.fault})" for (name, _, _), one in zip(rows, seen, strict=True) if one.fault]
        if bad:
            raise UserError(f"{len(bad)} images in {folder} cannot be read: {few(bad)}; install elpv-dataset again")
        splits = split_three_ways([(defective, kind) for _, defective, kind in rows], seed)
        self.samples = {split: [] for split in SPLITS}
        for (name, defective, _), split in zip(rows, splits, strict=True):
            self.samples[split].append((folder / name, int(defective)))
        self.notes = [f"split 70/15/15 into train, val and test, stratified by class and kind of cell, seed {seed}"]
        self._digest = digest_of(
            [[*row, split, one.sha256] for row, split, one in zip(rows, splits, seen, strict=True)]
        )

    def digest(self) -> str:
        return self._digest


def _package_data() -> Path:
    # Only found, not imported: the data is all that is wanted of it.
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise UserError("the task `elpv` needs the package elpv-dataset; pip install 'budwood[demo]'")
    return Path(spec.origin).parent / "data"


def _labels(file: Path) -> Iterator[tuple[str, bool, str]]:
    """(image name, defective, kind of cell) for each line; the columns stand apart by runs of spaces."""
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            for name, probability, kind in csv.reader(stream, delimiter=" ", skipinitialspace=True):
                yield name, float(probability) >= 0.5, kind
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not the labels of elpv-dataset ({error}); install the package again") from None
