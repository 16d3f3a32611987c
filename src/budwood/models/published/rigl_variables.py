"""RigL's ResNet-50 as TensorFlow's variables, in the authors' checkpoints (bundle.py) or dumped to a .npz file.

Source: google-research/rigl, rigl/imagenet_resnet/resnet_model.py, pruning_layers.py, imagenet_train_eval.py and
rigl/str_sparsities.py; tf.contrib.model_pruning, layers/core_layers.py.

    resnet_model/LAYER/weights        height, width, inputs, outputs; the dense layer's: inputs, outputs
    resnet_model/LAYER/mask           of the same shape, 1.0 = kept; not there for a layer left dense
    resnet_model/LAYER/threshold      not used
    resnet_model/final_dense/biases   (classes)
    resnet_model/batch_normalization[_N]/gamma, beta, moving_mean, moving_variance

LAYER is initial_conv, final_dense, and in the block B (from 0) of the group G (from 1), for C = 1, 2, 3:
bottleneck_C_block_group_projection_block_groupG where B is 0, else bottleneck_C_block_groupG_B_1; the shortcut of the
first block is bottleneck_projection_block_group_projection_block_groupG. A layer left dense lies once more in a scope
of its own name. The batch norms are numbered as they are made: the first has no number; the shortcut's comes before
those of its block. Names may end in `:0`. Slots of the optimiser (.../Momentum) and what lies outside resnet_model
(global_step) belong to the training.

The network computes with weights times mask. The stride is in the 3x3 convolution, epsilon is 1e-5, and strided
convolutions are padded by (k - 1) / 2 on both sides: all as in torchvision. The maximum pool alone is padded "SAME":
see `resnet50_tf` in nets.py. Images: shorter side 256, bicubic, crop 224, the usual mean and deviation.
The repository's other methods (SET, SNFS, static) write the same, so the method is not told.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...core.errors import UserError
from .contents import IMAGENET, Contents, Layout, as_kept
from .nets import RESNET50_TF, STANDS_FOR_RESNET50_TF

SCOPE = "resnet_model/"
TRAINING = ("Momentum", "threshold", "ExponentialMovingAverage")
"""Last parts of names that a network at rest does not need."""
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def layers() -> Iterator[tuple[str, str, str]]:
    """(TensorFlow's layer, torchvision's convolution, its batch norm), in the order in which they are made."""
    yield "initial_conv", "conv1", "bn1"
    for group, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            ours = f"layer{group}.{block}"
            first = f"block_group_projection_block_group{group}"
            if block == 0:
                yield f"bottleneck_projection_{first}", f"{ours}.downsample.0", f"{ours}.downsample.1"
            for conv in (1, 2, 3):
                place = f"block_group{group}_{block}_1" if block else first
                yield f"bottleneck_{conv}_{place}", f"{ours}.conv{conv}", f"{ours}.bn{conv}"


def _fits(found: Contents) -> bool:
    return any(name.startswith(SCOPE) for name in found.state)


def _convert(found: Contents) -> Contents:
    left = _Variables(found)
    state: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for number, (layer, conv, norm) in enumerate(layers()):
        left.weight(layer, f"{conv}.weight", (3, 2, 0, 1), state, kept)
        scope = f"batch_normalization_{number}" if number else "batch_normalization"
        for theirs, ours in NORM.items():
            state[f"{norm}.{ours}"] = left.take(scope, theirs)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    left.weight("final_dense", "fc.weight", (1, 0), state, kept)
    state["fc.bias"] = left.take("final_dense", "biases", "bias")
    left.nothing_else()
    return replace(
        found, state=state, kept=kept, architecture=RESNET50_TF, instead_of=STANDS_FOR_RESNET50_TF,
        preprocessing=IMAGENET.model_copy(update={"interpolation": "bicubic"}),
    )  # fmt: skip


class _Variables:
    """TensorFlow's variables, each of which is taken once."""

    def __init__(self, found: Contents) -> None:
        self.found = found
        names = {name: name.removesuffix(":0") for name in found.state}
        self.left = {plain: found.state[name] for name, plain in names.items() if plain.startswith(SCOPE)}
        self.left = {name: value for name, value in self.left.items() if name.rpartition("/")[2] not in TRAINING}

    def take(self, layer: str, *kinds: str) -> Tensor:
        value = self._take(layer, kinds)
        if value is None:
            raise UserError(
                f"{self.found.where} is not the ResNet-50 of RigL's repository: {SCOPE}{layer}/{kinds[0]} is missing"
            )
        if not value.is_floating_point():
            raise self.found.damaged(f"{layer}/{kinds[0]} holds {value.dtype}")
        return value.float()

    def weight(
        self, layer: str, name: str, order: tuple[int, ...], state: dict[str, Tensor], kept: dict[str, Tensor]
    ) -> None:
        """The layer's weight, its axes in `order`, and its mask if it has one."""
        weight = self.take(layer, "weights", "kernel")
        mask = self._take(layer, ("mask",))
        if weight.ndim != len(order):
            raise self.found.damaged(f"{layer}/weights has {weight.ndim} axes")
        state[name] = weight.permute(order).contiguous()
        if mask is not None:
            kept[name] = as_kept(mask, weight, layer, self.found).permute(order).contiguous()

    def nothing_else(self) -> None:
        if self.left:
            raise UserError(
                f"{self.found.where} is not the ResNet-50 of RigL's repository: {min(self.left)!r} is not known"
            )

    def _take(self, layer: str, kinds: tuple[str, ...]) -> Tensor | None:
        for scope in (layer, f"{layer}/{layer}"):
            for kind in kinds:
                if (value := self.left.pop(f"{SCOPE}{scope}/{kind}", None)) is not None:
                    return value
        return None


LAYOUT = Layout("the variables of RigL's TensorFlow code", _fits, _convert)
