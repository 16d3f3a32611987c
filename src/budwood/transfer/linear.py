"""Linear transfer: the backbone stays as it is, and a linear head is fitted to its features.

They are computed once; or, if the images are to be cropped and mirrored anew, in every epoch.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UserError
from ..core.spec import Recipe
from ..core.task import Split, Task
from ..models.network import Network, replace_head
from ..tasks.images import transforms
from ..tasks.views import Official, chosen_by
from ..train.batchnorm import recalibrate
from ..train.data import batch_plan
from ..train.evaluate import scores
from ..train.fit import Progress
from ..train.optim import learning_rate, sgd
from .augmented import Head, fit_on_new_crops, new_head
from .features import Features, features
from .full import Transferred

REGULARISATION = tuple(10.0**k for k in range(-5, 4))
"""The C that are tried for L-BFGS: nine powers of ten around scikit-learn's default of 1."""


Candidates = Iterator[tuple[dict[str, float], Head]]
"""Heads to choose from, each with the facts of its row."""


def fit_head(
    train: Features,
    val: Features,
    classes: int,
    recipe: Recipe,
    metric: str,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Head, list[dict[str, float]]]:
    """The head that is best on `val` by `metric`, and one row per candidate (an epoch of SGD, or a C of L-BFGS)."""
    fit = _lbfgs_heads if recipe.head == "lbfgs" else _sgd_heads
    best, best_score, history = None, -np.inf, []
    for i, (facts, head) in enumerate(fit(train, classes, recipe, seed)):
        found = scores(logits(head, val[0]), val[1])
        if not np.isfinite(found["loss"]):
            largest = float(train[0].abs().max())
            raise UserError(f"a linear head diverged: features are as large as {largest:.1e}; check the weights")
        history.append({"epoch": float(i)} | facts | {f"val_{name}": value for name, value in found.items()})
        if found[metric] > best_score or (recipe.select == "last" and recipe.head != "lbfgs"):
            best, best_score = head, found[metric]
        if progress is not None:
            heads = len(REGULARISATION) if recipe.head == "lbfgs" else recipe.epochs
            progress(i + 1, heads, f"loss {found['loss']:.3f}")
    if best is None:
        raise UserError("a linear head by SGD needs at least one epoch; raise --epochs")
    return best, history


def logits(head: Head, inputs: Tensor) -> Tensor:
    """(N, D) -> (N, classes)."""
    return F.linear(inputs, *head)


def _lbfgs_heads(train: Features, classes: int, recipe: Recipe, seed: int) -> Candidates:
    """Multinomial logistic regression on standardised features for every C; the scale is folded into the head."""
    mean, std = train[0].mean(0), train[0].std(0)
    std = torch.where(std > 1e-6, std, 1.0)
    inputs, targets = ((train[0] - mean) / std).double().numpy(), train[1].numpy()
    warm: dict[str, Any] = {"max_iter": 200, "tol": 1e-3, "warm_start": True}
    model = LogisticRegression(**warm)
    scipys_blas = _blas_of_scipy()
    for c in REGULARISATION:
        model.set_params(C=c)
        with warnings.catch_warnings(), scipys_blas.limit(limits=1):
            warnings.simplefilter("ignore", ConvergenceWarning)  # a C that does not converge loses on `val`
            model.fit(inputs, targets)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(coefficients) == 1:  # two classes: scikit-learn keeps only the second one's row
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
        weight = torch.from_numpy(coefficients).float() / std
        bias = torch.from_numpy(intercepts).float() - weight @ mean
        yield {"C": c}, (weight, bias)


def _blas_of_scipy() -> ThreadpoolController:
    """The BLAS that SciPy's wheels bring along. L-BFGS goes to and fro between it and NumPy's, whose threads wait for
    work by spinning: with several threads in each, a head of 2,000 x 2,048 features took five times as long."""
    threads, home = ThreadpoolController(), Path(scipy.__file__).resolve().parent
    paths = [library.filepath for library in threads.lib_controllers]
    own = [p for p in paths if any(Path(p).is_relative_to(home.with_suffix(end)) for end in ("", ".libs"))]
    return threads.select(filepath=own)


def _sgd_heads(train: Features, classes: int, recipe: Recipe, seed: int) -> Candidates:
    """SGD on the stored features, as in the study (no augmentation is left to do)."""
    head = new_head(train[0].shape[1], classes, seed)
    optimizer = sgd(list(head.parameters()), [], recipe)
    steps = len(batch_plan(len(train[0]), recipe.batch_size, seed, 0, share=0))
    for epoch in range(recipe.epochs):
        total = 0.0
        for i, indices in enumerate(
            map(torch.tensor, batch_plan(len(train[0]), recipe.batch_size, seed, epoch, share=0))
        ):
            optimizer.param_groups[0]["lr"] = learning_rate(recipe, epoch * steps + i, steps)
            output = head(train[0].index_select(0, indices))  # three times as fast as train[0][indices]
            loss = F.cross_entropy(output, train[1][indices], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        yield {"train_loss": total / steps}, (head.weight.detach().clone(), head.bias.detach().clone())


@torch.no_grad()
def linear(
    network: Network,
    task: Task,
    recipe: Recipe,
    seed: int,
    *,
    cache: Path | None = None,
    crops: Path | None = None,
    workers: int = 0,
    accelerate: bool = True,
    state_path: Path | None = None,
    progress: Progress | None = None,
) -> Transferred:
    """Fit a new head to `network`, in place; no weight of the backbone changes (with `recipe.adapt_bn` its batch norm
    statistics do).

    Features are kept in the folder `cache`, for runs that differ in nothing but the head, and decoded images in
    `crops`, for every network that is shown them at this size. Where features are made in every epoch a killed run
    goes on from `state_path`. Raises UserError where the head is not linear or its loss is not finite.
    """
    network = replace_head(network, task.classes, seed)
    if recipe.adapt_bn:
        recalibrate(network.module, task.load("train", transforms(network.lineage.preprocessing, train=False)))
    every_epoch = recipe.head == "sgd-augmented"
    splits: list[Split] = ["test"] if isinstance(task, Official) else ["val", "test"]
    splits += [] if every_epoch else ["train"]
    found, way = features(network, task, splits, cache, crops, workers, accelerate)
    val = found.setdefault("val", found["test"])
    for split, (seen, _) in found.items():
        if not bool(torch.isfinite(seen.square().sum())):
            raise UserError(f"what the network makes of {split} images is too large or no number; check its weights")
    metric = chosen_by(task)
    with torch.enable_grad():
        if every_epoch:
            head, history, way = fit_on_new_crops(
                network, task, val, recipe, seed,
                workers=workers, accelerate=accelerate, state_path=state_path, progress=progress,
            )  # fmt: skip
        else:
            head, history = fit_head(found["train"], val, len(task.classes), recipe, metric, seed, progress)
    network = replace(network, notes=[*network.notes, f"features from {way}"])
    classifier = network.module.get_submodule(network.head)
    classifier.weight.copy_(head[0])
    classifier.bias.copy_(head[1])
    ranked = [row[f"val_{metric}"] for row in history]
    last = recipe.select == "last" and recipe.head != "lbfgs"
    epoch = len(ranked) - 1 if last else ranked.index(max(ranked))
    return Transferred(network, history, epoch, {s: (logits(head, found[s][0]), found[s][1]) for s in ("val", "test")})
