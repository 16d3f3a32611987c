"""What the methods share that prune by blocks of the Fisher matrix (`fisher`): scores and new weights, block by block.

Scores need every layer's Fisher once, and the update of the kept weights once more after the mask is chosen. All
gradients stay on disk in between where there is room for them; else the layers are taken in parts, and the gradients
of every part drawn twice.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..train import distributed
from .fisher import Cut, Inverse, LayerFisher, averaged, room, workspace
from .gmp import POST_TRAINING
from .schedule import Cubic
from .score import magnitude
from .scored import Gradual, GradualOptions
from .scratch import store, stored

PASSES = "passes.safetensors"
"""The file with the network after the last finished pass of pruning at once."""


class FisherOptions(GradualOptions):
    schedule: Cubic = Cubic(**POST_TRAINING)
    gradients: int = Field(400, ge=1, le=100_000)
    """How many gradients the Fisher matrix is the mean of."""
    batch: int = Field(32, ge=1, le=100_000)
    """Images that each of them is averaged over."""
    block: int = Field(2000, ge=1, le=20_000)
    """Weights a Fisher block, rounded down to whole groups of the pattern."""
    dampening: float = Field(1e-5, gt=0, le=1e6)
    """What is added to the Fisher matrix's diagonal."""
    recomputations: int = Field(1, ge=1, le=1000)
    """Passes in which pruning at once is done, each with gradients of its own. Along a schedule every update is one."""
    update_scale: float = Field(1.0, ge=0, le=2)
    """Factor of the kept weights' update; 0 leaves them alone (optimal brain damage)."""


class FisherPruner(Gradual):
    """The optimal brain surgeon for single weights. A method gives its own `saliency`, `movement` and `targets`, where
    they differ."""

    Options = FisherOptions

    def group(self) -> int:
        """Weights that are scored and pruned as one; Fisher blocks contain whole groups."""
        return self.unit()

    def saliency(self, inverse: Inverse, weights: Tensor, present: Tensor) -> Tensor:
        """What each weight matters: (blocks, c), of `weights` (blocks, c) float64. Those not in `present` are pruned
        already: zero, with gradients of zero. Here w_q^2 / (2 [F^-1]_qq)."""
        return weights.square() / (2 * inverse.diagonal())

    def movement(self, inverse: Inverse, weights: Tensor, gone: Tensor) -> Tensor:
        """What is added to the weights (blocks, c) when those in `gone` are pruned; said of these it is not used.
        Here - sum_q w_q F^-1 e_q / [F^-1]_qq, where each of them goes as if alone."""
        return -inverse.times((weights / inverse.diagonal()).masked_fill(~gone, 0))

    def compared(self, model: nn.Module, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """The scores as those of one layer are held against another's."""
        return scores

    def targets(self, already: float, sparsity: float) -> list[float]:
        """The sparsity after each pass that one pruning is done in. Here equal steps, and one alone in a training."""
        passes = 1 if self.plan_.steps else self.options.recomputations
        return [already + (sparsity - already) * i / passes for i in range(1, passes)] + [sparsity]

    def prune_to(self, model: nn.Module, mask: Mask, sparsity: float, step: int = 0) -> Mask:
        names = self.layers(model, mask)
        # By magnitude, which is cheap: what cannot be reached is refused before gradients are drawn.
        if self.select(magnitude(model, names), mask, sparsity).kept == mask.kept:
            return mask
        targets = self.targets(mask.restricted(names).sparsity, sparsity)
        # A pass takes minutes: pruning at once that is broken off goes on with the next one. A training has its state.
        kept = self.plan_.scratch is not None and self.plan_.steps == 0 and len(targets) > 1
        path = self.plan_.scratch / PASSES if kept else None
        first, mask = _resumed(stored(path), model, mask)
        for i in range(first, len(targets)):
            mask = self._pass(model, mask, targets[i], step * len(targets) + i, (i, len(targets)))
            if distributed.rank() == 0:
                store(path, _facts(i + 1, model, mask))
        return mask

    @torch.no_grad()
    def _pass(self, model: nn.Module, mask: Mask, sparsity: float, salt: int, which: tuple[int, int]) -> Mask:
        """Prune by one set of gradients. `which`: the pass, and of how many."""
        cuts = {n: Cut(mask[n], self.group(), self.options.block) for n in self.layers(model, mask)}
        scores: dict[str, Tensor] = {}
        moved: dict[str, Tensor] = {}
        with workspace(self.plan_) as folder:
            parts = self._parts(cuts, folder)
            draws = 1 if len(parts) == 1 else 2 * len(parts)
            self._done = which[0] * (every := draws * self.options.gradients + 2 * len(cuts))
            self._all = which[1] * every
            fishers: dict[str, LayerFisher] = {}
            for part in parts:
                fishers = self._collect(model, part, folder, salt)
                for name, fisher in fishers.items():
                    scores[name] = self._scored(fisher, model.get_parameter(name))
            found = self.select(self.compared(model, scores), mask, sparsity)
            found = distributed.mask_from_first(found)  # a graphics card's gradients may differ in the last bits
            for part in parts:
                fishers = fishers if len(parts) == 1 else self._collect(model, part, folder, salt)
                for name, fisher in fishers.items():
                    moved[name] = self._moved(fisher, model.get_parameter(name), mask[name] & ~found[name])
        for name, weight in moved.items():
            model.get_parameter(name).copy_(weight)
        found.apply_(model)
        return found

    def _parts(self, cuts: dict[str, Cut], folder: Path) -> list[dict[str, Cut]]:
        """The layers in as few parts as there is room on the disk for, one after the other."""
        free, used = room(folder), 0
        parts: list[dict[str, Cut]] = [{}]
        for name, cut in cuts.items():
            need = LayerFisher(cut, folder / name, self.options.gradients).bytes
            if need > free:
                raise UserError(
                    f"the gradients of {name} take {need / 1e9:.1f} GB and {folder} has room for {free / 1e9:.1f} GB; "
                    f"make room there, or lower gradients ({self.options.gradients}) or block ({self.options.block})"
                )
            if used + need > free:
                parts.append({})
                used = 0
            parts[-1][name] = cut
            used += need
        return parts

    def _collect(self, model: nn.Module, part: dict[str, Cut], folder: Path, salt: int) -> dict[str, LayerFisher]:
        for old in folder.iterdir():
            old.unlink()
        count = self.options.gradients
        found = {name: LayerFisher(cut, folder / f"{i}", count) for i, (name, cut) in enumerate(part.items())}
        for row in averaged(model, list(part), self.plan_, count, self.options.batch, salt):
            for fisher, gradient in zip(found.values(), row, strict=True):
                fisher.add(gradient)
            self._tell()
        return found

    def _scored(self, fisher: LayerFisher, weight: Tensor) -> Tensor:
        """Scores of one layer, float32 of its shape."""
        cut, scores = fisher.cut, torch.zeros(fisher.cut.present.shape, dtype=torch.float64)
        for at, inverse, values in self._blocks(fisher, weight):
            scores[at] = self.saliency(inverse, values, cut.present[at].to(values.device)).cpu()
        return cut.back(scores).float()

    def _moved(self, fisher: LayerFisher, weight: Tensor, gone: Tensor) -> Tensor:
        """One layer's new weights, of its shape; those in `gone` are not set."""
        cut = fisher.cut
        pruned = cut.padded(cut.flat(gone))
        moves = torch.zeros(pruned.shape, dtype=torch.float64)
        for at, inverse, values in self._blocks(fisher, weight):
            moves[at] = self.movement(inverse, values, pruned[at].to(values.device)).cpu()
        return (weight.detach().cpu().double() + self.options.update_scale * cut.back(moves)).to(weight)

    def _blocks(self, fisher: LayerFisher, weight: Tensor) -> Iterator[tuple[slice, Inverse, Tensor]]:
        """(which blocks, their inverses, their weights), on the weight's device where that knows float64."""
        device = weight.device if weight.device.type == "cuda" else torch.device("cpu")
        values = fisher.cut.padded(fisher.cut.flat(weight).double())
        for at, inverse in fisher.inverses(self.options.dampening, device):
            yield at, inverse, values[at].to(device)
        self._tell()

    def _tell(self) -> None:
        self._done += 1
        self.plan_.told(self._done, self._all)


def _facts(done: int, model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    weights = {f"weight.{name}": model.get_parameter(name).detach() for name in mask}
    return {"done": torch.tensor(done), **{f"mask.{name}": mask[name] for name in mask}, **weights}


@torch.no_grad()
def _resumed(facts: dict[str, Tensor] | None, model: nn.Module, mask: Mask) -> tuple[int, Mask]:
    """How many passes are done, and the mask after them; the weights are put into the model."""
    facts = distributed.from_first(facts)
    if facts is None:
        return 0, mask
    for name in mask:
        model.get_parameter(name).copy_(facts[f"weight.{name}"])
    return int(facts["done"]), Mask({name: facts[f"mask.{name}"] for name in mask})


def group_solved(inverse: Inverse, weights: Tensor, size: int) -> Tensor:
    """([F^-1]_QQ)^-1 w_Q for every group Q of `size` weights: (blocks, c / size, size)."""
    own = weights.unflatten(1, (-1, size))
    return solved(inverse.within(size), own)


def solved(matrices: Tensor, vectors: Tensor) -> Tensor:
    """M^-1 v. matrices: (..., size, size), vectors: (..., size)."""
    return vectors / matrices[..., 0] if vectors.shape[-1] == 1 else torch.linalg.solve(matrices, vectors)


def shared(scores: Tensor, present: Tensor, size: int) -> Tensor:
    """A group's score (blocks, groups), in equal shares to the weights that it still has: (blocks, c)."""
    there = present.unflatten(1, (-1, size))
    return (scores[..., None] * there / there.sum(-1, keepdim=True).clamp_min(1)).flatten(1)
