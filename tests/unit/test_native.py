"""Which instruction set the native module uses. Its kernels are tested in csrc/tests and tests/contracts."""

import os
import subprocess
import sys

import pytest

from budwood.core.errors import UserError
from budwood.engine import native

ISAS = native.instruction_sets()


def chosen(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from budwood.engine import native; print(native.instruction_set())"
    environment = {**os.environ, "BUDWOOD_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_forces_a_set(isa: str) -> None:
    assert chosen(isa).stdout.strip() == isa


def test_the_best_set_is_the_default() -> None:
    assert chosen("").stdout.strip() == ISAS[0]
    assert ISAS[-1] == "plain"


def test_an_unavailable_set_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDWOOD_ISA", "avx9")
    with pytest.raises(UserError, match=f"^BUDWOOD_ISA=avx9 is not available .* {', '.join(ISAS)}$"):
        native.instruction_set.__wrapped__()
    finished = chosen("avx9")
    assert finished.returncode != 0 and "available" in finished.stderr.splitlines()[-1]


def test_the_peak_is_a_rate_and_nonsense_is_refused() -> None:
    assert native.peak(1) > 0 and native.peak(2, read=True) > 0
    with pytest.raises(ValueError, match="no threads"):
        native.peak(0)
    with pytest.raises(ValueError, match="no such"):
        native._native.peak("avx9", 1, False, 0.01)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, budwood.engine.native; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
