from collections.abc import Sequence

from numpy import float32, int32, int64
from numpy.typing import NDArray

# A feature map: offset, group, row, channel (strides), groups, height, channels, width, lanes, halo_y, halo_x.
Numbers = Sequence[int]
# slope, low, high of an activation; its number is the place of its kind in graph.ACTIVATIONS.
Floats = Sequence[float]

def instruction_sets() -> list[str]: ...
def lanes(isa: str) -> int: ...
def peak(isa: str, threads: int, read: bool, seconds: float) -> float: ...

class Arena:
    """Memory of one plan, given back to it when this dies."""

class Plan:
    """Each method adds a step to the segment begun last; ValueError where it would reach outside the arena.

    `images`: on plain vectors, how many of them a step handles at a time, else 1; in global_average and flatten,
    how many share the lanes of a group.
    """

    def __init__(self, isa: str, arena: int, inputs: Sequence[int], outputs: Sequence[int]) -> None: ...
    @property
    def arena_floats(self) -> int: ...
    def segment(self, groups: int) -> None: ...
    def order(self, turns: Sequence[tuple[int, int]]) -> None: ...
    def run(
        self,
        inputs: Sequence[NDArray[float32]],
        outputs: Sequence[NDArray[float32]],
        threads: int,
        timed: bool,
    ) -> list[float]: ...
    def run_each(
        self,
        inputs: Sequence[NDArray[float32]],
        outputs: Sequence[NDArray[float32]],
        pieces: int,
        threads: int,
    ) -> None: ...
    def take(self) -> Arena: ...
    def free_arenas(self) -> None: ...
    def run_turns(
        self,
        arena: Arena,
        first: int,
        last: int,
        inputs: Sequence[NDArray[float32] | None],
        outputs: Sequence[NDArray[float32] | None],
        threads: int,
        timed: bool,
    ) -> list[float]:
        """Turns first to last - 1 of the order, in an arena that no other call uses meanwhile.

        None: an array that no step of these turns' segments uses.
        """
    def batch_statistics(
        self,
        source: Numbers,
        mask: NDArray[float32],
        count: int,
        mean_at: int,
        var_at: int,
    ) -> None:
        """Mean and biased variance of each channel over all images, to the arena."""
    def batch_norm(
        self,
        source: Numbers,
        out: Numbers,
        residual: Numbers | None,
        mask: NDArray[float32],
        mean_at: int,
        var_at: int,
        weight: int,
        bias: int,
        eps: float,
        low: float,
        high: float,
    ) -> None:
        """weight and bias are inputs; low and high clamp the sum with the residual."""
    def batch_norm_gradient(
        self,
        source: Numbers,
        out: Numbers,
        gradient: Numbers,
        to: Numbers,
        residual_to: Numbers | None,
        mask: NDArray[float32],
        count: int,
        mean_at: int,
        var_at: int,
        weight: int,
        eps: float,
        low: float,
        high: float,
        weight_out: int,
        bias_out: int,
        frozen: bool,
    ) -> None:
        """From the gradient to `out` those to the source, the residual, and (outputs) weight and bias."""
    def statistics_out(
        self,
        mean_at: int,
        var_at: int,
        number: int,
    ) -> None:
        """outputs[number] [2, channels]: the two vectors."""
    def spread(
        self,
        source: Numbers,
        out: Numbers,
        images: int,
        mask: NDArray[float32],
        factor: float,
    ) -> None:
        """Every pixel of a channel of an image gets factor * source[image, channel]."""
    def max_pool_gradient(
        self,
        source: Numbers,
        moves: NDArray[int64],
        index: NDArray[int32],
        fill: float,
        groups_of_source: int,
        scratch: int,
        origin: int,
        row: int,
        out: Numbers,
        taps: NDArray[int64],
        gradient: Numbers,
        to: Numbers,
    ) -> None:
        """The arguments of pool, the gradient to its output, and where that to its source goes."""
    def depthwise_packed(
        self,
        source: Numbers,
        moves: NDArray[int64],
        index: NDArray[int32],
        fill: float,
        groups_of_source: int,
        scratch: int,
        origin: int,
        row: int,
        out: Numbers,
        residual: Numbers | None,
        taps: NDArray[int64],
        weights_at: int,
    ) -> None:
        """depthwise with its weights [channels, taps] in the arena."""
    def depthwise_gradient(
        self,
        source: Numbers,
        moves: NDArray[int64],
        index: NDArray[int32],
        fill: float,
        groups_of_source: int,
        scratch: int,
        origin: int,
        row: int,
        taps: NDArray[int64],
        gradient: Numbers,
        to: Numbers | None,
        weights_at: int,
        number: int,
    ) -> None:
        """The gradients to the weights, outputs[number], and to the source."""
    def pack(self, number: int, at: int, index: NDArray[int64]) -> None:
        """arena[at + i] = inputs[number][index[i]], 0 where index[i] is negative."""
    def sparse_conv_packed(
        self,
        operand: Numbers,
        out: Numbers,
        residual: Numbers | None,
        offsets: NDArray[int64],
        widest: int,
        blocks: NDArray[int64],
        by_channels: bool,
        columns: NDArray[int32],
        start: NDArray[int64],
        weights_at: int,
    ) -> NDArray[int64]:
        """sparse_conv with its weights at weights_at of the arena; answers the CSR position of each of them there."""
    def dense_conv_packed(
        self,
        operand: Numbers,
        out: Numbers,
        residual: Numbers | None,
        offsets: NDArray[int64],
        widest: int,
        blocks: NDArray[int64],
        by_channels: bool,
        groups: int,
        weights_at: int,
    ) -> NDArray[int64]:
        """dense_conv with its weights at weights_at of the arena; answers the place in dense_conv's `weights` of each.

        -1: a zero that fills up. With groups 1 there are ceil(channels / 3) * 3 * operands of them.
        """
    def conv_gradient(
        self,
        operand: Numbers,
        gradient: Numbers,
        offsets: NDArray[int64],
        widest: int,
        blocks: NDArray[int64],
        columns: NDArray[int32],
        start: NDArray[int64],
        number: int,
    ) -> None:
        """outputs[number], a number for each weight in CSR order: the sum of gradient * operand over all groups.

        In a segment of one group. In lanes that hold no pixel the gradient must be zero, and the operand finite.
        """
    def input(
        self,
        number: int,
        image: int,
        channel: int,
        images: int,
        out: Numbers,
        moves: NDArray[int64],
        row: NDArray[int64],
        index: NDArray[int32],
        fill: float,
    ) -> None: ...
    def input_vector(self, number: int, out: Numbers, images: int) -> None: ...
    def expand(self, source: Numbers, out: Numbers, images: int, at: NDArray[int64]) -> None: ...
    def output(
        self,
        source: Numbers,
        number: int,
        image: int,
        channel: int,
        images: int,
        at: NDArray[int64],
    ) -> None: ...
    def repack(
        self,
        source: Numbers,
        out: Numbers,
        moves: NDArray[int64],
        row: NDArray[int64],
        index: NDArray[int32],
        fill: float,
        groups_of_source: int,
    ) -> None: ...
    def sparse_conv(
        self,
        operand: Numbers,
        out: Numbers,
        residual: Numbers | None,
        offsets: NDArray[int64],
        widest: int,
        blocks: NDArray[int64],
        by_channels: bool,
        activation: int,
        numbers: Floats,
        bias: NDArray[float32],
        values: NDArray[float32],
        columns: NDArray[int32],
        start: NDArray[int64],
    ) -> None: ...
    def dense_conv(
        self,
        operand: Numbers,
        out: Numbers,
        residual: Numbers | None,
        offsets: NDArray[int64],
        widest: int,
        blocks: NDArray[int64],
        by_channels: bool,
        activation: int,
        numbers: Floats,
        bias: NDArray[float32],
        weights: NDArray[float32],
        groups: int,
    ) -> None: ...
    def affine(
        self,
        source: Numbers,
        out: Numbers,
        images: int,
        scale: NDArray[float32],
        offset: NDArray[float32],
        activation: int,
        numbers: Floats,
    ) -> None: ...
    def activate(self, source: Numbers, out: Numbers, images: int, activation: int, numbers: Floats) -> None: ...
    def add(
        self,
        a: Numbers,
        b: Numbers,
        out: Numbers,
        images: int,
        gate_images: int,
        activation: int,
        numbers: Floats,
    ) -> None:
        """gate_images 0: b is a map of out's shape, or of one channel. Else b is a plain vector, a number for each

        channel and image, and so many images share the lanes of a group of out.
        """
    def mul(
        self,
        a: Numbers,
        b: Numbers,
        out: Numbers,
        images: int,
        gate_images: int,
        activation: int,
        numbers: Floats,
    ) -> None:
        """As add."""
    def copy(self, source: Numbers, out: Numbers, images: int, channels: NDArray[int64]) -> None:
        """out[c] = source[channels[c]]."""
    def depthwise(
        self,
        source: Numbers,
        moves: NDArray[int64],
        index: NDArray[int32],
        fill: float,
        groups_of_source: int,
        scratch: int,
        origin: int,
        row: int,
        out: Numbers,
        residual: Numbers | None,
        taps: NDArray[int64],
        weights: NDArray[float32],
        bias: NDArray[float32],
        activation: int,
        numbers: Floats,
    ) -> None:
        """The moves lay a channel of source into `scratch` floats, where the output's pixels begin at `origin`.

        weights [out channels, taps]; taps in floats from the pixel's place there.
        """
    def pool(
        self,
        source: Numbers,
        moves: NDArray[int64],
        index: NDArray[int32],
        fill: float,
        groups_of_source: int,
        scratch: int,
        origin: int,
        row: int,
        out: Numbers,
        taps: NDArray[int64],
        largest: bool,
        factors: NDArray[float32],
    ) -> None:
        """As depthwise. factors: one, or for an average [height * width * lanes]."""
    def global_average(self, source: Numbers, out: Numbers, images: int, pixels: int, mask: NDArray[float32]) -> None:
        """mask: empty, or [height * width * lanes] with 0 where a lane holds no pixel; divides by `pixels`."""
    def adaptive_average(
        self,
        source: Numbers,
        out: Numbers,
        start: NDArray[int64],
        offsets: NDArray[int64],
        at: NDArray[int64],
    ) -> None:
        """Output p, at[p] floats from (y 0, x 0), averages offsets[start[p]:start[p + 1]] floats from (y 0, x 0)."""
    def linear(
        self,
        source: Numbers,
        out: Numbers,
        images: int,
        weights: NDArray[float32],
        bias: NDArray[float32],
        activation: int,
        numbers: Floats,
    ) -> None:
        """weights [outputs, inputs]."""
    def sparse_linear(
        self,
        source: Numbers,
        out: Numbers,
        images: int,
        values: NDArray[float32],
        columns: NDArray[int32],
        start: NDArray[int64],
        bias: NDArray[float32],
        activation: int,
        numbers: Floats,
    ) -> None:
        """CSR, a row per output."""
    def layer_norm(
        self,
        source: Numbers,
        out: Numbers,
        images: int,
        scale: NDArray[float32],
        offset: NDArray[float32],
        eps: float,
    ) -> None: ...
    def softmax(self, source: Numbers, out: Numbers, images: int) -> None: ...
    def flatten(self, source: Numbers, out: Numbers, images: int, at: NDArray[int64]) -> None:
        """Channel c's pixel p of image i, at[i * pixels + p] floats from (y 0, x 0), becomes number c * pixels + p."""
