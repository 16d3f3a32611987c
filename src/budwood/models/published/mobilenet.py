"""MobileNetV1 under the four sets of names that the pruning papers use.

Sources: IST-DASLab/ACDC, models/mobilenet.py (Intel's; M-FAC's and the study's too) and RAIVNLab/STR,
models/mobilenetv1.py (the same names, a convolution as the classifier, see conv_head.py):

    model.0.0, model.0.1                           the first convolution, its batch norm
    model.K.0, .1, .3, .4   for K = 1 to 13        depthwise, batch norm, pointwise, batch norm
    fc                                             the classifier

IST-DASLab/sparse-imagenet-transfer, models/external/amc/mobilenet_v1.py (WoodFisher's and GMP's):

    conv1.0, conv1.1;  features.K.0, .1, .3, .4 for K = 0 to 12;  classifier.0

neuralmagic/sparseml, models/classification/mobilenet.py (sections of 1, 2, 2, 6 and 2 blocks; sparseml.py):

    input.conv, input.bn;  sections.S.B.depth.conv, .depth.bn, .point.conv, .point.bn;  classifier.fc

All have ReLU, padding 1 in the 3x3 convolutions, and compute the same: `published:mobilenet_v1` (nets.py).
"""

import re
from dataclasses import replace
from itertools import accumulate

from .contents import IMAGENET, Contents, Layout
from .nets import MOBILENET_V1

_PLACES = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1"}
_PARTS = {"depth.conv": "0.0", "depth.bn": "0.1", "point.conv": "1.0", "point.bn": "1.1"}
_FIRST_OF_SECTION = (0, *accumulate((1, 2, 2, 6, 2)))
_SIGNS = ("model.13.3.weight", "features.12.3.weight", "sections.4.1.point.conv.weight")
"""The last pointwise convolution under each set of names: 1024 x 1024."""


def _fits(found: Contents) -> bool:
    return any(sign in found.state and found.state[sign].shape == (1024, 1024, 1, 1) for sign in _SIGNS)


def _convert(found: Contents) -> Contents:
    preprocessing = found.preprocessing or IMAGENET
    return replace(found.renamed(_name), architecture=MOBILENET_V1, preprocessing=preprocessing)


def _name(name: str) -> str:
    first = re.match(r"(?:model\.0|conv1)\.([01])\.|input\.(conv|bn)\.", name)
    if first:
        place = first[1] or ("0" if first[2] == "conv" else "1")
        return f"conv.{place}.{name[first.end() :]}"
    if block := re.match(r"(model|features)\.(\d{1,3})\.([0134])\.", name):
        number = int(block[2]) - (block[1] == "model")
        return f"blocks.{number}.{_PLACES[block[3]]}.{name[block.end() :]}"
    if block := re.match(r"sections\.([0-4])\.(\d{1,3})\.((?:depth|point)\.(?:conv|bn))\.", name):
        return f"blocks.{_FIRST_OF_SECTION[int(block[1])] + int(block[2])}.{_PARTS[block[3]]}.{name[block.end() :]}"
    if head := re.match(r"(classifier\.0|classifier\.fc)\.", name):
        return f"fc.{name[head.end() :]}"
    return name


LAYOUT = Layout("MobileNetV1", _fits, _convert)
