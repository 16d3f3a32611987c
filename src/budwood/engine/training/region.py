"""From a module to the part of it that is trained through the engine: its longest beginning of a known kind.

Known are convolutions, batch norms, biases, sums, ReLU and ReLU6, pooling, and the global average. What comes after
stays in PyTorch. A bias, a sum or an activation that no batch norm takes with it is a norm of its own, and average
pooling a depthwise convolution, both with constants for numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ...core.errors import UserError
from ..graph import AdaptivePool, Graph, Node, Pool, Shape
from .nodes import Convolve, Norm, Pattern
from .sparse import SparseConv2d, SparseWeight, is_same, pair

INPUT = "image"
_RELU: dict[Any, tuple[float, float]] = {
    nn.ReLU: (0.0, math.inf),
    nn.ReLU6: (0.0, 6.0),
    F.relu: (0.0, math.inf),
    torch.relu: (0.0, math.inf),
    F.relu6: (0.0, 6.0),
    "relu": (0.0, math.inf),
    "relu_": (0.0, math.inf),
}
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")


class _Unknown(Exception):
    """Why a node is not computed through the engine."""


@dataclass(frozen=True)
class Region:
    """The nodes, a convolution or batch norm named as its module; `output` is what the rest of the network reads."""

    nodes: tuple[Node, ...]
    output: str
    keeps_plane: bool
    """Whether a global average's output is [N, C, 1, 1] rather than [N, C]."""

    def graph(self, shape: Shape) -> Graph:
        """For images of (C, H, W)."""
        return Graph({INPUT: shape}, self.nodes, (self.output,))

    @property
    def convolutions(self) -> list[Convolve]:
        return [n for n in self.nodes if isinstance(n, Convolve)]

    @property
    def norms(self) -> list[Norm]:
        return [n for n in self.nodes if isinstance(n, Norm)]


class Constants:
    """The numbers of a node that is no layer of its own kind, in place of a module's."""

    weight: Tensor
    training = False


class Shift(Constants):
    """Of a norm that adds a layer's bias, or nothing: its statistics are constants."""

    def __init__(self, layer: nn.Module | None, channels: int) -> None:
        self.layer = layer
        self.weight = self.running_var = torch.ones(channels)
        self.running_mean = torch.zeros(channels)

    @property
    def bias(self) -> Tensor:
        found = self.running_mean if self.layer is None else self.layer.bias
        assert isinstance(found, Tensor)
        return found


class Average(Constants):
    """Of the depthwise convolution that an average pooling is."""

    def __init__(self, pool: nn.AvgPool2d, channels: int) -> None:
        taps = math.prod(pair(pool.kernel_size))
        self.weight = torch.full((channels * taps,), 1 / (pool.divisor_override or taps))


@dataclass(frozen=True)
class Split:
    """A network cut in two. `rest` reads the region's output; `reason` says why it does not belong to it.

    `modules` hold the numbers of the region's nodes, by name.
    """

    region: Region
    rest: fx.Graph
    reason: str
    modules: Mapping[str, nn.Module | Constants]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kinds = (nn.Conv2d, nn.BatchNorm2d, SparseWeight)
        return isinstance(m, kinds) or "Drop" in type(m).__name__ or super().is_leaf_module(m, module_qualified_name)


def split(model: nn.Module) -> Split:
    """Cuts the network as it is now, in training or in evaluation.

    Raises UserError where nothing of it can go through the engine.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the network's own code raises for a value that is none
        raise UserError(f"the network cannot be traced: {str(error).splitlines()[0]}") from None
    found = _Reader(model, graph).read()
    if not any(isinstance(found.modules[conv.name], nn.Module) for conv in found.region.convolutions):
        raise UserError(f"no beginning of the network goes through the engine: {found.reason}")
    return found


@dataclass
class _Reader:
    model: nn.Module
    graph: fx.Graph
    nodes: list[Node] = field(default_factory=list)
    names: dict[fx.Node, str] = field(default_factory=dict)  # what each value of the network is called here
    modules: dict[str, nn.Module | Constants] = field(default_factory=dict)
    planes: set[fx.Node] = field(default_factory=set)

    def read(self) -> Split:
        self.modules.update(self.model.named_modules())
        order = list(self.graph.nodes)
        cut, reason = -1, ""
        sizes = [0]
        for number, node in enumerate(order):
            try:
                self._add(node)
            except _Unknown as why:
                reason = f"{node.target if node.op == 'call_module' else node.name}: {why}"
                break
            sizes.append(len(self.nodes))
            crossing = self._crossing(order, number)
            if len(crossing) == 1 and self._may_end(crossing[0]):
                cut, end = number, crossing[0]
        if cut < 0:
            raise UserError(f"no beginning of the network goes through the engine: {reason}")
        region = Region(tuple(self._wanted(self.names[end], cut, order)), self.names[end], end in self.planes)
        return Split(region, self._rest(order[: cut + 1], end), reason, self.modules)

    def _wanted(self, output: str, cut: int, order: list[fx.Node]) -> list[Node]:
        """The nodes that the output depends on."""
        needed, found = {output}, []
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
                found.append(node)
        return found[::-1]

    def _crossing(self, order: list[fx.Node], number: int) -> list[fx.Node]:
        """Values made up to here that are read later."""
        later = set(order[number + 1 :])
        return [n for n in order[: number + 1] if any(user in later for user in n.users)]

    def _may_end(self, node: fx.Node) -> bool:
        made = next((n for n in self.nodes if n.name == self.names[node]), None)
        return made is not None and not isinstance(made, Convolve)

    def _rest(self, taken: list[fx.Node], end: fx.Node) -> fx.Graph:
        rest = fx.Graph()
        values = {end: rest.placeholder("features")}
        for node in self.graph.nodes:
            if node not in taken:
                values[node] = rest.node_copy(node, lambda n: values[n])
        rest.lint()
        return rest

    # -- one node -----------------------------------------------------------------------------------------

    def _add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self.names:
                raise _Unknown("a second input")
            self.names[node] = INPUT
            return
        if node.op == "call_module":
            self._module(node, self.model.get_submodule(str(node.target)))
        elif node.op in ("call_function", "call_method"):
            self._function(node)
        else:
            raise _Unknown(f"a value of kind {node.op}")

    def _source(self, node: fx.Node, number: int = 0) -> fx.Node:
        source = node.args[number] if len(node.args) > number else None
        if not isinstance(source, fx.Node) or source not in self.names:
            raise _Unknown("its input is no value of the network")
        return source

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        name = str(node.target)
        source = self.names[self._source(node)]
        if name in {n.name for n in self.nodes}:
            raise _Unknown("a layer that is used twice")
        kind = type(module)
        if isinstance(module, nn.Conv2d | SparseConv2d):
            self._append(node, _convolve(name, source, module))
            if module.bias is not None:
                self._shift(node, f"{name}.bias", (name,), layer=module)
        elif isinstance(module, nn.BatchNorm2d):
            self._append(node, _norm(name, source, module))
        elif kind in _RELU:
            self._clamp(node, *_RELU[kind])
        elif isinstance(module, nn.MaxPool2d) and kind is nn.MaxPool2d:
            self._append(node, _max_pool(name, source, module))
        elif isinstance(module, nn.AvgPool2d) and kind is nn.AvgPool2d:
            channels = self._channels(source)
            self._append(node, _average_pool(name, source, module, channels))
            self.modules[name] = Average(module, channels)
        elif kind is nn.AdaptiveAvgPool2d and pair(module.output_size) == (1, 1):
            self._append(node, AdaptivePool(name, (source,)))
            self.planes.add(node)
        elif kind is nn.Identity or _drops_nothing(module):
            self.names[node] = source
        else:
            raise _Unknown(f"{kind.__name__} is not computed through the engine")

    def _function(self, node: fx.Node) -> None:
        target = node.target
        if target in _RELU:
            self._source(node)
            self._clamp(node, *_RELU[target])
        elif target in _ADD and len(node.args) == 2 and not node.kwargs:
            self._residual(node, self._source(node), self._source(node, 1))
        elif target in ("mean", torch.mean) and _over_plane(node):
            self._append(node, AdaptivePool(node.name, (self.names[self._source(node)],)))
            if _argument(node, 2, "keepdim", False):
                self.planes.add(node)
        else:
            raise _Unknown(f"{getattr(target, '__name__', target)} is not computed through the engine")

    def _append(self, node: fx.Node, made: Node) -> None:
        if any(isinstance(n, AdaptivePool) for n in self.nodes):
            raise _Unknown("what follows a global average is left to PyTorch")
        self.nodes.append(made)
        self.names[node] = made.name

    def _shift(
        self,
        node: fx.Node,
        name: str,
        inputs: tuple[str, ...],
        low: float = -math.inf,
        high: float = math.inf,
        layer: nn.Module | None = None,
    ) -> None:
        """A norm of its own for what no batch norm takes with it."""
        self.modules[name] = Shift(layer, self._channels(inputs[0]))
        self._append(node, Norm(name, inputs, low, high, 0.0))

    def _channels(self, name: str) -> int:
        made = next((n for n in self.nodes if n.name == name), None)
        if made is None:
            raise _Unknown("its input is the image itself")
        return made.pattern.shape[0] if isinstance(made, Convolve) else self._channels(made.inputs[0])

    def _norm_only_read_by(self, value: fx.Node, reader: fx.Node) -> Norm | None:
        made = next((n for n in self.nodes if n.name == self.names[value]), None)
        reads = [user for other, name in self.names.items() if name == self.names[value] for user in other.users]
        alone = [user for user in reads if user not in self.names or self.names[user] != self.names[value]]
        return made if isinstance(made, Norm) and set(alone) == {reader} and not made.clamps else None

    def _replace(self, node: fx.Node, norm: Norm, changed: Norm) -> None:
        """The norm now does what `node` does, too: it stands where all its inputs are known."""
        self.nodes.remove(norm)
        self.nodes.append(changed)
        self.names[node] = norm.name

    def _clamp(self, node: fx.Node, low: float, high: float) -> None:
        source = self._source(node)
        norm = self._norm_only_read_by(source, node)
        if norm is None:
            name = self.names[source]
            return self._shift(node, f"{name}.{node.name}", (name,), low, high)
        return self._replace(node, norm, replace(norm, low=low, high=high))

    def _residual(self, node: fx.Node, a: fx.Node, b: fx.Node) -> None:
        names = self.names[a], self.names[b]
        if INPUT in names or names[0] == names[1]:
            raise _Unknown("a sum with the image, or of a value with itself")
        for value, other in ((a, b), (b, a)):
            norm = self._norm_only_read_by(value, node)
            if norm is not None and len(norm.inputs) == 1:
                return self._replace(node, norm, replace(norm, inputs=(*norm.inputs, self.names[other])))
        return self._shift(node, f"{names[0]}.{node.name}", names)


def _convolve(name: str, source: str, conv: nn.Conv2d | SparseConv2d) -> Convolve:
    if conv.weight.numel() == 0:
        raise _Unknown("a convolution without a weight left")
    if isinstance(conv, nn.Conv2d) and (
        conv.padding_mode != "zeros" or isinstance(conv.padding, str) or not (type(conv) is nn.Conv2d or is_same(conv))
    ):
        raise _Unknown(f"{type(conv).__name__} of an unknown kind")
    sparse = isinstance(conv, SparseConv2d)
    shape = conv.shape if isinstance(conv, SparseConv2d) else tuple(conv.weight.shape)
    index = conv.index.numpy() if isinstance(conv, SparseConv2d) else None
    same = conv.same if isinstance(conv, SparseConv2d) else is_same(conv)
    padding = pair(conv.padding)
    edges = None if same else (padding[0], padding[0], padding[1], padding[1])
    pattern = Pattern((shape[0], shape[1], shape[2], shape[3]), conv.groups, index if sparse else None)
    return Convolve(name, (source,), pattern, pair(conv.stride), edges, pair(conv.dilation))


def _norm(name: str, source: str, norm: nn.BatchNorm2d) -> Norm:
    act = getattr(norm, "act", nn.Identity())  # timm's batch norm with an activation
    known = type(norm) is nn.BatchNorm2d or hasattr(norm, "act")
    if not known or not norm.affine or not norm.track_running_stats or not _drops_nothing(getattr(norm, "drop", None)):
        raise _Unknown(f"{type(norm).__name__} of an unknown kind")
    if type(act) is nn.Identity:
        return Norm(name, (source,), -math.inf, math.inf, norm.eps)
    if type(act) not in _RELU:
        raise _Unknown(f"{type(act).__name__} is not computed through the engine")
    return Norm(name, (source,), *_RELU[type(act)], norm.eps)


def _max_pool(name: str, source: str, pool: nn.MaxPool2d) -> Pool:
    if pool.return_indices:
        raise _Unknown("max pooling that answers indices")
    vertical, horizontal = pair(pool.padding)
    edges = (vertical, vertical, horizontal, horizontal)
    kernel, stride, dilation = pair(pool.kernel_size), pair(pool.stride), pair(pool.dilation)
    return Pool(name, (source,), "max", kernel, stride, edges, dilation, pool.ceil_mode)


def _average_pool(name: str, source: str, pool: nn.AvgPool2d, channels: int) -> Convolve:
    vertical, horizontal = pair(pool.padding)
    if pool.ceil_mode or ((vertical or horizontal) and not pool.count_include_pad):
        raise _Unknown("average pooling with windows of several sizes")
    pattern = Pattern((channels, 1, *pair(pool.kernel_size)), channels, None)
    edges = (vertical, vertical, horizontal, horizontal)
    return Convolve(name, (source,), pattern, pair(pool.stride), edges, (1, 1))


def _drops_nothing(module: nn.Module | None) -> bool:
    if module is None or type(module) is nn.Identity:
        return True
    return "Drop" in type(module).__name__ and (getattr(module, "p", None) or getattr(module, "drop_prob", 0.0)) == 0


def _argument(node: fx.Node, number: int, name: str, default: Any) -> Any:
    return node.args[number] if len(node.args) > number else node.kwargs.get(name, default)


def _over_plane(node: fx.Node) -> bool:
    dims = _argument(node, 1, "dim", None)
    return isinstance(dims, tuple | list) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
