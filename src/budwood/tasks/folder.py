"""One's own images: a folder of class folders, with or without splits, or a CSV file."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from budwood.core.errors import UserError
from budwood.core.files import digest_of
from budwood.core.registry import tasks
from budwood.core.task import SPLITS, Metric, Split

from .inspection import inspect
from .layout import Item, find
from .samples import SampleTask, as_text, few, hold_out, split_three_ways

HELD_OUT = 0.15


@tasks.register("folder")
class Folder(SampleTask):
    """The images below `root`: train/ val/ [test/], train/ test/, class folders alone, or a CSV `path,label[,split]`.

    What the data does not split, `seed` does, stratified: it is the split's own seed and a run's is none of its
    business. Every image is decoded once on opening; those that cannot be are left out, up to 1 % of them or, with
    `allow_unreadable`, any number. Raises UserError where there is nothing to train and measure on.
    """

    def __init__(
        self, root: Path | None, seed: int = 0, *, metric: Metric = "top1", allow_unreadable: bool = False
    ) -> None:
        if root is None:
            raise UserError("the task `folder` needs to know where: give a folder of class folders or a CSV file")
        if metric not in ("top1", "mean_per_class"):
            raise UserError(f"no metric called {metric!r}; choose top1 or mean_per_class")
        self.metric: Metric = metric
        root = Path(root)
        self.root = root.parent if root.is_file() else root
        whole = root.resolve()
        self.name, self.source = as_text(whole.stem if root.is_file() else whole.name), as_text(str(root))
        found = find(root)
        self.notes = [f"layout: {found.layout}", *found.notes]
        if found.empty:
            self.notes.append(f"class folders without an image left out: {few(found.empty)}")
        readable = self._readable(root, found.items, allow_unreadable)
        self.items = items = self._split([item for item, _ in readable], seed)
        self.classes = _checked_classes(root, items, self.notes)
        index = {label: k for k, label in enumerate(self.classes)}
        self.samples = {s: [(item.path, index[item.label]) for item in items if item.split == s] for s in SPLITS}
        self.trainval = [(item.path, index[item.label]) for item in items if item.split != "test"]
        sha256 = {item.name: digest for item, digest in readable}
        rows = [[item.name, item.label, item.split, sha256[item.name]] for item in items]
        self._digest = digest_of([list(self.classes), rows])

    def digest(self) -> str:
        return self._digest

    def _readable(self, root: Path, items: list[Item], allow: bool) -> list[tuple[Item, str]]:
        """The images that can be decoded, with their sha256."""
        pairs = list(zip(items, inspect([item.path for item in items]), strict=True))
        bad = [f"{item.name} ({seen.fault})" for item, seen in pairs if seen.fault]
        if len(bad) > len(items) / 100 and not allow:
            raise UserError(
                f"{len(bad)} of {len(items)} images in {root} cannot be read: {few(bad)};"
                f" run `budwood data check {root}`, or pass --allow-unreadable to leave them out"
            )
        if bad:
            self.notes.append(f"{len(bad)} of {len(items)} images left out, not readable: {few(bad)}")
        return [(item, seen.sha256) for item, seen in pairs if not seen.fault]

    def _split(self, items: list[Item], seed: int) -> list[Item]:
        """The items with a split each: the one given, and what is missing made from train."""
        given = {item.split for item in items}
        if given <= {None, "train"}:
            _require(items, 3, "to have one in train, val and test each")
            self.notes.append(f"split 70/15/15 into train, val and test, stratified by class, seed {seed}")
            return _with_splits(items, split_three_ways([item.label for item in items], seed))
        if "train" not in given:
            raise UserError(f"{self.source} has no readable image for train; add some, or remove the splits")
        if "test" not in given:
            self.notes.append("no test split given: val is what is reported, as test")
            items = _with_splits(items, ["test" if item.split == "val" else item.split for item in items])
        elif "val" in given:
            return items
        train = [item for item in items if item.split == "train"]
        _require(train, 2, "in train, as some become val")
        held = hold_out([item.label for item in train], HELD_OUT, seed)
        self.notes.append(f"{held.sum()} of {len(train)} train images held out as val, stratified, seed {seed}")
        val = {item.name for item, out in zip(train, held, strict=True) if out}
        return _with_splits(items, ["val" if item.name in val else item.split for item in items])


def _with_splits(items: list[Item], splits: Iterable[Split | None]) -> list[Item]:
    return [Item(item.path, item.name, item.label, split) for item, split in zip(items, splits, strict=True)]


def _require(items: list[Item], least: int, why: str) -> None:
    counts = Counter(item.label for item in items)
    short = sorted(label for label, count in counts.items() if count < least)
    if short:
        raise UserError(f"{len(short)} classes have fewer than {least} images: {few(short)}; each needs {least} {why}")


def _checked_classes(root: Path, items: list[Item], notes: list[str]) -> tuple[str, ...]:
    """The class names, sorted: those of train, which every other class must be among."""
    classes = sorted({item.label for item in items if item.split == "train"})
    for split in ("val", "test"):
        there = {item.label for item in items if item.split == split}
        unknown, absent = sorted(there - set(classes)), [label for label in classes if label not in there]
        if unknown:
            raise UserError(
                f"{len(unknown)} classes of {split} in {root} are not in train: {few(unknown)};"
                " add training images for them or remove them"
            )
        if absent:
            notes.append(f"{len(absent)} classes of train are not in {split}: {few(absent)}")
    if len(classes) < 2:
        raise UserError(f"{root} has one class only ({few(classes)}); a classifier needs at least two")
    return tuple(classes)
