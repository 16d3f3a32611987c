"""Residual networks for small images (32 to 64 px) and small machines: what an upstream study on a CPU trains."""

from torch import Tensor, nn

from ..core.checkpoint import Lineage
from ..core.errors import UserError
from ..core.mask import Mask
from ..core.registry import nearest, sources
from ..core.task import Preprocessing
from .network import Network, prunable

WIDTHS = (32, 64, 128, 256)
"""Channels of the four stages, each at half the resolution of the one before."""
BLOCKS = {"resnet10": 1, "resnet18": 2}
"""Name -> residual blocks a stage: 1.25 and 2.8 million weights with 100 classes."""


@sources.register("small")
def build(name: str, num_classes: int | None, pretrained: bool) -> Network:
    """`small:resnet10` or `small:resnet18`; there are no trained weights."""
    if name not in BLOCKS:
        raise UserError(f"there is no small network {name!r}; {nearest(name, list(BLOCKS))}")
    if pretrained:
        raise UserError(f"small:{name} has no trained weights: train it with --from-scratch --data IMAGES")
    classes = num_classes or 1000
    module = SmallResNet(BLOCKS[name], classes)
    lineage = Lineage(
        architecture=f"small:{name}", num_classes=classes, preprocessing=Preprocessing(size=32, resize=36)
    )
    return Network(module, Mask.ones(prunable(module, head=True)), lineage)


class SmallResNet(nn.Module):
    """He et al. 2016 with basic blocks, a quarter to a half as wide, and a stem that halves the image once."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        stages: list[nn.Module] = []
        inputs = WIDTHS[0]
        for k, width in enumerate(WIDTHS):
            strides = [2 if k else 1] + [1] * (blocks - 1)
            stages.append(nn.Sequential(*(Basic(width if i else inputs, width, s) for i, s in enumerate(strides))))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: Tensor = self.fc(self.pool(self.stages(self.stem(images))))
        return logits


class Basic(nn.Module):
    """Two 3x3 convolutions and the way round them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == outputs
        self.downsample = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(inner + self.downsample(x))
        return out
