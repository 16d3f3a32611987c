"""What is left of a pruned network, layer by layer: weights, filters, channels, FLOPs."""

from collections.abc import Iterable
from dataclasses import dataclass

from ...core.result import Layer, Result


@dataclass(frozen=True)
class Shares:
    """Fractions of one layer, or of all."""

    sparsity: float
    """Weights that are zero."""
    filters: float | None
    """Output channels without a weight left; None where they were not counted. `channels` likewise for the input."""
    channels: float | None
    flops: float | None
    """FLOPs of an image, of the dense layer's."""


def layerwise(results: Iterable[Result]) -> dict[str, Shares]:
    """Layer -> its shares over all `results`, of one network on any tasks and seeds; in forward order.

    A layer that is fully there in every one of them, as a head made anew, has a sparsity of 0.
    """
    by_name: dict[str, list[Layer]] = {}
    for result in results:
        for layer in result.layers:
            by_name.setdefault(layer.name, []).append(layer)
    return {name: shares(layers) for name, layers in by_name.items()}


def shares(layers: Iterable[Layer]) -> Shares:
    """Over all of `layers` together: sums before fractions, so a large layer counts for more."""
    layers = list(layers)
    kept = _share(sum(layer.kept for layer in layers), sum(layer.total for layer in layers))
    return Shares(
        0.0 if kept is None else 1 - kept,
        _share(sum(layer.filters_zero for layer in layers), sum(layer.filters for layer in layers)),
        _share(sum(layer.channels_zero for layer in layers), sum(layer.channels for layer in layers)),
        _share(sum(layer.flops for layer in layers), sum(layer.flops_dense for layer in layers)),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
