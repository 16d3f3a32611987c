from numpy import float32, int32
from numpy.typing import NDArray

def instruction_sets() -> list[str]: ...
def spmm(
    isa: str,
    values: NDArray[float32],
    columns: NDArray[int32],
    row_pointer: NDArray[int32],
    bias: NDArray[float32],
    panel: NDArray[float32],
    out: NDArray[float32],
) -> None: ...
