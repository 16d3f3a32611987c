"""A linear head by SGD on training images that are cropped and mirrored anew in every epoch.

The backbone runs on them each time: it is the training loop, with a network of which only the last layer is trained.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..core.mask import Mask
from ..core.pruner import Pruner
from ..core.spec import Recipe
from ..core.task import Task
from ..models.network import Network
from ..tasks.images import Seeded, transforms
from ..tasks.samples import kept
from ..tasks.views import chosen_by
from ..train.data import mixed_seed
from ..train.fit import Fit, Progress
from .features import BATCH, Features, Forward, backbone

Head = tuple[Tensor, Tensor]
"""Weight (classes, D) and bias (classes,), float32."""


def new_head(width: int, classes: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(seed))
        return nn.Linear(width, classes)


def fit_on_new_crops(
    network: Network,
    task: Task,
    val: Features,
    recipe: Recipe,
    seed: int,
    *,
    workers: int = 0,
    accelerate: bool = True,
    state_path: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Head, list[dict[str, float]], str]:
    """The head of the epoch that is best on `val`, one row per epoch, and what the images went through.

    Raises UserError as `train.fit.Fit` does.
    """
    forward, way = backbone(network, accelerate)
    device = next(network.module.parameters()).device
    head = new_head(val[0].shape[1], len(task.classes), seed).to(device)
    images = kept(task.load("train", transforms(network.lineage.preprocessing, train=True)), workers)
    fitted = Fit(
        _OnBackbone(head, forward),
        Pruner(),
        Mask({}),
        Seeded(images, seed),
        TensorDataset(val[0][:, :, None, None], val[1]),
        recipe,
        metric=chosen_by(task),
        seed=seed,
        workers=workers,
        state_path=state_path,
        progress=progress,
    ).run()
    history = [{name: value for name, value in row.items() if name != "sparsity"} for row in fitted.history]
    return (head.weight.detach().cpu(), head.bias.detach().cpu()), history, way


class _OnBackbone(nn.Module):
    """Images (N, 3, S, S), or what the backbone sees of them (N, D, 1, 1), to logits (N, classes)."""

    def __init__(self, head: nn.Linear, forward: Forward) -> None:
        super().__init__()
        self.head = head

        @torch.no_grad()
        def seen(images: Tensor) -> Tensor:
            return torch.cat([forward(some) for some in images.split(BATCH)])

        self.seen = seen  # a function, not a module: it is neither trained nor copied

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1) if images.shape[-1] == 1 else self.seen(images))  # type: ignore[no-any-return]
