"""Lottery tickets (Frankle & Carbin 2019; Chen et al. 2021): train, prune a fifth of the rest, rewind, again. No method
of its own: a loop over trainings at a fixed mask, each of which starts from the ticket before."""

import itertools

import torch

from budwood.core.checkpoint import Checkpoint, Lineage
from budwood.core.mask import Mask
from budwood.core.pruner import Pruner
from budwood.core.spec import RunSpec
from budwood.core.task import Preprocessing
from budwood.models.network import prunable
from budwood.prune.allocation import mask_by_score
from budwood.prune.score import magnitude
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit

LINEAGE = Lineage(architecture="toy:network", num_classes=5, preprocessing=Preprocessing(size=6, resize=6))
ROUNDS, SHARE = 5, 0.2


def tickets(seed: int) -> tuple[list[Checkpoint], list[RunSpec], list[Mask]]:
    """The tickets from the dense network on, the runs between them, and what each would be without its training."""
    original = {name: t.clone() for name, t in toy_network().state_dict().items()}
    mask = Mask.ones(prunable(toy_network(), head=True))
    found, specs, untrained = [Checkpoint(original, mask, LINEAGE)], [], []
    for _ in range(ROUNDS):
        model, data = toy_network(), toy_data()
        model.load_state_dict(found[-1].to_dense())
        spec = RunSpec(
            model="toy:network", parent=found[-1].digest(), task="toy", data="toy", method="fixed", where="upstream",
            sparsity=mask.sparsity, transfer="none", seed=seed, recipe=RECIPE,
        )  # fmt: skip
        sparsity = 1 - (1 - SHARE) * mask.density
        untrained.append(mask_by_score(magnitude(model, mask), mask, sparsity, "global"))
        Fit(model, Pruner(), mask, data, data, spec.recipe, seed=spec.seed).run()
        mask = mask_by_score(magnitude(model, mask), mask, sparsity, "global")
        rewound = {name: t.clone() for name, t in original.items()}
        mask.apply_(rewound)
        specs.append(spec)
        found.append(Checkpoint(rewound, mask, LINEAGE.model_copy(update={"parent": found[-1].digest()})))
    return found, specs, untrained


def test_tickets() -> None:
    found, specs, untrained = tickets(seed=0)
    original = found[0].state
    total = found[0].mask.total
    for k, ticket in enumerate(found):
        assert abs(ticket.mask.kept - total * 0.8**k) <= 3, "a fifth of what is left goes in every round"
        for name, weight in ticket.state.items():
            kept = ticket.mask.get(name)
            wanted = original[name] if kept is None else original[name] * kept
            assert torch.equal(weight, wanted), "a ticket is the mask times the first weights"
    for earlier, later in itertools.pairwise(found):
        assert not later.mask.revived_since(earlier.mask) and later.lineage.parent == earlier.digest()
    assert [ticket.mask for ticket in found[1:]] != untrained, "the trained weights choose"
    assert len({spec.run_id for spec in specs}) == ROUNDS


def test_a_chain_of_runs_is_named_by_what_it_starts_from() -> None:
    _, first, _ = tickets(seed=0)
    _, again, _ = tickets(seed=0)
    _, other, _ = tickets(seed=1)
    assert [spec.run_id for spec in again] == [spec.run_id for spec in first], "so that a study goes on where it was"
    assert first[0].parent == other[0].parent and first[-1].parent != other[-1].parent
    assert not {spec.run_id for spec in first} & {spec.run_id for spec in other}
