"""Wanda (Sun et al. 2024): weights by |w| times the norm of the input that they are multiplied with, row by row."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.mask import Mask
from ..core.pruner import Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from .allocation import Allocation, layer_counts, require_finite, spread
from .inputs import squares
from .layerwise import to_rows
from .scored import Scored, ScoreOptions
from .structure import ungroup


class WandaOptions(ScoreOptions):
    allocation: Allocation = "uniform"
    """How the sparsity is shared among the layers: the same in each, as in the paper, or another."""
    group: Literal["row", "layer"] = "row"
    """Which weights compete: those of an output, each of which loses the same share (the paper), or all of a layer.
    With N:M those of a group of M in any case."""
    images: int = Field(256, ge=1, le=10_000_000)
    """How many are looked at; where there are fewer, they are seen again."""

    @model_validator(mode="after")
    def _rows_have_a_share(self) -> "WandaOptions":
        if self.allocation == "global" and self.group == "row":
            raise ValueError("with global layers have no share for their rows to have; add group=layer")
        return self


@methods.register("wanda")
class Wanda(Scored):
    """Score |w_ij| |x_j|, with the norm of the unfolded input x_j over all images and places, of the dense network.
    Weights stay as they are. (The authors prune the layers of a transformer, or ConvNeXt, one block after the other.)
    """

    tags = Tags(family="one-shot", paper="Sun et al. 2024", seeded=True, data="images", patterns=True)
    Options = WandaOptions
    brief = {"images": 32}
    cost = (
        "one forward pass over the images in which every input is unfolded and squared, and a sort of the weights. "
        "ResNet-50 with 256 images at 224 px: about 3 minutes of one core by extrapolation from single layers, and "
        "next to no memory"
    )
    papers = {
        "image-classifiers": Settings(
            model="timm:convnext_base",
            source="locuslab/wanda, image_classifiers/README.md, main.py and prune_utils.py",
            recipe=Recipe(epochs=0),
            options={"allocation": "uniform", "group": "row", "images": 4096},
            sparsity=0.5,
            notes=(
                "DeiT-B and ViT-L as well; only the linear layers inside the blocks are pruned there",
                "blocks are given the outputs of the pruned blocks before them there, the dense network's here",
            ),
        ),
    }

    def scores(self, model: nn.Module, mask: Mask, sparsity: float, step: int) -> dict[str, Tensor]:
        names = self.layers(model, mask)
        found = {}
        for name, total in squares(model, names, self.plan_, self.options.images, step).items():
            weight = model.get_parameter(name).detach()
            norms = total.sqrt().reshape(len(total), 1, *weight.shape[1:]).float().to(weight.device)
            found[name] = (weight.abs().unflatten(0, (len(total), -1)) * norms).reshape(weight.shape)
        return found

    def select(self, scores: Mapping[str, Tensor], mask: Mask, sparsity: float) -> Mask:
        pattern = self.structure
        if self.options.group == "layer" or pattern.kind == "n:m":
            return super().select(scores, mask, sparsity)
        shapes = {name: tuple(score.shape) for name, score in scores.items()}
        entries, left = dict(mask), 0
        shares = layer_counts(shapes, mask, sparsity, self.options.allocation, self.pattern)
        for (name,), count in shares:
            require_finite(name, scores[name])
            most = min(count + left, int(mask[name].sum()))
            entries[name] = best_of_rows(scores[name].cpu(), mask[name], most, pattern.size)
            left += count - int(entries[name].sum())
        return Mask(entries)


def best_of_rows(scores: Tensor, kept: Tensor, count: int, size: int) -> Tensor:
    """The highest scores of every row, which together are `count` of those kept, or in blocks of `size` less than a
    block fewer: a mask of the layer's shape. Every row has the same share of what it has; among equal ones the first
    stay."""
    blocks = to_rows(scores.masked_fill(~kept, 0), 1)[0].unflatten(1, (-1, size)).sum(2)
    present = to_rows(kept, 1)[0].unflatten(1, (-1, size)).sum(2)
    order = blocks.masked_fill(present == 0, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    so_far = present.gather(1, order).cumsum(1)
    left, chosen = 0, torch.zeros_like(blocks, dtype=torch.bool)
    for row, most in enumerate(spread(count, present.sum(1).tolist())):
        stay = order[row, so_far[row] <= most + left]
        chosen[row, stay] = True
        left += most - int(present[row, stay].sum())
    return kept & ungroup(chosen.repeat_interleave(size, dim=1), kept.shape)
