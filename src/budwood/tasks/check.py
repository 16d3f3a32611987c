"""What is wrong, or only odd, with a folder of labelled images. It reports and decides nothing."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel

from budwood.core.errors import UserError

from .folder import Folder
from .images import MEGAPIXELS, Fault
from .inspection import Inspected, inspect
from .layout import Found, Item, find
from .samples import few

IMBALANCE = 10
"""Images of the largest class for one of the smallest, from which on it is a warning."""

_SUFFIXES_OF = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # what phones write: a JPEG followed by more of them
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}


class Finding(BaseModel):
    """`count` things of one kind, up to three of them as `examples`, and what to do about them."""

    kind: str
    severity: Literal["error", "warning", "info"]
    count: int
    examples: list[str]
    advice: str


class Report(BaseModel):
    """`totals`: images per split and class, as `folder` would use them; split "all" where it could make none.

    `refused` says why the task `folder` would not open this data, and is empty where it would.
    """

    root: str
    layout: str = ""
    refused: str = ""
    totals: dict[str, dict[str, int]] = {}
    findings: list[Finding] = []
    notes: list[str] = []

    @property
    def worst(self) -> Literal["error", "warning", "info"]:
        """The gravest severity among the findings, "info" where there are none."""
        present = {finding.severity for finding in self.findings}
        return "error" if "error" in present else "warning" if "warning" in present else "info"


def check(root: Path) -> Report:
    """Look at every image below a folder, or listed in a CSV file, and report. Never raises UserError."""
    root = Path(root)
    try:
        found = find(root)
    except UserError as error:
        return Report(root=str(root), refused=str(error), findings=[_refusal(str(error))])
    seen = dict(zip((item.name for item in found.items), inspect([item.path for item in found.items]), strict=True))
    items, notes, refused = _as_opened(root, found)
    totals: dict[str, dict[str, int]] = defaultdict(dict)
    for (split, label), count in sorted(Counter((item.split or "all", item.label) for item in items).items()):
        totals[split][label] = count
    return Report(
        root=str(root),
        layout=found.layout,
        refused=refused,
        totals=totals,
        notes=notes,
        findings=[
            *([_refusal(refused)] if refused else []),
            *_faults(seen),
            *_oddities(seen),
            *_duplicates(items, seen),
            *_classes(found, totals),
        ],
    )


def _as_opened(root: Path, found: Found) -> tuple[list[Item], list[str], str]:
    """The items as `folder` splits them, its notes, and why it refuses; as found where it can make nothing of them."""
    refused = ""
    for allow_unreadable in (False, True):  # the inspection is remembered, so the second costs nothing
        try:
            task = Folder(root, allow_unreadable=allow_unreadable)
            return task.items, task.notes, refused
        except UserError as error:
            refused = refused or str(error)
    return found.items, found.notes, refused


def _refusal(reason: str) -> Finding:
    return Finding(kind="cannot be used as it is", severity="error", count=1, examples=[], advice=reason)


def _finding(
    kind: str, severity: Literal["error", "warning", "info"], names: Iterable[str], advice: str
) -> Iterator[Finding]:
    """One finding, or none where there are no names."""
    names = list(names)
    if names:
        examples = [few([name]) for name in names[:3]]
        yield Finding(kind=kind, severity=severity, count=len(names), examples=examples, advice=advice)


def _faults(seen: dict[str, Inspected]) -> Iterator[Finding]:
    advice: dict[Fault, str] = {
        "zero-byte": "copy the files again, or remove them",
        "truncated": "the files are cut short: copy them again, or remove them",
        "unreadable": "no image can be made of them: convert them, or remove them",
        "enormous": f"more than {MEGAPIXELS} megapixels: make them smaller",
    }
    for fault in get_args(Fault):
        names = (f"{name} ({one.reason})" for name, one in seen.items() if one.fault == fault)
        yield from _finding(fault, "error", names, advice[fault])


def _oddities(seen: dict[str, Inspected]) -> Iterator[Finding]:
    good = {name: one for name, one in seen.items() if not one.fault}
    kinds: dict[str, tuple[Callable[[Inspected], bool], str]] = {
        "grey": (lambda one: one.mode[0] in "1LIF", "grey becomes three equal channels"),
        "CMYK": (lambda one: one.mode == "CMYK", "converted to RGB without a colour profile: colours may shift"),
        "palette": (lambda one: one.mode in ("P", "PA"), "converted to RGB, transparency becomes white"),
        "more than 8 bits": (lambda one: one.deep, "scaled to 8 bits"),
        "EXIF-rotated": (lambda one: one.orientation != 1, "turned upright on reading; other tools may not do so"),
    }
    for kind, (is_so, advice) in kinds.items():
        yield from _finding(kind, "info", (name for name, one in good.items() if is_so(one)), advice)
    misnamed = (
        f"{name} (is {one.format})"
        for name, one in good.items()
        if Path(name).suffix.lower() not in _SUFFIXES_OF.get(one.format, ())
    )
    yield from _finding(
        "format differs from name", "warning", misnamed, "read by content here: rename them all the same"
    )


def _duplicates(items: list[Item], seen: dict[str, Inspected]) -> Iterator[Finding]:
    same: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if seen[item.name].sha256 and seen[item.name].fault != "zero-byte":
            same[seen[item.name].sha256].append(item)
    groups = [group for group in same.values() if len(group) > 1]

    def named(chosen: Iterable[list[Item]]) -> list[str]:
        return [" = ".join(item.name for item in group[:3]) for group in chosen]

    across = named(group for group in groups if len({item.split for item in group}) > 1)
    inside = named(group for group in groups if max(Counter(item.split for item in group).values()) > 1)
    labels = named(group for group in groups if len({item.label for item in group}) > 1)
    yield from _finding("same image in two splits", "error", across, "accuracy would be measured on training images")
    yield from _finding("same image under two labels", "error", labels, "one of the labels is wrong: remove that file")
    yield from _finding("same image twice in a split", "warning", inside, "counted twice: keep one of each")


def _classes(found: Found, totals: dict[str, dict[str, int]]) -> Iterator[Finding]:
    yield from _finding("empty class", "warning", found.empty, "add images, or remove the folder")
    counts: Counter[str] = Counter()
    for split in totals.values():
        counts.update(split)
    single = [label for label, count in counts.items() if count == 1]
    yield from _finding("class of one image", "error", single, "add images, or merge the class into another")
    partial = [
        f"{label} (only in {', '.join(split for split in totals if label in totals[split])})"
        for label in sorted(counts)
        if not all(label in split for split in totals.values())
    ]
    yield from _finding("class not in every split", "warning", partial, "give each split images of each class")
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(ranked) > 1:
        (large, most), (small, least) = ranked[0], ranked[-1]
        yield Finding(
            kind="class imbalance",
            severity="warning" if most >= IMBALANCE * least else "info",
            count=round(most / least),
            examples=[f"{large}: {most}", f"{small}: {least}"],
            advice="images of the largest class for one of the smallest; where it is large, use metric mean_per_class",
        )
