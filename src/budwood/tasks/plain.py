"""Images as they lie, without splits: labelled ones to evaluate on, unlabelled ones to calibrate with."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from budwood.core.errors import UserError
from budwood.core.files import digest_of

from .inspection import inspect
from .layout import SUFFIXES, find
from .samples import Samples, few

WORDNET = re.compile(r"(n\d{8})_")
"""How ImageNet names its files: n01440764_10026.JPEG."""


class Labelled:
    """Every labelled image below a folder or in a CSV file, whatever split it lies in.

    A folder without class folders whose files are named by WordNet ids is read by these: sorted, they are in
    ImageNet's class order. Raises UserError where there is nothing to evaluate on.
    """

    def __init__(self, root: Path) -> None:
        named = _by_wordnet(root)
        pairs = named or [(item.path, item.label) for item in find(root).items]
        self.notes = [f"{len(named)} files read by the WordNet ids in their names"] if named else []
        usable = _usable([path for path, _ in pairs], root, self.notes)
        pairs = [(path, label) for path, label in pairs if path in usable]
        self.classes = tuple(sorted({label for _, label in pairs}))
        index = {label: k for k, label in enumerate(self.classes)}
        self.samples = [(path, index[label]) for path, label in pairs]

    def load(self, transform: Callable[[Any], Any]) -> Dataset[Any]:
        """(transform(image), class index) of every image."""
        return Samples(self.samples, transform)


class Images:
    """Every image below a folder, at any depth, labels not looked at. Raises UserError where there are fewer than two,
    which batch norm's statistics take."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"no folder of images at {root}; check the path")
        found = (Path(where, name) for where, _, names in os.walk(root) for name in names)
        paths = sorted(path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        if not paths:
            raise UserError(f"{root} holds no images; Budwood reads {', '.join(SUFFIXES)}")
        self.notes: list[str] = []
        self.usable = _usable(paths, root, self.notes)
        if len(self.usable) < 2:
            raise UserError(f"{root} holds one image, too few for batch norm's statistics; give two or more")

    def digest(self) -> str:
        """sha256 (hex) over the contents."""
        return digest_of(sorted(self.usable.values()))

    def load(self, transform: Callable[[Any], Any]) -> Dataset[Any]:
        """(transform(image), 0) of every image."""
        return Samples([(path, 0) for path in self.usable], transform)


def _by_wordnet(root: Path) -> list[tuple[Path, str]]:
    if not root.is_dir() or any(path.is_dir() for path in root.iterdir()):
        return []
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
    named = [(path, match[1]) for path in files if (match := WORDNET.match(path.name))]
    return named if len(named) == len(files) else []


def _usable(paths: list[Path], root: Path, notes: list[str]) -> dict[Path, str]:
    """Path -> sha256 of those that can be decoded; what cannot is counted in `notes`."""
    seen = dict(zip(paths, inspect(paths), strict=True))
    bad = [path.name for path, one in seen.items() if one.fault]
    if len(bad) == len(paths):
        raise UserError(f"none of the {len(paths)} images in {root} can be read: {few(bad)}; run `budwood data check`")
    if bad:
        notes.append(f"{len(bad)} of {len(paths)} images left out, not readable: {few(bad)}")
    return {path: one.sha256 for path, one in seen.items() if not one.fault}
