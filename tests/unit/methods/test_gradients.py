"""Gradients without labels: their outer products are the Fisher matrix of the network's own answers."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from budwood.prune.gradients import drawn

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
