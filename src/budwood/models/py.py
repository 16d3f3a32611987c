"""A network from one's own code: `py:module.function`, a callable that takes `num_classes` and gives an nn.Module."""

import importlib
import sys

from pydantic import ValidationError
from torch import nn

from ..core.checkpoint import Lineage
from ..core.errors import UserError
from ..core.mask import Mask
from ..core.registry import sources
from ..core.task import Preprocessing
from .network import Network, prunable


@sources.register("py")
def build(name: str, num_classes: int | None, pretrained: bool) -> Network:
    """Calls function(num_classes=N), or function() for its trained weights; the current folder is importable.

    The module may carry `preprocessing`, a dict of budwood's Preprocessing fields; else ImageNet's at 224 px.
    """
    module_name, _, function = name.rpartition(".")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        maker = getattr(importlib.import_module(module_name), function)
    except Exception as error:  # whatever one's own module raises while it is imported
        raise UserError(
            f"cannot import py:{name} ({type(error).__name__}: {error}); write it as py:module.function"
        ) from None
    try:
        module = maker() if num_classes is None else maker(num_classes=num_classes)
    except Exception as error:
        raise UserError(f"py:{name} failed: {type(error).__name__}: {error}") from None
    if not isinstance(module, nn.Module):
        raise UserError(f"py:{name} gave a {type(module).__name__}, not an nn.Module")
    weights = prunable(module, head=True)
    try:
        preprocessing = Preprocessing(**getattr(module, "preprocessing", {}))
    except (ValidationError, TypeError):
        fields = ", ".join(Preprocessing.model_fields)
        raise UserError(f"the preprocessing of py:{name} does not fit; it is a dict of {fields}") from None
    lineage = Lineage(
        architecture=f"py:{name}",
        source=f"py:{name}" if pretrained else "",
        num_classes=int(list(weights.values())[-1].shape[0]),
        preprocessing=preprocessing,
    )
    return Network(module, Mask.ones(weights), lineage)
