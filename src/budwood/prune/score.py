"""How much a weight matters."""

from collections.abc import Iterable

from torch import Tensor, nn


def magnitude(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Parameter name -> |w|."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().abs() for name in names}
