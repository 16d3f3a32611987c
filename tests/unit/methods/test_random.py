"""Random pruning: exact, without favour, and decided by the seed alone."""

import pytest
import torch
from torch import nn

from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.models.network import prunable
from budwood.prune.allocation import erk
from budwood.prune.random_mask import Random
from budwood.prune.structure import groups
from budwood.testing.pruners import sparse_mask, toy_network


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 5))


def pruned(sparsity: float, seed: int = 0, mask: Mask | None = None, **options: object) -> Mask:
    model = network()
    mask = Mask.ones(prunable(model, head=True)) if mask is None else mask
    return Random(sparsity, Random.Options(**options)).start(model, mask, Plan(0, 0, seed))


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.5, 0.9, 0.999])
def test_exact_to_one_weight(sparsity: float) -> None:
    found = pruned(sparsity)
    assert found.total - found.kept == round(sparsity * found.total)


def test_every_weight_is_kept_as_often_as_any_other() -> None:
    """1520 weights, 30 % kept, 200 seeds: each is kept 60 times, give or take. The sum of the squared deviations over
    their variance has 1520 for its mean and 55 for its standard deviation."""
    counts = torch.stack(
        [torch.cat([kept.flatten() for kept in pruned(0.7, seed).values()]) for seed in range(200)]
    ).sum(0)
    statistic = float(((counts - 60.0) ** 2 / (200 * 0.3 * 0.7)).sum())
    assert len(counts) == 1520 and abs(statistic - 1520) < 4 * 55
    halves = counts.float().split(760)
    assert abs(float(halves[0].mean() - halves[1].mean())) < 1.5


def test_weights_do_not_matter_and_the_seed_does() -> None:
    one = pruned(0.5, seed=1)
    torch.manual_seed(99)
    assert one == pruned(0.5, seed=1) and one != pruned(0.5, seed=2)
    overlap = sum(int((one[n] & other).sum()) for n, other in pruned(0.5, seed=2).items()) / one.kept
    assert 0.4 < overlap < 0.6


def test_erk_gives_the_densities_of_the_static_baseline() -> None:
    found = pruned(0.8, allocation="erk")
    densities = erk(found.shapes(), 0.8)
    for name, count in found.counts().items():
        assert abs(count - densities[name] * found[name].numel()) < 1


def test_uniform_has_the_same_share_in_every_layer() -> None:
    found = pruned(0.75, allocation="uniform", keep_dense=())
    assert all(abs(count - 0.25 * found[name].numel()) < 1 for name, count in found.counts().items())


def test_pairs_of_four_are_drawn_evenly() -> None:
    """2:4 has six pairs, of which each is as likely."""
    pairs = torch.zeros(16)
    for seed in range(20):
        kept = groups(pruned(0.5, seed, pattern="2:4", keep_dense=("classifier",))["1.weight"], 4)
        pairs += torch.bincount((kept.long() * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16)
    drawn = pairs[pairs > 0]
    expected = float(drawn.sum()) / 6
    assert len(drawn) == 6 and float(((drawn - expected) ** 2 / expected).sum()) < 20.5  # 99.9 % of chi^2 with five


def test_a_pruned_weight_stays_pruned() -> None:
    model = toy_network()
    mask = sparse_mask(Mask.ones(prunable(model, head=True)))
    found = Random(0.8).start(model, mask, Plan(0, 0))
    assert not found.revived_since(mask) and found.kept == round(0.2 * found.total)
