"""Gradients without labels: their outer products are the Fisher matrix of the network's own answers."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.core.pruner import Plan
from budwood.prune.gradients import drawn, gradients

LOGITS = [[5.0, 0.0, -1.0, 2.0], [0.1, 0.0, 0.2, -0.1], [12.0, 0.0, 1.0, 0.0]]


def fisher(p: Tensor) -> Tensor:
    """Of the logits, exactly: the sum of p_c (p - e_c)(p - e_c)^T over the classes."""
    lengths = p - torch.eye(len(p), dtype=p.dtype)
    return (p[:, None] * lengths).T @ lengths


def at_the_logits(p: Tensor, classes: Tensor, factors: Tensor) -> Tensor:
    return (p - F.one_hot(classes, p.shape[1])) * factors[:, None]


@pytest.mark.parametrize("logits", LOGITS)
def test_outer_products_are_the_fisher_matrix(logits: list[float]) -> None:
    p = torch.tensor(logits, dtype=torch.float64).softmax(0)
    random, many = torch.Generator().manual_seed(0), p.expand(100_000, -1)
    gradients = at_the_logits(many, *drawn(many, random))
    exact = fisher(p)
    assert torch.allclose(gradients.T @ gradients / len(many), exact, rtol=0.02, atol=0.02 * float(exact.max()))
    plainly = at_the_logits(many, torch.multinomial(many, 1, generator=random).flatten(), torch.ones(len(many)))
    ours, others = (float(g.square().sum(1).std()) for g in (gradients, plainly))
    assert ours < others, "a draw by the answers alone is more of a chance"


def test_so_are_those_of_the_mean_gradient_of_a_batch() -> None:
    """The mean over eight images has an eighth of the mean of their matrices: no image counts with another."""
    p = torch.tensor([LOGITS[k % 3] for k in range(8)], dtype=torch.float64).softmax(1)
    many = p.repeat(20_000, 1)
    classes, factors = drawn(many, torch.Generator().manual_seed(1))
    means = at_the_logits(many, classes, factors).reshape(20_000, 8, 4).mean(1)
    exact = torch.stack([fisher(row) for row in p]).mean(0) / 8
    assert torch.allclose(means.T @ means / len(means), exact, rtol=0.03, atol=0.02 * float(exact.max()))


def test_answers_without_a_doubt_have_no_gradient() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-30, 0.0]])
    classes, factors = drawn(p, torch.Generator().manual_seed(0))
    assert torch.isfinite(factors).all() and float(at_the_logits(p, classes, factors).abs().max()) < 1e-5


def test_drawn_classes_and_factors_reach_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """p = (1, 2, 1) / 4; for class 2 with the factor -3 the gradient is -3 (p - e_2) = (-0.75, -1.5, 2.25)."""
    layer = nn.Linear(1, 3, bias=False)
    layer.weight.data = torch.tensor([[0.0], [math.log(2)], [0.0]])
    monkeypatch.setattr("budwood.prune.gradients.drawn", lambda p, r: (torch.tensor([2]), torch.tensor([-3.0])))
    batch = torch.ones(1, 1), torch.tensor([0])
    plan = Plan(0, 0, labelled=False, batches=lambda size, salt: itertools.repeat(batch))
    (found,) = gradients(layer, ["weight"], plan, 1, 1, 0, fisher=True)
    assert found[0][0].flatten().tolist() == pytest.approx([-0.75, -1.5, 2.25])
