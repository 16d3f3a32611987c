"""Every torchvision classification CNN, and some of timm, against eager PyTorch in float64, dense and pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual as TimmInvertedResidual
from timm.models.resnet import BasicBlock as TimmBasicBlock
from timm.models.senet import SEModule, SEResNetBlock
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock
from torchvision.models.densenet import _DenseLayer
from torchvision.models.efficientnet import FusedMBConv, MBConv
from torchvision.models.googlenet import BasicConv2d as GoogLeNetConv
from torchvision.models.inception import BasicConv2d as InceptionConv
from torchvision.models.mnasnet import _InvertedResidual
from torchvision.models.mobilenetv2 import InvertedResidual as MobileNetV2Block
from torchvision.models.mobilenetv3 import InvertedResidual as MobileNetV3Block
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.shufflenetv2 import InvertedResidual as ShuffleNetBlock
from torchvision.models.squeezenet import Fire
from torchvision.ops import SqueezeExcitation

import budwood
from budwood.bench.zeros import with_random_zeros
from budwood.testing.engine import FLOOR, rms
from budwood.testing.networks import CLASSIFIERS, OF_TIMM, QUICK, TIMM_TOO, classifier, measure_statistics, randomize

DENSE_TOO = {"resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"}
"""Tested without zeros by default as well."""


COSTLY = {"wide_resnet50_2", "efficientnet_v2_s", "inception_v3"}
"""Left to the slow tests where a sibling is tested."""


def example(name: str, count: int) -> Tensor:
    size = 96 if name.startswith("inception") else 64
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def network(name: str, sparsity: float, x: Tensor, seed: int = 0) -> nn.Module:
    """Every number at random, zeros among them, and statistics that fit."""
    module = with_random_zeros(randomize(classifier(name), seed, x), sparsity, seed).eval()
    measure_statistics(module, x, torch.Generator().manual_seed(seed))
    return module


def cases() -> list[object]:
    found: list[object] = []
    for name in (*CLASSIFIERS, *sorted(OF_TIMM | TIMM_TOO)):
        for sparsity in (0.9, 0.0):
            quick = name in ((QUICK - {"wide_resnet50_2"}) | OF_TIMM if sparsity else DENSE_TOO)
            found.append(pytest.param(name, sparsity, marks=[] if quick else [pytest.mark.slow]))
    return found


@pytest.mark.parametrize(("name", "sparsity"), cases())
def test_a_family_agrees_with_eager(name: str, sparsity: float) -> None:
    """Networks of many layers and few channels have errors that differ by a half from one draw to the next.

    Where the first draw exceeds the bound, three more are made and all four judged together.
    """
    ours, eager = [], []
    for seed in range(4):
        errors = relative_errors(name, sparsity, seed)
        ours.append(errors[0])
        eager.append(errors[1])
        if seed in (0, 3) and rms(np.array(ours)) <= 2 * rms(np.array(eager)) + FLOOR:
            return
    pytest.fail(f"errors {ours}, those of PyTorch {eager}")


def relative_errors(name: str, sparsity: float, seed: int) -> tuple[float, float]:
    """Ours and eager's, to float64."""
    x = example(name, 21 if name in OF_TIMM | DENSE_TOO else 5)  # in pieces of 4 and 1, AlexNet's also of 16
    module = network(name, sparsity, x, seed)
    with torch.inference_mode():
        eager = module(x).numpy()
        exact = copy.deepcopy(module).double()(x.double()).numpy()
    # The images must matter, and float32 must be able to tell: else anything would pass.
    assert rms(exact - exact.mean(0)) > 0.01 * rms(exact)
    assert rms(eager - exact) < 5e-5 * rms(exact)
    ours = budwood.compile(module, example=x, threads=2)(x.numpy())
    return rms(ours - exact) / rms(exact), rms(eager - exact) / rms(exact)


# -- every branch has a say -------------------------------------------------------------------------------------


def branches(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What stands beside a shortcut or another branch, and the gates."""
    for name, m in module.named_modules():
        if name.lower().startswith("aux"):
            continue  # of training only
        match m:
            case BasicBlock() | TimmBasicBlock() | SEResNetBlock():
                yield f"{name}.bn2", m.bn2
            case Bottleneck():
                yield f"{name}.bn3", m.bn3
            case ResBottleneckBlock():
                yield f"{name}.f", m.f
            case MobileNetV2Block() if m.use_res_connect:
                yield f"{name}.conv", m.conv
            case MobileNetV3Block() | MBConv() | FusedMBConv() if m.use_res_connect:
                yield f"{name}.block", m.block
            case _InvertedResidual() if m.apply_residual:
                yield f"{name}.layers", m.layers
            case TimmInvertedResidual() if m.has_skip:
                yield f"{name}.bn3", m.bn3
            case CNBlock():
                yield f"{name}.block", m.block
            case ShuffleNetBlock():
                yield f"{name}.branch2", m.branch2
            case Fire():
                yield from ((f"{name}.expand1x1", m.expand1x1), (f"{name}.expand3x3", m.expand3x3))
            case _DenseLayer() | GoogLeNetConv() | InceptionConv() | SqueezeExcitation() | SEModule():
                yield name, m
        if isinstance(getattr(m, "downsample", None), nn.Module):
            yield f"{name}.downsample", m.downsample
        if isinstance(getattr(m, "proj", None), nn.Module):
            yield f"{name}.proj", m.proj


def without(module: nn.Module, x: Tensor, branch: nn.Module) -> Tensor:
    """The answer with zeros for what the branch makes; a gate lets everything through."""
    gate = isinstance(branch, SqueezeExcitation | SEModule)
    hook = branch.register_forward_hook(lambda _, args, y: args[0] if gate else torch.zeros_like(y))
    try:
        return module(x)
    finally:
        hook.remove()


BRANCHING = sorted((QUICK | OF_TIMM) - {"alexnet", "mobilenetv1_100", "vgg11_bn"})


@pytest.mark.parametrize("sparsity", [0.9, pytest.param(0.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in COSTLY)) for n in BRANCHING])
@torch.inference_mode()
def test_every_branch_moves_the_answer(name: str, sparsity: float) -> None:
    """By a hundredth at least: then a wrong branch does not pass for a rounding error."""
    x = example(name, 4)
    module = network(name, sparsity, x)
    answer = module(x[:2])
    found = {label: branch for label, branch in branches(module)}
    assert len(found) >= 8
    moved = {
        label: rms((without(module, x[:2], b) - answer).numpy()) / rms(answer.numpy()) for label, b in found.items()
    }
    assert min(moved.values()) >= 0.01, {label: share for label, share in moved.items() if share < 0.01}


def test_the_branches_are_the_networks() -> None:
    """Nothing that is added, multiplied or joined is left out: as many as the names of the blocks say."""
    counts = {"resnet18": 8 + 3, "mobilenet_v2": 10, "efficientnet_b0": 16 + 9, "convnext_tiny": 18, "densenet121": 58}
    counts |= {"legacy_seresnet18": 8 + 8 + 3, "resnet18d": 8 + 3, "tf_efficientnet_lite0": 9}
    for name, count in counts.items():
        assert len(list(branches(classifier(name)))) == count, name
