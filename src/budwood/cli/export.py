"""`budwood export`: a network as dense weights or ONNX, for everything that is not Budwood."""

from pathlib import Path

from ..models.export import export
from ..models.network import open_network
from .common import say


def run(model: str, out: Path, /) -> None:
    """Write a network for other programs. Its zeros stay zeros; classes and preprocessing travel along in ONNX.

    Parameters
    ----------
    model
        The path of a checkpoint, or any other model's name.
    out
        NAME.pth or NAME.safetensors: a state_dict that plain torchvision or timm loads. NAME.onnx: batch of any size.
    """
    network = open_network(model)
    export(network, out)
    lineage = network.lineage
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {lineage.architecture}, {lineage.num_classes} classes")
