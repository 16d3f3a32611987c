"""How fast a study's networks are in the engine, for the report."""

from collections import defaultdict

import torch

from ..bench.latency import latency
from ..core.errors import UserError
from .jobs import opened
from .store import Origin, Store


def measure(store: Store, batch: int, seconds: float) -> int:
    """Time every network that a finished transfer started from, at its size of image, those of one size in one
    interleaved run of about `seconds`; the store keeps it. Returns how many were timed.

    Raises UserError where there is none, or a network is not to be found any more.
    """
    by_size: dict[int, set[str]] = defaultdict(set)
    for spec in (r.spec for r in store.results() if r.status == "done" and r.spec.transfer != "none"):
        if spec.where in ("none", "upstream") and spec.preprocessing is not None:
            by_size[spec.preprocessing.size].add(spec.parent)
    if not by_size:
        raise UserError(f"no finished transfer in {store.path.parent}; start with `budwood study run`")
    origins, root, count = store.origins(), store.path.parent, 0
    for size, parents in sorted(by_size.items()):
        modules = {p: opened(p, origins.get(p, Origin()).source, root).module.eval() for p in sorted(parents)}
        rows = latency(modules, size, batch, ["engine"], torch.get_num_threads(), seconds)
        timed = {row.label: row.model_dump(mode="json") for row in rows if row.ms_per_image}
        store.record_speeds(timed)
        count += len(timed)
    return count
