"""Networks for tests: every convolutional classifier of torchvision, and every number that a network holds at random.

So that no branch can be left out unnoticed.
"""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models import timm

TRANSFORMERS = ("vit_", "swin_", "maxvit_")
CLASSIFIERS = [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(TRANSFORMERS)]
"""Every convolutional classifier of torchvision, by name."""
QUICK = {
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11_bn",
    "wide_resnet50_2",
}
"""A small one of each family; the others take minutes together."""
OF_TIMM = {"legacy_seresnet18", "mobilenetv1_100", "resnet18d", "tf_efficientnet_lite0"}
"""A small one of each family that torchvision does not have."""
TIMM_TOO = {
    "convnext_atto",
    "mnasnet_small",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "regnetx_002",
    "regnety_002",
    "resnext26ts",
    "seresnet18",
    "seresnext26d_32x4d",
}
"""timm's own of families that torchvision has as well."""
_OPTIONS = {
    "googlenet": {"init_weights": False, "transform_input": True},
    "inception_v3": {"init_weights": False, "transform_input": True},
}


def classifier(name: str) -> nn.Module:
    """The network without weights, with whatever it does to its input: torchvision's, or one of timm's above."""
    if name in OF_TIMM | TIMM_TOO:
        return timm.build(name, None, pretrained=False).module
    return torchvision.models.get_model(name, weights=None, **_OPTIONS.get(name, {}))


def randomize(model: nn.Module, seed: int, example: Tensor | None = None) -> nn.Module:
    """Every parameter and batch norm statistic of `model` at random, in place; the same for the same seed.

    Zero-initialised branches and layer scales of 1e-6 get a say, and activations stay of a sane size at any depth:
    the statistics are those of `example` (N, ...), by default an image of 64 x 64 in noise, somewhat off.
    """
    random = torch.Generator().manual_seed(seed)
    if example is None:
        example = torch.randn(4, 3, 64, 64, generator=random)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(_weights(parameter, random))
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=random))
            elif isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm) and module.bias is not None:
                module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=random))
        measure_statistics(model, example, random)
    return model


def _weights(parameter: Tensor, random: torch.Generator) -> Tensor:
    """Kernels and matrices by their fan-in; scales (one number per channel, or one at all) between 0.5 and 1.5."""
    fan_in = math.prod(parameter.shape[1:])
    if fan_in > 1:
        return math.sqrt(1.5 / fan_in) * torch.randn(parameter.shape, generator=random)
    return 0.5 + torch.rand(parameter.shape, generator=random)


@torch.no_grad()
def measure_statistics(model: nn.Module, example: Tensor, random: torch.Generator) -> None:
    """Running means and variances: those of the values that arrive, within a third of a standard deviation.

    To be called again where weights are changed after `randomize`: with the old statistics a pruned network forgets
    its input or, where little arrives and is blown up, becomes chaotic.
    """

    def measure(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        dims = [d for d in range(args[0].ndim) if d != 1]
        values = args[0].double()
        var, mean = torch.var_mean(values, dims, correction=0)
        # What hardly varies over a few images must not be blown up for others.
        var = (var + values.square().mean() + 1e-3) * (0.7 + 0.6 * torch.rand(var.shape, generator=random))
        mean = mean + 0.3 * var.sqrt() * torch.randn(mean.shape, generator=random)
        module.running_mean.copy_(mean)
        module.running_var.copy_(var)

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        if norms:
            model(example.to(norms[0].running_mean))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
