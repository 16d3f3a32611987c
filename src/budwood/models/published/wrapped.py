"""Wrapped layers, as "How Well Do Sparse ImageNet Models Transfer?" and AC/DC store their networks.

Sources: IST-DASLab/sparse-imagenet-transfer and IST-DASLab/ACDC, utils/masking_utils.py and utils/checkpoints.py.

The file is a dict: `epoch`, `model_config` ({"arch", "dataset"}), `model_state_dict`; AC/DC's have `optimizer` and
`lr_scheduler` too, each {"type": its class, "state_dict"}. The names may begin with `module.` (DataParallel).
Every convolution and linear layer NAME lies in a wrapper:

    NAME._layer.weight    the weight, as in torchvision
    NAME._layer.bias      where the layer has one
    NAME._weight_mask     of the weight's shape and type, 1 = kept
    NAME._bias_mask       where the layer has a bias; may be missing (older files)

A forward pass multiplies weight and bias by their masks. All else (batch norm) has its plain names.
The networks are torchvision's, or one of the other layouts here inside the wrappers.
"""

from dataclasses import replace

from ...core.errors import UserError
from .contents import IMAGENET, Contents, Layout, as_kept

_LAYER, _WEIGHT_MASK, _BIAS_MASK = "._layer.", "._weight_mask", "._bias_mask"


def _fits(found: Contents) -> bool:
    return any(name.endswith(f"{_LAYER}weight") for name in found.state)


def _convert(found: Contents) -> Contents:
    state = {
        name.replace(_LAYER, ".", 1): value
        for name, value in found.state.items()
        if not name.endswith((_WEIGHT_MASK, _BIAS_MASK))
    }
    kept = {}
    biases = 0
    for name, mask in found.state.items():
        if not name.endswith((_WEIGHT_MASK, _BIAS_MASK)):
            continue
        target = name.replace("._weight_mask", ".weight").replace("._bias_mask", ".bias")
        if target not in state:
            raise UserError(f"{found.where} has a mask of {target}, but no such weight; make or copy it again")
        of_target = as_kept(mask, state[target], target, found)
        if name.endswith(_WEIGHT_MASK):
            kept[target] = of_target
        elif not bool(of_target.all()):
            state[target] = state[target].masked_fill(~of_target, 0)
            biases += 1
    found = replace(found, state=state, kept=kept, preprocessing=found.preprocessing or IMAGENET)
    if biases:
        found = found.noted(f"the masks of {biases} biases were multiplied in; biases are not kept pruned")
    return found


LAYOUT = Layout("layers wrapped with their masks (IST-DASLab)", _fits, _convert)
