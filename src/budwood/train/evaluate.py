"""How good a network is: accuracy over all images, the mean of the classes' accuracies, and the loss."""

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from .data import in_order, on_device


@torch.inference_mode()
def logits_of(model: nn.Module, dataset: Dataset[Any], batch_size: int = 64, workers: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) float32 and targets (N,), in the data set's order, in eval mode."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    outputs, targets = [], []
    for images, wanted in on_device(in_order(dataset, batch_size, workers), device):
        outputs.append(model(images).float().cpu())
        targets.append(wanted.cpu())
    model.train(training)
    return torch.cat(outputs), torch.cat(targets)


def scores(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """top1, mean_per_class (over the classes that occur) as fractions, and the mean cross-entropy in nats."""
    predicted = logits.argmax(1).numpy()
    wanted = np.asarray(targets)
    return {
        "top1": float(accuracy_score(wanted, predicted)),
        "mean_per_class": _balanced(wanted, predicted),
        "loss": float(F.cross_entropy(logits, targets)),
    }


def _balanced(wanted: np.ndarray, predicted: np.ndarray) -> float:
    with warnings.catch_warnings():  # about predictions of classes that do not occur; they are wrong all the same
        warnings.simplefilter("ignore", UserWarning)
        return float(balanced_accuracy_score(wanted, predicted))


def evaluate(model: nn.Module, dataset: Dataset[Any], batch_size: int = 64, workers: int = 0) -> dict[str, float]:
    """`scores` of a network on a data set."""
    return scores(*logits_of(model, dataset, batch_size, workers))
