"""Which test photographs each run of run.py names rightly, so that two runs are compared photograph by photograph.

    python docs/results/methods/right.py TINYIMAGENET100

Writes right.csv: a run, its mask, and 5,000 bits as hexadecimal digits. The networks are the checkpoints beside this
file and those that run.py left in `--out`; each must hold its mask and have the accuracy of its row.
"""

import argparse
import csv
import functools
from pathlib import Path

import numpy as np
import torch
from tables import Row, rows
from torch.utils.data import TensorDataset

from budwood.core.task import Preprocessing
from budwood.models.network import open_network
from budwood.tasks.images import transforms
from budwood.tasks.opening import open_task
from budwood.train.data import in_order
from budwood.train.evaluate import logits_of

HERE = Path(__file__).parent
RIGHT = HERE / "right.csv"


def checkpoint_of(row: Row, out: Path) -> Path | None:
    """Where the network of a row is, if it is still there."""
    kept, left = HERE / "checkpoints" / f"{row['cell']}.safetensors", out / row["run_id"] / "checkpoint.safetensors"
    return next((path for path in (kept, left) if path.exists()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="folder of tinyimagenet100")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="the --out of run.py")
    arguments = parser.parse_args()
    task = open_task(arguments.data)

    @functools.cache
    def photographs(preprocessing: Preprocessing) -> TensorDataset:
        """All test photographs, decoded once."""
        batches = in_order(task.load("test", transforms(preprocessing, train=False)), 100, workers=1)
        images, targets = zip(*batches, strict=True)
        return TensorDataset(torch.cat(images), torch.cat(targets))

    found = {row["cell"]: row for row in rows(RIGHT.name)}
    for row in rows("rows.csv"):
        cell = row["cell"]
        path = checkpoint_of(row, arguments.out / "runs")
        if path is None or found.get(cell, {}).get("mask_digest") == row["mask_digest"]:
            continue
        network = open_network(str(path))
        assert network.mask.digest() == row["mask_digest"], f"{path} is not the network of {cell}"
        assert network.mask.holds(network.module), f"{path} does not hold its mask"
        logits, targets = logits_of(network.module, photographs(network.lineage.preprocessing))
        right = (logits.argmax(1) == targets).numpy()
        assert abs(right.mean() - float(row["test_top1"])) < 5e-4, f"{cell}: {right.mean()} is not {row['test_top1']}"
        found[cell] = {"cell": cell, "mask_digest": row["mask_digest"], "right": np.packbits(right).tobytes().hex()}
        print(f"{cell}: {100 * right.mean():.2f} %", flush=True)
    with RIGHT.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["cell", "mask_digest", "right"])
        writer.writeheader()
        writer.writerows(found.values())


if __name__ == "__main__":
    main()
