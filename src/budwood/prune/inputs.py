"""What layers see: sums over the unfolded inputs of convolutions and linear layers, streamed over images.

An unfolded input is the column that a row of the weight is multiplied with: the products of a convolution, at one place
of one image, are those of `weight.flatten(1)` with its columns in the same order. Calls of the network's functions are
watched, not modules, so what a module pads itself (padding_mode, TensorFlow's "same") is seen as the products see it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..core.errors import UserError
from ..core.modes import evaluating
from ..core.pruner import Plan
from .gradients import batches_of

BATCH = 32
"""Images in a forward pass."""
BUDGET = 4 * 2**30
"""Bytes of sums that are held at once; layers beyond take another pass over the images."""
WIDEST = 16384
"""Columns of the widest layer that is taken: its sums have 2 GiB, and the linear algebra needs a few such matrices."""
PART = 2**24
"""Elements that are unfolded at once. Their products are summed in float32, the sums in float64: measured against
float64 throughout, H is off by 4e-7 of its largest element at most, and by 1e-7 of its norm, at half the time."""


def products(
    model: nn.Module, names: Sequence[str], plan: Plan, images: int, salt: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Weight name, and H = 2 sum(x x^T) / images over its unfolded inputs x, of each layer in turn.

    H is (groups, D, D) float64 with D = `weight[0].numel()`, the columns in the order of `weight.flatten(1)`. Where
    there are fewer images than asked for, they are seen again. Raises UserError where there are none, a layer is too
    wide, or inputs are not finite.
    """
    for together in _passes(model, names):
        sums = {name: _zeros(model, name, square=True) for name in together}

        def add(name: str, columns: Tensor, sums: Mapping[str, Tensor] = sums) -> None:
            sums[name].add_(torch.bmm(columns, columns.mT).to(sums[name].device))

        seen = _stream(model, together, plan, images, salt, add)
        for name in together:
            yield name, _finite(name, sums.pop(name)).mul_(2 / seen)


def squares(model: nn.Module, names: Sequence[str], plan: Plan, images: int, salt: int = 0) -> dict[str, Tensor]:
    """Weight name -> the sum of x^2 over its unfolded inputs, (groups, D) float64. Otherwise as `products`."""
    sums = {name: _zeros(model, name, square=False) for name in names}

    def add(name: str, columns: Tensor) -> None:
        sums[name].add_(columns.square().sum(2).to(sums[name].device))

    _stream(model, names, plan, images, salt, add)
    return {name: _finite(name, total) for name, total in sums.items()}


def groups_of(model: nn.Module, name: str) -> int:
    """Of the convolution with this weight; 1 for linear layers."""
    return int(getattr(model.get_submodule(name.removesuffix(".weight")), "groups", 1))


def unfold(
    x: Tensor, kernel: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """(N, C, H, W) -> (groups, D, N * places), as conv2d with these arguments reads it."""
    if isinstance(padding, str):
        x, padding = F.pad(x, _same(kernel, dilation) if padding == "same" else [0] * 4), 0
    columns = F.unfold(x, tuple(kernel), dilation, padding, stride)
    return columns.unflatten(1, (groups, -1)).movedim(0, 2).flatten(2)


def _same(kernel: Sequence[int], dilation: Any) -> list[int]:
    """Left, right, top, bottom; an odd one goes to the right and to the bottom."""
    rate = (dilation, dilation) if isinstance(dilation, int) else dilation
    whole = [r * (k - 1) for r, k in zip(rate, kernel, strict=True)]
    return [part for both in reversed(whole) for part in (both // 2, both - both // 2)]


class _Watch(TorchFunctionMode):
    """Hands the unfolded inputs of every product with one of `weights` (id -> name) to `add`."""

    def __init__(self, weights: Mapping[int, str], add: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._weights, self._add = weights, add

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d or func is F.linear:
            (self._conv2d if func is torch.conv2d else self._linear)(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        if id(weight) in self._weights:
            rows = input.detach().float().reshape(-1, weight.shape[1])
            for part in rows.split(max(1, PART // weight.shape[1])):
                self._add(self._weights[id(weight)], part.T[None])

    def _conv2d(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> None:  # fmt: skip
        if id(weight) not in self._weights:
            return
        kernel = weight.shape[2:]
        x = input.detach().float()
        for part in x.split(max(1, PART // (kernel.numel() * x[0].numel()))):
            self._add(self._weights[id(weight)], unfold(part, kernel, stride, padding, dilation, groups))


def _stream(
    model: nn.Module, names: Sequence[str], plan: Plan, images: int, salt: int, add: Callable[[str, Tensor], None]
) -> int:
    """Send `images` through the network, in evaluation mode; how many it were."""
    weights = {id(model.get_parameter(name)): name for name in names}
    seen, used, multiplied = 0, set[str](), set[str]()

    def take(name: str, columns: Tensor) -> None:
        multiplied.add(name)
        add(name, columns)

    layers = {model.get_submodule(name.removesuffix(".weight")): name for name in names}
    hooks = [m.register_forward_hook(lambda layer, *_: used.add(layers[layer])) for m in layers]
    try:
        with evaluating(model), torch.no_grad(), _Watch(weights, take):
            for batch in _images(plan, images, salt):
                model(batch)
                seen += len(batch)
                plan.told(seen, images)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UserError("there are no images to calibrate with; give --calibration a folder that has some")
    if strange := sorted(used - multiplied):
        raise UserError(
            f"{strange[0].removesuffix('.weight')} multiplies not by its weights but by what it makes of them "
            "(standardised ones, say), so what they are multiplied with cannot be told; choose a method that does not "
            "go by inputs, as magnitude or woodfisher"
        )
    return seen


def _images(plan: Plan, count: int, salt: int) -> Iterator[Tensor]:
    """`count` images in batches. Ends before where no more come."""
    left, empty = count, 0
    for batch, _ in batches_of(plan, min(BATCH, count), salt):
        empty = 0 if len(batch) else empty + 1
        if left == 0 or empty == 100:
            return
        if len(batch):
            yield batch[:left]
            left -= len(batch[:left])
        if left == 0:
            return


def _passes(model: nn.Module, names: Sequence[str]) -> Iterator[list[str]]:
    """The layers, in order, as many at a time as fit into the budget."""
    together: list[str] = []
    held = 0
    for name in names:
        width = model.get_parameter(name)[0].numel()
        if width > WIDEST:
            raise UserError(
                f"{name.removesuffix('.weight')} has {width} inputs, and this method takes no more than {WIDEST}; "
                "choose another one (wanda looks at images too)"
            )
        size = groups_of(model, name) * width**2 * 8
        if together and held + size > BUDGET:
            yield together
            together, held = [], 0
        together.append(name)
        held += size
    if together:
        yield together


def _zeros(model: nn.Module, name: str, square: bool) -> Tensor:
    weight = model.get_parameter(name)
    width = weight[0].numel()
    shape = (groups_of(model, name), width, width) if square else (groups_of(model, name), width)
    # Not every kind of device has float64.
    return torch.zeros(shape, dtype=torch.float64, device=weight.device if weight.is_cuda else "cpu")


def _finite(name: str, total: Tensor) -> Tensor:
    if not bool(torch.isfinite(total).all()):
        raise UserError(f"the inputs of {name.removesuffix('.weight')} are not finite: the network has overflowed")
    return total
