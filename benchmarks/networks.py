"""Networks by their names."""

from budwood.core.registry import sources
from budwood.models.network import Network


def named(model: str, pretrained: bool = False) -> Network:
    """SOURCE:NAME, as it is initialised unless its published weights are asked for."""
    source, _, name = model.partition(":")
    network: Network = sources.get(source)(name, None, pretrained)
    return network
