"""RigL's ResNet-50 as the transfer study converted it to PyTorch.

Source: IST-DASLab/sparse-imagenet-transfer, models/external/rigl/resnet.py (ResnetTF); README.md for
the bicubic images.

    initial_conv.conv, initial_conv.bn                    conv1, bn1
    layerG.block.B.convC.conv, .convC.bn                  layerG.B.convC, .bnC
    layerG.block.B.shortcut.conv, .shortcut.bn            layerG.B.downsample.0, .downsample.1
    fc                                                    fc

In the study's files these lie in wrapped layers (wrapped.py). The maximum pool is TensorFlow's: see nets.py.
"""

import re
from dataclasses import replace

from .contents import IMAGENET, Contents, Layout
from .nets import RESNET50_TF, STANDS_FOR_RESNET50_TF

NAMES = (
    (re.compile(r"^initial_conv\.conv\."), r"conv1."),
    (re.compile(r"^initial_conv\.bn\."), r"bn1."),
    (re.compile(r"^layer(\d)\.block\.(\d+)\.conv(\d)\.conv\."), r"layer\1.\2.conv\3."),
    (re.compile(r"^layer(\d)\.block\.(\d+)\.conv(\d)\.bn\."), r"layer\1.\2.bn\3."),
    (re.compile(r"^layer(\d)\.block\.(\d+)\.shortcut\.conv\."), r"layer\1.\2.downsample.0."),
    (re.compile(r"^layer(\d)\.block\.(\d+)\.shortcut\.bn\."), r"layer\1.\2.downsample.1."),
)


def _fits(found: Contents) -> bool:
    return "initial_conv.conv.weight" in found.state


def _convert(found: Contents) -> Contents:
    return replace(
        found.renamed(_name), architecture=RESNET50_TF, instead_of=STANDS_FOR_RESNET50_TF, method="rigl",
        preprocessing=IMAGENET.model_copy(update={"interpolation": "bicubic"}),
    )  # fmt: skip


def _name(name: str) -> str:
    for pattern, ours in NAMES:
        name = pattern.sub(ours, name)
    return name


LAYOUT = Layout("RigL's ResNet-50 in PyTorch (IST-DASLab)", _fits, _convert)
