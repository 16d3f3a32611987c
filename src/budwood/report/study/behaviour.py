"""Beyond accuracy: calibration, and which classes a pruned network harms."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..frame import Stat
from .cells import Cell
from .compare import Significance, corrected, outcome, welch

ECE, NLL = "test_ece", "test_loss"


@dataclass(frozen=True)
class Calibration:
    """Over the seeds of a cell: expected calibration error (a fraction) and negative log-likelihood (nats an image) on
    the test split; None where no run has it."""

    ece: Stat | None
    nll: Stat | None


@dataclass(frozen=True)
class ClassShift:
    """One class, pruned against dense. `shift`: of its accuracy, mean over seeds, a fraction; `net`: less the mean
    shift of all classes."""

    index: int
    name: str
    shift: float
    net: float
    test: Significance

    @property
    def harmed(self) -> bool:
        return outcome(self.net, self.test) == "loss"


def calibration(cell: Cell) -> Calibration:
    return Calibration(*(Stat.of(r.metrics[name] for r in cell.results if name in r.metrics) for name in (ECE, NLL)))


def class_shifts(cell: Cell, dense: Cell) -> list[ClassShift]:
    """How pruning shifts each class, in the order of the classes; empty where no accuracies of classes were kept.

    After Hooker et al., What Do Compressed Deep Neural Networks Forget?, 2019: for each class Welch's t-test over
    seeds, of its accuracy less the network's mean over classes, pruned against dense; so a class is harmed if it loses
    more than the others. Corrected over the classes (Benjamini and Hochberg). Classes without test images are left out.
    """
    (net, mean), (net_dense, mean_dense) = _net(cell), _net(dense)
    if not len(net) or not len(net_dense):
        return []
    nets = net.mean(axis=0) - net_dense.mean(axis=0)
    shifts = nets + mean.mean() - mean_dense.mean()
    seen = np.flatnonzero(~np.isnan(nets)).tolist()
    tests = corrected(welch(net[:, seen], net_dense[:, seen]))
    names = cell.results[0].task.get("classes") or range(len(nets))
    return [
        ClassShift(i, str(names[i]), float(shifts[i]), float(nets[i]), test)
        for i, test in zip(seen, tests, strict=True)
    ]


def _net(cell: Cell) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Class accuracies less their mean, (seeds, classes), and the means, (seeds,); of the runs that kept them."""
    accuracy = np.array([r.per_class for r in cell.results if r.per_class])
    if not len(accuracy):
        return accuracy, accuracy
    mean = np.nanmean(accuracy, axis=1)
    return accuracy - mean[:, None], mean
