"""Accuracy, overall and of each class, loss and calibration: by hand, and as scikit-learn has them."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, recall_score, top_k_accuracy_score
from torch import Tensor, nn
from torch.utils.data import Dataset

from budwood.train.evaluate import evaluate, logits_of, per_class, scores


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
        shares = per_class(one_hot_logits([0, 3, 2, 1], 4), torch.tensor([0, 0, 2, 2]))
    assert found["mean_per_class"] == pytest.approx((1 / 2 + 1 / 2) / 2) and found["top1"] == 0.5
    assert shares == pytest.approx([0.5, math.nan, 0.5, math.nan], nan_ok=True)


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
    recalls = recall_score(wanted, predicted, labels=range(6), average=None, zero_division=np.nan)
    np.testing.assert_array_equal(per_class(logits, torch.from_numpy(wanted)), recalls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are only predicted, or a single one
        assert found["top1"] == accuracy_score(wanted, predicted)
        assert found["mean_per_class"] == balanced_accuracy_score(wanted, predicted)
    assert found["loss"] == pytest.approx(log_loss(wanted, probabilities, labels=range(6)), abs=1e-5)
    assert set(found) == {"top1", "mean_per_class", "loss"}


def confident(*values: float) -> Tensor:
    """Logits of two classes that give the first one these probabilities."""
    return torch.tensor([[math.log(p / (1 - p)), 0.0] for p in values])


def test_calibration_by_hand() -> None:
    """Bins 0.6 to 0.7 (sure 0.62 and 0.66, one of two right), 0.8 to 0.9 (0.85, wrong) and 0.9 to 1 (0.95, right)."""
    found = scores(confident(0.62, 0.66, 0.85, 0.95), torch.tensor([0, 1, 1, 0]), calibration=True)
    assert found["ece"] == pytest.approx((2 * (0.64 - 0.5) + 0.85 + 0.05) / 4, abs=1e-6)


def test_full_confidence_is_in_the_last_bin() -> None:
    """Certain and right, and at 0.92 and right: one bin, sure 0.96 on average; and one that is certain and wrong."""
    logits = torch.cat([torch.tensor([[200.0, -200.0]] * 2), confident(0.92)])
    assert scores(logits[1:], torch.tensor([0, 0]), calibration=True)["ece"] == pytest.approx(0.04, abs=1e-6)
    found = scores(logits, torch.tensor([1, 0, 0]), calibration=True)["ece"]
    assert found == pytest.approx(abs((1 + 1 + 0.92) / 3 - 2 / 3), abs=1e-6)


def test_logits_are_never_taken_for_probabilities() -> None:
    """All in 0..1, and each row adds up to 1."""
    logits, targets = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1])
    sure = [1 / (1 + math.exp(-0.8)), 1 / (1 + math.exp(-0.6))]
    found = scores(logits, targets, calibration=True)["ece"]
    assert found == pytest.approx(((1 - sure[0]) + (1 - sure[1])) / 2, abs=1e-6)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 200), scale=st.floats(0.1, 30))
def test_calibration_as_defined(seed: int, count: int, scale: float) -> None:
    chance = np.random.default_rng(seed)
    logits, targets = torch.from_numpy(chance.normal(0, scale, (count, 4))).float(), chance.integers(0, 4, count)
    probabilities = logits.softmax(1).numpy()
    sure, right = probabilities.max(1).astype(float), probabilities.argmax(1) == targets
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = [abs((sure[bins == k] - right[bins == k]).sum()) for k in range(10)]
    found = scores(logits, torch.from_numpy(targets), calibration=True)["ece"]
    assert found == pytest.approx(sum(gaps) / count, abs=1e-5)


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
