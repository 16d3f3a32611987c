"""`budwood verify`: is every pruned weight still zero? Exit code 0 only if it is."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..core.checkpoint import Checkpoint, is_checkpoint, unpack
from ..core.errors import UserError
from ..core.files import read_bytes
from ..models.files import read_state
from ..models.network import checkpoint_in
from .common import print_json


def run(
    checkpoint: Path,
    /,
    *,
    against: Path | None = None,
    sparsity: float | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Check a network's zeros against its mask, or against another network's.

    A checkpoint of Budwood's carries its mask, digests and sparsity, and all are checked. A plain .pth or .safetensors
    file needs --against. Exit code 1: a pruned weight is not zero, or the sparsity is not the one asked for; 2: a
    file is missing, of another architecture, or damaged (a digest differs).

    Parameters
    ----------
    checkpoint
        The file to check, or the folder of the run that made it.
    against
        The checkpoint whose zeros it must have: the one it was transferred or exported from.
    sparsity
        The share of zeros it must have over the weights of its mask, to four digits.
    json
        Print the findings as JSON on stdout and nothing else.
    """
    checkpoint = checkpoint_in(checkpoint)
    data = read_bytes(checkpoint)
    own = unpack(data, str(checkpoint)) if is_checkpoint(data) else None
    if own is None and against is None:
        raise UserError(f"{checkpoint} carries no mask; say --against which checkpoint it must hold")
    state = own.state if own is not None else read_state(checkpoint)
    wrong: list[str] = []
    mask = own.mask if own is not None else None
    if against is not None:
        parent = Checkpoint.load(checkpoint_in(against)).mask
        shared = parent.restricted(n for n in parent if n in state and state[n].shape == parent[n].shape)
        if own is not None:  # a transfer made the classifier anew, as wide as it was perhaps
            shared = shared.restricted(own.mask)
        lost = sorted(set(parent) - set(shared))
        if len(lost) > 1 or not len(shared):
            raise UserError(f"{checkpoint} lacks {len(lost)} weights of {against} ({lost[0]}): another network")
        wrong += [f"{name}: {count} pruned weights are not zero" for name, count in shared.violations(state).items()]
        mask = mask if mask is not None else shared
    assert mask is not None
    wrong += [f"{name}: {count} pruned weights are not zero" for name, count in mask.violations(state).items()]
    if sparsity is not None and abs(mask.sparsity - sparsity) > 5e-5:
        wrong.append(f"sparsity is {mask.sparsity:.4f}, not {sparsity:.4f}")
    wrong = list(dict.fromkeys(wrong))
    if json:
        print_json({"holds": not wrong, "sparsity": mask.sparsity, "digest": mask.digest(), "wrong": wrong})
    else:
        for line in wrong:
            print(line)
        verdict = "NOT as it should be" if wrong else "the mask holds"
        print(f"{verdict}: {mask.kept} of {mask.total} weights kept, sparsity {mask.sparsity:.4%}")
        print(f"mask digest {mask.digest()}")
    sys.exit(1 if wrong else 0)
