"""STR's networks with their learned thresholds.

Source: RAIVNLab/STR, utils/conv_type.py (STRConv, sparseFunction), models/resnet.py, main.py.

The file is a dict: `epoch`, `arch`, `state_dict`, accuracies, `optimizer`; names begin with `module.`.
Every convolution NAME, the classifier among them (a 1x1 convolution, see conv_head.py), has

    NAME.weight            as in torchvision
    NAME.sparseThreshold   one number s, shape (1, 1)

and computes with sign(w) relu(|w| - sigmoid(s)): what the threshold takes to zero is pruned, and all that stays is
smaller by it. This weight is materialised here. s may be -3200 or so, where sigmoid(s) is zero and the layer dense.
The authors' files "Dense" have no thresholds: the same is done in them already.
"""

from dataclasses import replace

import torch

from .contents import IMAGENET, Contents, Layout

_SUFFIX = ".sparseThreshold"


def _fits(found: Contents) -> bool:
    return any(name.endswith(_SUFFIX) for name in found.state)


def _convert(found: Contents) -> Contents:
    state = {name: value for name, value in found.state.items() if not name.endswith(_SUFFIX)}
    kept = dict(found.kept)
    names = [name.removesuffix(_SUFFIX) for name in found.state if name.endswith(_SUFFIX)]
    for name in names:
        threshold, weight = found.state[f"{name}{_SUFFIX}"], state.get(f"{name}.weight")
        if (
            weight is None
            or threshold.numel() != 1
            or not (weight.is_floating_point() and threshold.is_floating_point())
        ):
            raise found.damaged(f"the threshold of {name} is not one number beside a weight")
        size = torch.relu(weight.abs() - torch.sigmoid(threshold.reshape(())))
        state[f"{name}.weight"] = materialised = torch.sign(weight) * size
        kept[f"{name}.weight"] = (materialised != 0) & kept.get(f"{name}.weight", torch.tensor(True))
    found = replace(found, state=state, kept=kept, preprocessing=IMAGENET, method="str")
    return found.noted(f"the learned thresholds of {len(names)} layers are applied")


LAYOUT = Layout("STR's thresholds", _fits, _convert)
