"""ResNets and MobileNets whose classifier is a 1x1 convolution, most often without a bias.

Sources: RAIVNLab/STR, models/resnet.py and models/mobilenetv1.py (all its methods: STR, DNW, GMP, dense);
IST-DASLab/sparse-imagenet-transfer, models/external/str, whose files are STR's with the thresholds applied.

    fc.weight   (classes, features, 1, 1)
    fc.bias     (classes), only where the classifier was left dense

After average pooling this is a linear layer; a bias that is not there is zero. All else has torchvision's names.
"""

from dataclasses import replace

from .contents import IMAGENET, Contents, Layout, plain_bias


def _fits(found: Contents) -> bool:
    weight = found.state.get("fc.weight")
    return weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1)


def _convert(found: Contents) -> Contents:
    state, kept = dict(found.state), dict(found.kept)
    state["fc.weight"] = weight = state["fc.weight"].flatten(1)
    if "fc.weight" in kept:
        kept["fc.weight"] = kept["fc.weight"].flatten(1)
    state.setdefault("fc.bias", plain_bias(weight.shape[0], weight))
    return replace(found, state=state, kept=kept, preprocessing=found.preprocessing or IMAGENET)


LAYOUT = Layout("a convolution as the classifier (STR)", _fits, _convert)
