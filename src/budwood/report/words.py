"""Numbers to words: the same on the page and on the screen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .frame import CLOSE, LatencyFrame, Row, Stat, TaskFrame, is_close

NOTHING = "–"
METRICS = {"top1": "top-1 accuracy", "mean_per_class": "mean per-class accuracy"}
WHERE = {"none": "", "upstream": "upstream", "downstream": "downstream", "one-shot": "one-shot"}
TRANSFERS = {"full": "Full transfer", "linear": "Linear transfer", "none": "Not transferred"}
SPLIT_WORDS = {"train": "training", "test": "test"}
DENSE_KERNELS = ("eager", "compile", "onnxruntime", "openvino", "openvino-bf16", "openvino-int8")
"""Backends that multiply by every weight, zero or not."""

SAME = 0.1
"""Times that differ by less are called the same: so much a busy machine does to two runs of one network."""


def number(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f}\u00a0%"


def sparsity(fraction: float) -> str:
    """At most two decimals, and never rounded up to all of the weights."""
    shown = min(100 * fraction, 99.99) if fraction < 1 else 100
    return f"{shown:.2f}".rstrip("0").rstrip(".") + "\u00a0%"


def accuracy(stat: Stat | None) -> str:
    """In percent, with the spread over seeds where there are several."""
    if stat is None:
        return NOTHING
    return f"{100 * stat.mean:.1f}" + (f"\u00a0±\u00a0{100 * stat.std:.1f}" if stat.std is not None else "")


def points(stat: Stat | None) -> str:
    if stat is None:
        return NOTHING
    spread = f"\u00a0±\u00a0{stat.std:.1f}" if stat.std is not None else ""
    return signed(stat.mean) + spread


def signed(value: float) -> str:
    """One decimal and a sign; plain 0.0 for what rounds to it."""
    rounded = round(value, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{number(seconds) if seconds < 10 else whole}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60}\u00a0min"


def count(n: int, noun: str) -> str:
    """ "1 image", "1,020 images", "6 classes"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{n:,} {noun if n == 1 else plural}"


def short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def method(row: Row) -> str:
    return "Dense" if row.dense else row.spec.method


def details(row: Row, frame: TaskFrame) -> str:
    """What tells this row from others of the same method: where, options, and the recipe where it varies."""
    parts = [WHERE[row.spec.where]]
    if row.spec.protocol != "budwood":
        parts.append(f"protocol {row.spec.protocol}")
    if len(frame.models) > 1:
        parts.insert(0, row.spec.model)
    parts += [f"{name} {value}" for name, value in row.spec.options.items()]
    recipes = [r.spec.recipe.model_dump() for r in frame.rows if r.spec.transfer == row.spec.transfer]
    for name, value in row.spec.recipe.model_dump(exclude={"distill"}).items():
        if any(other[name] != value for other in recipes):
            parts.append(f"{name.replace('_', ' ')} {value}")
    if row.spec.teacher:
        parts.append("distilled")
    return ", ".join(part for part in parts if part)


# -- the headline -----------------------------------------------------------------------------------------


def headline(frame: TaskFrame) -> str:
    """What came out, in two or three sentences made from the numbers alone."""
    if not frame.rows:
        return f"No run on {short(frame.name, 60)} finished."
    shown = frame.showcase()
    sentences = [_opening(frame, shown)]
    if shown is None:
        sentences.append("No pruned network is among these runs.")
    else:
        sentences += _compared(frame, shown)
    return " ".join(sentences)


def _opening(frame: TaskFrame, shown: Row | None) -> str:
    reference = frame.reference(shown) if shown else frame.best_dense()
    row = shown or reference or frame.rows[0]
    model, task = short(row.spec.model, 60), short(frame.name, 60)
    classes = [count(len(frame.classes), "class")] if frame.classes else []
    aside = f"({', '.join([*classes, TRANSFERS[row.spec.transfer].lower()])})"
    if reference is None or reference.test is None:
        return f"{model} on {task} {aside}: there is no dense run to compare with."
    reached = f"{percent(reference.test.mean)} {METRICS[frame.metric]}"
    return f"Dense, {model} reaches {reached} on the test images of {task} {aside}."


def _compared(frame: TaskFrame, row: Row) -> list[str]:
    assert row.test is not None
    how = ", ".join(part for part in (row.spec.method, WHERE[row.spec.where]) if part)
    pruned = f"{sparsity(row.average('sparsity'))} of its weights pruned ({how})"
    if row.delta is None:
        return [f"With {pruned} it reaches {percent(row.test.mean)}."]
    below = round(-row.delta.mean, 1)
    far = "as much" if below == 0 else f"{abs(below):.1f} points {'less' if below > 0 else 'more'}"
    if is_close(row):
        sentences = [f"With {pruned} it reaches {percent(row.test.mean)}, {far}."]
    else:
        sentences = [
            f"No pruned network comes within {CLOSE:g} point of that.",
            f"The nearest has {pruned} and reaches {percent(row.test.mean)}, {far}.",
        ]
    noise = frame.uncertainty(row.test.mean)
    if noise is not None and below != 0 and abs(below) < noise:
        sentences.append("That difference is smaller than the uncertainty of this test set.")
    return sentences


def cautions(frame: TaskFrame) -> list[str]:
    """How far the accuracies can be trusted, given the number of images behind them."""
    told, sizes, classes = [], frame.sizes, len(frame.classes)
    known = [r.test.mean for r in frame.rows if r.test]
    half = frame.uncertainty(max(known)) if known else None
    if half is not None:
        told.append(
            f"With {count(sizes['test'], 'test image')}, an accuracy of {percent(max(known))} is uncertain by about "
            f"±{half:.1f} points (95 % Wilson interval). Smaller differences between two rows may be chance."
        )
    few = [f"{sizes[s]:,} {word}" for s, word in SPLIT_WORDS.items() if s in sizes and sizes[s] < 2 * classes]
    if few:
        told.append(f"So few images for {count(classes, 'class')} ({', '.join(few)}) give a first impression only.")
    if any(row.spec.protocol == "cvpr22" for row in frame.rows):
        told.append("Under protocol cvpr22 the epoch is chosen on the test images, so these accuracies are too high.")
    if known and all(r.test is None or r.test.n < 3 for r in frame.rows):
        told.append("Fewer than three seeds were run, so the spread between runs is hardly known.")
    return told


# -- latency ----------------------------------------------------------------------------------------------


def latency_sentence(frames: Sequence[LatencyFrame]) -> str:
    """What zeros did to the time, as it was measured; "" without a pair of networks to compare."""
    pairs = [(f, row, ratio) for f in frames for row in f.done if (ratio := f.ratio(row)) is not None]
    plain = [pair for pair in pairs if pair[1]["backend"] in DENSE_KERNELS]
    skipping = [pair for pair in pairs if pair[1]["backend"] not in DENSE_KERNELS]
    same = [pair for pair in plain if abs(pair[2] - 1) <= SAME]
    parts = []
    if plain:
        parts.append(
            "Zeros alone do not make PyTorch or ONNX Runtime faster: they multiply by zero like by any other number."
        )
    if same:
        parts.append(f"Measured here, pruned networks run at {_range(same)} the speed of dense on {_backends(same)}.")
    for frame, row, ratio in plain:
        if abs(ratio - 1) > SAME:
            what = f"{short(str(row['label']), 60)} at {ratio:.2f}× on {row['backend']} (batch {frame.batch})"
            parts.append(f"Not so in this measurement: {what}.")
    if skipping:
        parts.append(f"Where zeros are skipped ({_backends(skipping)}) they run at {_range(skipping)}.")
    return " ".join(parts)


def _range(pairs: Sequence[tuple[LatencyFrame, Mapping[str, Any], float]]) -> str:
    low, high = (f"{end(ratio for _, _, ratio in pairs):.2f}×" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _backends(pairs: Sequence[tuple[LatencyFrame, Mapping[str, Any], float]]) -> str:
    return ", ".join(dict.fromkeys(str(row["backend"]) for _, row, _ in pairs))


def latency_outcome(row: Mapping[str, Any]) -> str:
    """Why a row has no time; "" where it has one."""
    return "" if row.get("ms_per_image") else f"{row.get('status', 'failed')}: {row.get('reason') or 'no reason given'}"


def conditions(frame: LatencyFrame) -> str:
    size = f"images of {frame.size} × {frame.size} pixels, " if frame.size else ""
    return f"{size}batch {frame.batch}, {count(frame.threads, 'thread')}"
