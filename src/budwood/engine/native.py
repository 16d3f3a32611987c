"""The typed face of the native module. It needs NumPy only, not PyTorch.

The instruction set is chosen at the first use: the best this processor has, or the one that the environment
variable `BUDWOOD_ISA` names.
"""

import functools
import os

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UserError
from . import _native

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


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


def spmm(
    values: Floats,
    columns: Ints,
    row_pointer: Ints,
    panel: Floats,
    bias: Floats | None = None,
    *,
    out: Floats | None = None,
    isa: str | None = None,
) -> Floats:
    """Sparse rows times a dense panel: out[m, p] = bias[m] + sum_k w[m, k] * panel[k, p], in float32.

    w is CSR: `values` [nnz], `columns` [nnz] with 0 <= column < K, `row_pointer` [M + 1].
    `panel` [K, P], `bias` [M] (zeros if None), `out` [M, P] (made if None; answered); all C-contiguous.
    `isa` names an instruction set other than the one in force. Other threads run meanwhile; no array may
    change until it returns. Raises ValueError for arrays that do not fit together.
    """
    rows = max(len(row_pointer) - 1, 0)
    if bias is None:
        bias = np.zeros(rows, np.float32)
    if out is None:
        out = np.empty((rows, *panel.shape[1:]), np.float32)
    elif not out.flags.writeable:
        raise ValueError("out must be writeable")
    _native.spmm(isa or instruction_set(), values, columns, row_pointer, bias, panel, out)
    return out
