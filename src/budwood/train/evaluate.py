"""How good a network is: accuracy over all images and of each class, the loss, and the calibration."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..core.modes import evaluating
from .data import in_order, on_device


@torch.inference_mode()
def logits_of(model: nn.Module, dataset: Dataset[Any], batch_size: int = 64, workers: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) float32 and targets (N,), in the data set's order, in eval mode."""
    device = next(model.parameters()).device
    outputs, targets = [], []
    with evaluating(model):
        for images, wanted in on_device(in_order(dataset, batch_size, workers), device):
            outputs.append(model(images).float().cpu())
            targets.append(wanted.cpu())
    return torch.cat(outputs), torch.cat(targets)


def scores(logits: Tensor, targets: Tensor, calibration: bool = False) -> dict[str, float]:
    """top1, mean_per_class (over the classes that occur) as fractions, and the mean cross-entropy in nats; with
    `calibration` also ece, the expected calibration error over ten bins."""
    shares = np.array(per_class(logits, targets))
    found = {
        "top1": float((logits.argmax(1) == targets).double().mean()),
        "mean_per_class": float(shares[~np.isnan(shares)].mean()),
        "loss": float(F.cross_entropy(logits, targets)),
    }
    return found | {"ece": _calibration_error(logits, targets)} if calibration else found


def per_class(logits: Tensor, targets: Tensor) -> list[float]:
    """Share of each class's images that are named rightly, in the order of the classes; NaN without images."""
    classes = logits.shape[1]
    right = targets[logits.argmax(1) == targets]
    shares = right.bincount(minlength=classes).double() / targets.bincount(minlength=classes)
    return shares.tolist()  # type: ignore[no-any-return]


def _calibration_error(logits: Tensor, targets: Tensor) -> float:
    """Mean distance of confidence from accuracy, each bin by its images (Naeini et al. 2015; Guo et al. 2017)."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes a second to import

    # torchmetrics would take logits that all lie in 0..1 for probabilities, and give a confidence of 1 its own bin.
    confidences = logits.softmax(1).clamp(max=1 - 2**-24)
    return float(multiclass_calibration_error(confidences, targets, logits.shape[1], n_bins=10, norm="l1"))


def evaluate(model: nn.Module, dataset: Dataset[Any], batch_size: int = 64, workers: int = 0) -> dict[str, float]:
    """`scores` of a network on a data set."""
    return scores(*logits_of(model, dataset, batch_size, workers))
