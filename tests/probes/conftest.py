"""Small versions of later methods, trained through the real loop: does the interface carry them?"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from budwood.core.pruner import Pruner
from budwood.core.registry import methods
from budwood.testing.pruners import check_pruner


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def contract(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The methods' contract, for a class that is not registered."""

    def check(kind: type[Pruner], **options: Any) -> None:
        monkeypatch.setitem(methods._members, "probe", kind)
        check_pruner("probe", options)

    return check
