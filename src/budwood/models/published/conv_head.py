"""ResNets and MobileNets whose classifier is a 1x1 convolution, most often without a bias.

Sources: RAIVNLab/STR, models/resnet.py and models/mobilenetv1.py (all its methods: STR, DNW, GMP, dense;
DNW and GMP prune in the forward pass, and their files hold the weights before that);
IST-DASLab/sparse-imagenet-transfer, models/external/str, whose files are STR's with the thresholds applied.

    fc.weight   (classes, features, 1, 1)
    fc.bias     (classes), only where the classifier was left dense

After average pooling this is a linear layer; a bias that is not there is zero. All else has torchvision's names.
"""

from dataclasses import replace

from .contents import IMAGENET, Contents, Layout, plain_bias

SOME = 0.01
"""Zeros of a layer that was pruned, at least."""


def _fits(found: Contents) -> bool:
    weight = found.state.get("fc.weight")
    return weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1)


def _convert(found: Contents) -> Contents:
    state, kept = dict(found.state), dict(found.kept)
    state["fc.weight"] = weight = state["fc.weight"].flatten(1)
    if "fc.weight" in kept:
        kept["fc.weight"] = kept["fc.weight"].flatten(1)
    state.setdefault("fc.bias", plain_bias(weight.shape[0], weight))
    found = replace(found, state=state, kept=kept, preprocessing=found.preprocessing or IMAGENET)
    weights = [value for value in state.values() if value.ndim == 4]
    if kept or not weights or max(float((value == 0).float().mean()) for value in weights) > SOME:
        return found
    return found.noted(
        "no layer has zeros: a dense network, or one of STR's by DNW or GMP, whose files hold the weights before they "
        "are pruned, and not how many are"
    )


LAYOUT = Layout("a convolution as the classifier (STR)", _fits, _convert)
