"""torchvision's classification networks with the weights its authors publish."""

import urllib.request
from pathlib import Path

import torch
import torchvision

from ..core.checkpoint import Lineage
from ..core.errors import UserError
from ..core.mask import Mask
from ..core.registry import nearest, sources
from ..core.task import Preprocessing
from .network import Network, prunable

AUXILIARY = ("googlenet", "inception_v3")
"""These train with side classifiers, which a transferred network does not need."""


@sources.register("torchvision")
def build(name: str, num_classes: int | None, pretrained: bool) -> Network:
    """`name` as torchvision.models.get_model takes it; the weights are its DEFAULT ones."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"torchvision has no model {name!r}; {nearest(name, known)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    kwargs = {"num_classes": num_classes} if num_classes is not None and not pretrained else {}
    if name in AUXILIARY and not pretrained:
        kwargs |= {"aux_logits": False, "init_weights": False, "transform_input": True}  # as with their weights
    try:
        if pretrained:
            _reach(weights.url)
        module = torchvision.models.get_model(name, weights=weights if pretrained else None, **kwargs)
    except (OSError, RuntimeError):
        file = weights.url.rsplit("/", 1)[-1]
        raise UserError(
            f"cannot get the weights of torchvision:{name} (no internet?); download {weights.url} elsewhere and put it "
            f"at {torch.hub.get_dir()}/checkpoints/{file}, or use packaged:tf_efficientnet_lite0"
        ) from None
    if name in AUXILIARY:
        _drop_auxiliary(module)
    meta = weights.transforms()
    lineage = Lineage(
        architecture=f"torchvision:{name}",
        source=f"torchvision {weights}" if pretrained else "",
        num_classes=1000 if pretrained or num_classes is None else num_classes,
        classes=tuple(_unique(weights.meta["categories"])) if pretrained else None,
        preprocessing=Preprocessing(
            size=meta.crop_size[0],
            resize=meta.resize_size[0],
            interpolation=meta.interpolation.value,
            mean=tuple(meta.mean),
            std=tuple(meta.std),
        ),
    )
    return Network(module, Mask.ones(prunable(module, head=True)), lineage)


def _reach(url: str) -> None:
    """Raise OSError where weights must be fetched and their host does not answer: torch.hub prints a line before it
    asks, and waits for ever."""
    if not Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1]).exists():
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30).close()


def _drop_auxiliary(module: torch.nn.Module) -> None:
    module.aux_logits = False  # type: ignore[assignment]
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(module, name):
            setattr(module, name, None)


def _unique(names: list[str]) -> list[str]:
    """ImageNet's class names with the few that occur twice (crane, maillot) told apart by a number."""
    seen: dict[str, int] = {}
    return [
        name if (seen.update({name: seen.get(name, 0) + 1}) or seen[name] == 1) else f"{name} {seen[name]}"
        for name in names
    ]
