"""Every registered backend keeps the backends' contract."""

import pytest

from budwood.core.registry import backends
from budwood.testing.backends import check_backend


@pytest.mark.parametrize("name", backends.names())
def test_backend(name: str) -> None:
    check_backend(name)
