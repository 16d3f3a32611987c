"""Masks: construction, numbers, digests, and what they do to tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from budwood.core.errors import UserError
from budwood.core.mask import Mask

BITS = torch.tensor([[True, False, True], [False, False, True]])


def test_read_only_whatever_is_done_to_what_went_in_or_came_out() -> None:
    given_bits = BITS.clone()
    mask = Mask({"w": given_bits})
    digest = mask.digest()
    given_bits.fill_(False)
    mask["w"].fill_(False)
    mask.shapes()["w"] = (1,)
    for bits in mask.values():
        bits.fill_(True)
    assert torch.equal(mask["w"], BITS) and mask.digest() == digest
    with pytest.raises(TypeError):
        mask["w"] = BITS  # type: ignore[index]


@pytest.mark.parametrize(
    "bad", [torch.ones(2), torch.ones(2, dtype=torch.uint8), torch.ones(0, dtype=torch.bool), [True]]
)
def test_refuses_what_is_no_bool_tensor(bad: object) -> None:
    with pytest.raises(ValueError, match="'w'"):
        Mask({"w": bad})  # type: ignore[dict-item]


def test_numbers() -> None:
    mask = Mask({"w": BITS, "v": torch.ones(2, dtype=torch.bool)})
    assert (mask.total, mask.kept, mask.density, mask.sparsity) == (8, 5, 0.625, 0.375)
    assert mask.counts() == {"v": 2, "w": 3} and mask.shapes() == {"v": (2,), "w": (2, 3)}
    assert list(mask) == ["v", "w"] and len(mask) == 2 and "sparsity 0.3750" in repr(mask)
    assert (Mask({}).density, Mask({}).sparsity) == (1.0, 0.0)


def test_from_zeros_takes_both_zeros_and_keeps_nan() -> None:
    weights = torch.tensor([0.0, -0.0, 1e-45, float("nan"), -1.0])
    assert Mask.from_zeros({"w": weights})["w"].tolist() == [False, False, True, True, True]


masks = st.dictionaries(
    st.sampled_from(["a", "b", "a.weight"]), st.lists(st.booleans(), min_size=1, max_size=12), min_size=1
)


@settings(deadline=None)
@given(masks, masks)
def test_digests_are_equal_exactly_where_masks_are(one: dict[str, list[bool]], other: dict[str, list[bool]]) -> None:
    first, second = (Mask({n: torch.tensor(bits) for n, bits in m.items()}) for m in (one, other))
    assert (first.digest() == second.digest()) == (one == other) == (first == second)
    assert first == Mask(dict(reversed(list(first.items())))), "the order of the names is no part of a mask"


def test_digest_tells_shapes_and_padding_apart() -> None:
    digests = {
        Mask({"w": torch.zeros(shape, dtype=torch.bool)}).digest() for shape in [(6,), (2, 3), (3, 2), (7,), (6, 1)]
    }
    assert len(digests) == 5
    assert Mask({"w": BITS}) != "w"


def test_parts_and_revival() -> None:
    mask = Mask({"w": BITS, "v": torch.tensor([True])})
    assert list(mask.restricted(["w", "no such"])) == ["w"] and list(mask.without(["w", "no such"])) == ["v"]
    later = Mask({"w": ~BITS, "v": torch.tensor([False]), "new": torch.tensor([True])})
    revived = later.revived_since(mask)
    assert list(revived) == ["w"] and torch.equal(revived["w"], ~BITS)
    assert mask.revived_since(mask) == {}


def test_apply_removes_even_what_is_not_finite() -> None:
    weights = torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), -3.0, 4.0]])
    mask = Mask({"w": BITS})
    assert mask.violations({"w": weights}) == {"w": 3} and not mask.holds({"w": weights})
    mask.apply_({"w": weights})
    assert weights.tolist() == [[1, 0, 2], [0, 0, 4]] and mask.holds({"w": weights})


def test_gradients_of_pruned_weights_only() -> None:
    layer = nn.Linear(3, 2)
    mask = Mask({"weight": BITS})
    mask.apply_to_gradients_(layer)  # there are none yet
    layer(torch.full((1, 3), float("inf"))).sum().backward()
    mask.apply_to_gradients_(layer)
    gradient = layer.weight.grad
    assert gradient is not None and layer.bias.grad is not None
    assert torch.equal(gradient, torch.where(BITS, float("inf"), 0.0)) and layer.bias.grad.tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1)])
def test_another_network_is_told_in_one_line(shape: tuple[int, ...]) -> None:
    mask = Mask({"w": BITS})
    for target, words in [({"w": torch.zeros(shape)}, "shape"), ({"v": torch.zeros(2, 3)}, "does not have")]:
        for act in (mask.apply_, mask.holds):
            with pytest.raises(UserError, match=words) as caught:
                act(target)
            assert "\n" not in str(caught.value) and "'w'" in str(caught.value)


def test_ones_needs_no_memory_for_the_weights() -> None:
    weights = {"w": torch.empty(4, 5, device="meta")}
    assert Mask.ones(weights)["w"].shape == (4, 5) and Mask.ones(weights).sparsity == 0
