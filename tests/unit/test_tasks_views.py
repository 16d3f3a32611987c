"""The study's own split of an opened task."""

from pathlib import Path

import pytest
from PIL import Image

from budwood.core.errors import UserError
from budwood.core.task import Task
from budwood.tasks.folder import Folder
from budwood.tasks.views import Official


def fill(root: Path, classes: str, count: int) -> None:
    for k, label in enumerate(classes):
        for n in range(count):
            (root / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (k, n, 0)).save(root / label / f"{n:02}.png")


def test_train_and_val_together_in_their_order_and_val_is_test(tmp_path: Path) -> None:
    fill(tmp_path / "train", "ab", 20)
    fill(tmp_path / "test", "ab", 3)
    task = Folder(tmp_path, metric="mean_per_class")
    official = Official(task)
    assert task.sizes == {"train": 34, "val": 6, "test": 6} and official.sizes == {"train": 40, "val": 6, "test": 6}
    names = [Path(source).relative_to(tmp_path).as_posix() for source, _ in official.samples["train"]]
    assert names == [f"train/{label}/{n:02}.png" for label in "ab" for n in range(20)]
    assert official.samples["val"] == official.samples["test"] == task.samples["test"]
    assert (official.name, official.metric, official.classes) == (task.name, "mean_per_class", ("a", "b"))
    assert official.notes[:-1] == task.notes and "as the study does" in official.notes[-1]
    picture, target = official.load("train", lambda image: image)[39]
    assert picture.getpixel((0, 0)) == (1, 19, 0) and target == 1 == official.targets("train")[39]


def test_its_digest_follows_the_task_s_and_is_another(tmp_path: Path) -> None:
    fill(tmp_path, "ab", 10)
    first, second = Folder(tmp_path), Folder(tmp_path, seed=1)
    digests = {task.digest() for task in (first, second, Official(first), Official(second))}
    assert len(digests) == 4 and Official(first).digest() == Official(Folder(tmp_path)).digest()
    assert len(Official(first).digest()) == 64


def test_facts_of_the_study_stay(tmp_path: Path) -> None:
    class Known(Folder):
        fine_grained = True
        statistics = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        study_lr = 0.01

    fill(tmp_path, "ab", 10)
    official = Official(Known(tmp_path))
    assert official.fine_grained and official.study_lr == 0.01 and official.statistics == Known.statistics
    assert official.source == str(tmp_path) and official.declared_sizes is None


def test_a_task_that_does_not_list_its_samples() -> None:
    class Secretive(Task):
        name = "secretive"
        targets = load = digest = None  # type: ignore[assignment]

    with pytest.raises(UserError, match="does not list its samples"):
        Official(Secretive())  # type: ignore[abstract]
