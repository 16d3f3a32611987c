"""One thread: more only get in each other's way in networks this small. And what several methods are asked."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from budwood.core.mask import Mask
from budwood.core.pruner import Batches, Plan, Pruner
from budwood.models.network import prunable
from budwood.testing.pruners import RECIPE, toy_data, toy_network
from budwood.train.fit import Fit


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def salts_of() -> Callable[..., list[int]]:
    """The salts for which a method draws images in a training to 70 %."""

    def train(kind: type[Pruner], options: Any) -> list[int]:
        model, data = toy_network(), toy_data()
        salts: list[int] = []

        class Watched(kind):  # type: ignore[misc,valid-type]
            def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
                draw = plan.batches
                assert draw is not None

                def watched(size: int, salt: int) -> Batches:
                    salts.append(salt)
                    return draw(size, salt)

                return super().start(model, mask, replace(plan, batches=watched))  # type: ignore[no-any-return]

        pruner = Watched(0.7, options)
        Fit(model, pruner, Mask.ones(prunable(model, head=True)), data, data, RECIPE).run()
        return salts

    return train
