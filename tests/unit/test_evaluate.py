"""Accuracy, the mean of the classes' accuracies, and the loss: by hand, and as scikit-learn has them."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score, top_k_accuracy_score
from torch import Tensor, nn
from torch.utils.data import Dataset

from budwood.train.evaluate import evaluate, logits_of, scores


def one_hot_logits(predicted: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float() * 5


def test_by_hand() -> None:
    """Class 0: 3 of 4 right; class 1: 1 of 2; class 2: 0 of 1."""
    found = scores(one_hot_logits([0, 0, 0, 1, 1, 0, 1], 3), torch.tensor([0, 0, 0, 0, 1, 1, 2]))
    assert found["top1"] == pytest.approx(4 / 7)
    assert found["mean_per_class"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    right, wrong = -5 + math.log(math.exp(5) + 2), math.log(math.exp(5) + 2)
    assert found["loss"] == pytest.approx((4 * right + 3 * wrong) / 7, abs=1e-6)


def test_a_class_that_does_not_occur_is_not_counted() -> None:
    """Class 1 never occurs and class 3 is only predicted: the mean is over classes 0 and 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(one_hot_logits([0, 3, 2, 1], 4), torch.tensor([0, 0, 2, 2]))
    assert found["mean_per_class"] == pytest.approx((1 / 2 + 1 / 2) / 2) and found["top1"] == 0.5


def test_nothing_but_one_class() -> None:
    assert scores(one_hot_logits([1, 1, 0], 2), torch.tensor([1, 1, 1]))["mean_per_class"] == pytest.approx(2 / 3)


@given(
    data=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60),
    seed=st.integers(0, 9),
)
def test_as_scikit_learn(data: list[tuple[int, int]], seed: int) -> None:
    predicted, wanted = [p for p, _ in data], np.array([w for _, w in data])
    noise = torch.rand(len(data), 6, generator=torch.Generator().manual_seed(seed))
    logits = one_hot_logits(predicted, 6) + noise
    found = scores(logits, torch.from_numpy(wanted))
    probabilities = logits.double().softmax(1).numpy()
    assert found["top1"] == pytest.approx(top_k_accuracy_score(wanted, probabilities, k=1, labels=range(6)))
    present = sorted(set(wanted.tolist()))
    recalls = recall_score(wanted, predicted, labels=present, average="macro", zero_division=0)
    assert found["mean_per_class"] == pytest.approx(recalls)
    if set(predicted) <= set(present) and len(present) > 1:
        assert found["mean_per_class"] == pytest.approx(balanced_accuracy_score(wanted, predicted))
    assert found["loss"] == pytest.approx(log_loss(wanted, probabilities, labels=range(6)), abs=1e-5)


class Numbered(Dataset[Any]):
    """Image i is filled with i; its class is i % 3."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 4, 4), float(index)), index % 3


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (4, 1), (64, 0)])
def test_logits_are_in_order_and_of_eval_mode(batch_size: int, workers: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(4, 3))  # fmt: skip
    model[1].running_mean.fill_(0.3)
    statistics = model[1].running_mean.clone()
    logits, targets = logits_of(model.train(), Numbered(), batch_size, workers)
    assert model.training and torch.equal(model[1].running_mean, statistics)
    with torch.no_grad():
        expected = model.eval()(torch.stack([Numbered()[i][0] for i in range(10)]))
    torch.testing.assert_close(logits, expected)
    assert targets.tolist() == [i % 3 for i in range(10)]
    found = evaluate(model, Numbered(), batch_size, workers)
    assert found["top1"] == pytest.approx((expected.argmax(1) == targets).float().mean().item())
    assert not model.training
