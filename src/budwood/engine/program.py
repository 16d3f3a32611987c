"""A compiled network: call it with images, for any number of them.

y = program(x)          # x [N, C, H, W], a NumPy array or a PyTorch tensor; y alike
print(program.explain())
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from . import explain
from .graph import Array, Conv, Graph, Linear, Shape, Softmax
from .lower import Lowered, lower
from .native import instruction_set
from .storage import is_vector

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from ..core.task import Preprocessing

CHUNKS = (16, 4, 1)
"""A batch is cut into pieces of these sizes, largest first; each has a plan of its own, made at its first use.

Sixteen only for networks of `_MANY` non-zero weights in their linear layers: every piece reads them all, and no cache
keeps them from one to the next. Others run four images as fast (on one thread, and on two), which leaves more pieces
for threads to take.
"""
_MANY = 4 << 20


class Program:
    """`graph` has gone through `passes.optimize`. May be called from several threads at once.

    `classes` names the outputs, `preprocessing` says how images become inputs, `name` and `source` what it is and
    where it came from. `threads` is how many threads a call uses: by default BUDWOOD_THREADS, or as many as the
    process has cores. Raises ValueError where the classes are not as many as the outputs.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        name: str = "",
        source: str = "",
        threads: int | None = None,
    ) -> None:
        self.graph = graph
        self.classes = None if classes is None else tuple(classes)
        self.preprocessing = preprocessing
        self.name, self.source = name, source
        self.threads = default_threads() if threads is None else at_least_one(threads, "threads")
        if self.classes is not None and (len(graph.outputs) > 1 or self.output_shape[0] != len(self.classes)):
            raise ValueError(f"{len(self.classes)} class names for outputs of shape {self.output_shapes}")
        self.chunks = _chunks(graph)
        self._plans: dict[int, Lowered] = {}

    @classmethod
    def from_module(cls, module: nn.Module, example: Tensor, threads: int | None = None) -> Program:
        """What `module` computes in evaluation, for images of the example's size [N, C, H, W]; it stays as it is.

        Raises UserError where it cannot be exported or uses an operator that is not supported.
        """
        from .from_export import graph_from_module
        from .passes import optimize

        return cls(optimize(graph_from_module(module, example)), name=type(module).__name__, threads=threads)

    # -- what it is ---------------------------------------------------------------------------------------

    @property
    def input_shapes(self) -> list[Shape]:
        """(C, H, W) or (C,) of every input, without the batch."""
        return list(self.graph.inputs.values())

    @property
    def input_shape(self) -> Shape:
        """Of the first input, which is the only one of a classifier."""
        return self.input_shapes[0]

    @property
    def output_shapes(self) -> list[Shape]:
        return [self.graph.shapes[name] for name in self.graph.outputs]

    @property
    def output_shape(self) -> Shape:
        """Of the first output."""
        return self.output_shapes[0]

    @property
    def gives_probabilities(self) -> bool:
        """Whether the network itself ends in a softmax."""
        return isinstance(self.graph.node(self.graph.outputs[0]), Softmax)

    def __repr__(self) -> str:
        parts = [self.name or "program", f"{self.input_shapes} -> {self.output_shapes}", f"{self.threads} threads"]
        return f"Program({', '.join(parts)})"

    # -- running ------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """The output [N, ...] for inputs [N, ...] in float32; a list of them where the graph has several outputs.

        NumPy arrays in, arrays out; PyTorch tensors on the CPU in, tensors out (without gradients). N may be any
        number, 0 too. Raises ValueError, or TypeError, for anything else.
        """
        wanted = self.graph.inputs
        if len(inputs) != len(wanted):
            raise ValueError(f"this program takes {len(wanted)} inputs, {len(inputs)} were given")
        torch = sys.modules.get("torch")  # whoever has a tensor has imported it
        tensors = torch is not None and all(isinstance(x, torch.Tensor) for x in inputs)
        given = [_from_tensor(x, torch) for x in inputs] if tensors else list(inputs)
        arrays = [_checked(x, name, wanted[name]) for x, name in zip(given, wanted, strict=True)]
        if len({len(x) for x in arrays}) > 1:
            raise ValueError(f"the inputs have different numbers of images: {[len(x) for x in arrays]}")
        outputs = self.run(arrays)
        made = [torch.from_numpy(y) for y in outputs] if torch is not None and tensors else outputs
        return made[0] if len(made) == 1 else made

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for C-contiguous float32 arrays [N, *shape], one for each of the graph's inputs.

        How a batch is cut depends on nothing but its size and the graph, so the bits are the same from any number of
        threads.
        """
        count = len(inputs[0])
        outputs = [np.empty((count, *shape), np.float32) for shape in self.output_shapes]
        for start, size, number in pieces(count, self.chunks, self.threads):
            part = slice(start, start + size * number)
            self.plan(size).run_each([x[part] for x in inputs], [y[part] for y in outputs], number, self.threads)
        return outputs

    def plan(self, images: int) -> Lowered:
        """The plan for exactly so many images, one of `CHUNKS`; made at the first call and kept."""
        if images not in CHUNKS:
            raise UserError(f"there is no plan for {images} images at once; choose from {sorted(CHUNKS)}")
        if images not in self._plans:  # without a lock, which a process forked meanwhile would find taken for ever
            self._plans.setdefault(images, lower(self.graph, images, instruction_set()))
        return self._plans[images]

    # -- looking inside, keeping --------------------------------------------------------------------------

    def profile(self, batch: int = 1, rounds: int = 20) -> explain.Profile:
        """Every layer's kernel and time, as `explain` prints them."""
        return explain.profile(self, batch, rounds)

    def explain(self, batch: int = 1, rounds: int = 20) -> str:
        """A table of the layers: shape, sparsity, kernel and why, time, rate, share of the ceiling.

        `batch` is one of `CHUNKS`; times are medians of so many `rounds`, in milliseconds an image. The ceiling
        is what this program's threads can multiply and add from registers, measured just before.
        """
        return explain.text(self.profile(batch, rounds))

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write one file and return its size in bytes. See `saved.save`."""
        from .saved import save

        return save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str] | Path, threads: int | None = None) -> Program:
        """The program in a file. See `saved.load_program`."""
        from .saved import load_program

        return load_program(path, threads=threads)


def pieces(count: int, chunks: Sequence[int] = CHUNKS, most: int = 1) -> Iterator[tuple[int, int, int]]:
    """(first image, images of a piece, number of pieces) of what a batch is cut into: the largest pieces first, up to
    `most` of a size together."""
    start = 0
    for size in chunks:
        while count - start >= size:
            number = min((count - start) // size, most)
            yield start, size, number
            start += size * number


def _chunks(graph: Graph) -> tuple[int, ...]:
    """Those of `CHUNKS` that batches are cut into."""
    gates: set[str] = set()  # vectors that a feature map waits for: made for few images at a time in any case
    weights = 0
    for node in reversed(graph.nodes):
        if node.name in gates or not is_vector(graph.shapes[node.name]):
            gates.update(node.inputs)
        elif isinstance(node, Conv | Linear):
            weights += int(np.count_nonzero(node.weight))
    return CHUNKS if weights >= _MANY else CHUNKS[1:]


def default_threads() -> int:
    """BUDWOOD_THREADS, or the cores this process may run on."""
    wanted = os.environ.get("BUDWOOD_THREADS")
    if wanted:
        try:
            return at_least_one(int(wanted), "BUDWOOD_THREADS")
        except ValueError:
            raise UserError(f"BUDWOOD_THREADS={wanted} is no number of threads; give one from 1 on") from None
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def at_least_one(threads: int, what: str) -> int:
    if threads < 1:
        raise ValueError(f"{what} must be 1 or more, not {threads}")
    return threads


def _from_tensor(x: Any, torch: Any) -> Any:
    if x.device.type != "cpu":
        raise ValueError(f"the engine computes on the CPU; the tensor is on {x.device}")
    if x.dtype != torch.float32:
        raise ValueError(f"the input must be float32, not {str(x.dtype).removeprefix('torch.')}")
    return x.detach().contiguous().numpy()


def _checked(x: Any, name: str, shape: Shape) -> Array:
    """The array, contiguous and aligned; TypeError or ValueError where it is none, or of another type or shape."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"the input must be a NumPy array or a PyTorch tensor, not {type(x).__name__}")
    if x.dtype != np.float32:
        raise ValueError(f"the input must be float32, not {x.dtype}")
    if x.shape[1:] != shape or x.ndim == 0:
        wanted = ", ".join(["N", *map(str, shape)])
        raise ValueError(f"the input {name} must be of shape [{wanted}], not {list(x.shape)}")
    return np.require(x, requirements=["C_CONTIGUOUS", "ALIGNED"])
