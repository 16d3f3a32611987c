"""The typed face of the native module. It needs NumPy only, not PyTorch.

The instruction set is chosen at the first use: the best this processor has, or the one that the environment
variable `BUDWOOD_ISA` names.
"""

import functools
import os

from ..core.errors import UserError
from . import _native


def instruction_sets() -> list[str]:
    """The sets that this processor and operating system can run, best first; "plain" is always the last."""
    return list(_native.instruction_sets())


@functools.cache
def instruction_set() -> str:
    """The set in force. UserError where `BUDWOOD_ISA` names one that is not available."""
    available = instruction_sets()
    wanted = os.environ.get("BUDWOOD_ISA") or available[0]
    if wanted not in available:
        raise UserError(f"BUDWOOD_ISA={wanted} is not available on this machine; choose from {', '.join(available)}")
    return wanted


def peak(threads: int, *, read: bool = False) -> float:
    """GFLOP/s of multiply-adds in the set in force, on all these threads at once: what there is to reach now.

    From registers; with `read` one factor comes from the first-level cache, as in the sparse kernels. Takes 0.05 s.
    """
    return _native.peak(instruction_set(), threads, read, 0.05)
