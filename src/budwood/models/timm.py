"""timm's networks with the weights its hub publishes."""

import contextlib
import logging
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ..core.checkpoint import Lineage
from ..core.errors import UserError
from ..core.mask import Mask
from ..core.registry import nearest, sources
from ..core.task import Preprocessing
from .network import Network, prunable


@sources.register("timm")
def build(name: str, num_classes: int | None, pretrained: bool) -> Network:
    """`name` as timm.create_model takes it."""
    known = available()
    if not known:
        raise UserError("timm is not installed; pip install 'budwood[timm]'")
    import timm

    if name.partition(".")[0] not in known:
        raise UserError(f"timm has no model {name!r}; {nearest(name, known)}")
    tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if "." in name and name not in tagged:
        raise UserError(f"timm has no weights called {name!r}; {nearest(name, tagged)}")
    kwargs: dict[str, Any] = {} if num_classes is None or pretrained else {"num_classes": num_classes}
    try:
        with _brief_hub():
            module: Any = timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:  # the hub raises dozens of kinds; without it only a wrong tag is left
        if not pretrained:
            raise UserError(f"timm cannot build {name!r}: {error}") from None
        raise UserError(
            f"cannot get the weights of timm:{name} (no internet?); download {_weights_place(timm, name)} elsewhere "
            f"and name the file: timm:{name}@FILE, or use packaged:tf_efficientnet_lite0"
        ) from None
    if isinstance(module.pretrained_cfg.get("classifier"), tuple | list):
        raise UserError(f"timm:{name} answers with the mean of two classifiers, which cannot be replaced; take another")
    lineage = Lineage(
        architecture=f"timm:{name}",
        source=f"timm {module.pretrained_cfg.get('hf_hub_id') or name}" if pretrained else "",
        num_classes=int(module.num_classes),
        preprocessing=_preprocessing(module.pretrained_cfg),
    )
    return Network(module, Mask.ones(prunable(module, head=True)), lineage)


def available() -> list[str]:
    """timm's names; none where it is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


@contextlib.contextmanager
def _brief_hub() -> Iterator[None]:
    """Without the hub's log, and without its minute of retries where the hub cannot be reached."""
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    logger.setLevel(logging.CRITICAL)
    constants.HF_HUB_OFFLINE = offline or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        logger.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


def _answers(address: str) -> bool:
    """Whether a connection to the host of `address` can be opened, or to the proxy before it."""
    proxies = urllib.request.getproxies()
    host = urlsplit(address)
    if not urllib.request.proxy_bypass(host.hostname or ""):
        host = urlsplit(proxies.get("https") or proxies.get("all") or address)
    try:
        socket.create_connection((host.hostname, host.port or (80 if host.scheme == "http" else 443)), 10).close()
    except (OSError, ValueError):
        return False
    return True


def _weights_place(timm: Any, name: str) -> str:
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return "its weights"
    hub = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else ""
    return hub.replace("timm/", f"timm/{name}") if hub.endswith("timm/") else (hub or config.url or "its weights")


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    size = int(config.get("input_size", (3, 224, 224))[-1])
    interpolation = config.get("interpolation", "bilinear")
    return Preprocessing(
        size=size,
        resize=max(size, int(size / config.get("crop_pct", 0.875))),
        interpolation=interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        mean=tuple(config.get("mean", (0.485, 0.456, 0.406))),
        std=tuple(config.get("std", (0.229, 0.224, 0.225))),
    )
