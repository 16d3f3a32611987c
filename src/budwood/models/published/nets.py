"""Architectures of published networks that neither torchvision nor timm has: `published:NAME`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ...core.checkpoint import Lineage
from ...core.errors import UserError
from ...core.mask import Mask
from ...core.registry import nearest, sources
from .contents import IMAGENET

if TYPE_CHECKING:
    from ..network import Network

RESNET50_TF = "published:resnet50_tf"
STANDS_FOR_RESNET50_TF = ("torchvision:resnet50", "timm:resnet50")
MOBILENET_V1 = "published:mobilenet_v1"


class SamePool(nn.Module):
    """TensorFlow's maximum pool of 3 pixels, stride 2, padding "SAME": an axis of even length is padded by one pixel
    at its end, an odd one by one at each."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return F.max_pool2d(images, 3, 2, padding=(int(height % 2), int(width % 2)), ceil_mode=True)


def resnet50_tf(num_classes: int) -> nn.Module:
    """torchvision's ResNet-50 with TensorFlow's pool, which is all in which TensorFlow's ResNet differs."""
    module = torchvision.models.resnet50(num_classes=num_classes)
    module.maxpool = SamePool()  # type: ignore[assignment]
    return module


class MobileNetV1(nn.Module):
    """Howard et al. 2017, width 1, with plain ReLU, as the pruning papers have it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
        self.conv = _convolution(3, 32, 3, stride=2)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    _convolution(before, before, 3, stride=2 if block in (1, 3, 5, 11) else 1, groups=before),
                    _convolution(before, after, 1),
                )
                for block, (before, after) in enumerate(pairwise(widths))
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.blocks(self.conv(images))).flatten(1))
        return logits


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


NETS: dict[str, Callable[[int], nn.Module]] = {"mobilenet_v1": MobileNetV1, "resnet50_tf": resnet50_tf}


@sources.register("published")
def build(name: str, num_classes: int | None, pretrained: bool) -> Network:
    """An architecture for which the weights are in a file: `published:NAME@FILE`."""
    from ..network import Network, prunable  # which itself reads files with the layouts beside this one

    if name not in NETS:
        raise UserError(f"there is no published:{name}; {nearest(name, list(NETS))}")
    if pretrained:
        raise UserError(f"published:{name} comes without weights; name their file: published:{name}@FILE")
    module = NETS[name](num_classes or 1000)
    lineage = Lineage(architecture=f"published:{name}", num_classes=num_classes or 1000, preprocessing=IMAGENET)
    return Network(module, Mask.ones(prunable(module, head=True)), lineage)
