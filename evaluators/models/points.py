"""Finds the places in a traced network where it can be cut.

A *single* point is a place where one tensor carries everything forward. Where skips or pyramids cross and there is
none for long, points at the ends of modules carry all the tensors that are needed later. Between neighbouring points
that differ only by element-wise operations (BatchNorm, an activation, the sum of a residual block) the last one counts,
since it sends the same number of values and leaves the server less to do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evaluators.models.answer import first_tensor
from spaces.partition import INPUT, OUTPUT, PartitionPoint

STEM = "stem"
MOST_TENSORS = 8
_BATCHES = (2, 3)  # two, to tell what depends on the number of images from what does not
_MAIN_SHARE = 0.5  # of the network's arithmetic: a submodule with that much is looked into like the network itself


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A partition point in the graph.

    Attributes:
        point: what the rest of the project sees of it.
        position: index of the last node of the head.
        tensors: the nodes whose values cross, in order.
    """

    point: PartitionPoint
    position: int
    tensors: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Scalar:
    """An integer, or a tuple of them, that follows from the number of images: ``fixed + per_picture * batch``."""

    fixed: Any
    per_picture: Any


@dataclass(frozen=True)
class _Seen:
    """What one run showed of a tensor."""

    shape: tuple[int, ...]
    floating: bool
    storage: int


class _Recorder(fx.Interpreter):
    """Runs the graph once, noting the shape of every tensor, integers, and the arithmetic of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.tensors: dict[fx.Node, _Seen] = {}
        self.numbers: dict[fx.Node, Any] = {}
        self.macs: dict[fx.Node, int] = {}
        self.answer: tuple[int, ...] = ()

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2  # it counts a multiply-accumulate as two
        if n.op == "output":
            self.answer = tuple(first_tensor(result).shape)
        elif _is_tensor(result):
            self.tensors[n] = _Seen(
                tuple(result.shape), result.is_floating_point(), result.untyped_storage().data_ptr()
            )
        elif _is_numbers(result):
            self.numbers[n] = result
        return result


class Network:
    """A traced network as the enumeration sees it: an ordered list of operations with what each needs and costs."""

    def __init__(self, model: nn.Module, graph: fx.GraphModule, image_size: int) -> None:
        self.model, self.graph = model, graph
        self.nodes: list[fx.Node] = list(graph.graph.nodes)
        self.position = {node: index for index, node in enumerate(self.nodes)}
        first, second = (_record(graph, image_size, batch) for batch in _BATCHES)
        self.scalars = {
            node: _scalar(first.numbers[node], second.numbers[node]) for node in first.numbers if node in second.numbers
        }
        self._first, self._second = first, second
        self.free = _free_nodes(self.nodes)
        # What is computed from parameters alone is folded into constants before it runs anywhere.
        self.macs = [0 if node in self.free else first.macs[node] // _BATCHES[0] for node in self.nodes]
        self.total_macs = sum(self.macs)
        self._macs_until = list(itertools.accumulate(self.macs))
        self.answer_shape = first.answer[1:]
        self._last_use = {node: max((self.position[user] for user in node.users), default=-1) for node in self.nodes}
        self._parameters = [_parameters(graph, node) for node in self.nodes]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Without the batch dimension."""
        return self._first.tensors[node].shape[1:]

    def macs_until(self, position: int) -> int:
        """Of one picture, up to and including a position."""
        return self._macs_until[position]

    def parameters_of(self, start: int, stop: int) -> int:
        """Parameters that the nodes from ``start`` up to, not including, ``stop`` use; shared ones counted once."""
        found: dict[int, int] = {}
        for parameters in self._parameters[start:stop]:
            found |= parameters
        return sum(found.values())

    def lives(self) -> Iterator[tuple[int, list[fx.Node]]]:
        """Every position with its live nodes, in one pass."""
        alive: list[fx.Node] = []
        for position, node in enumerate(self.nodes[:-1]):
            alive = [each for each in alive if self._last_use[each] > position]
            if self._last_use[node] > position and node not in self.free and not self._is_scalar(node):
                alive.append(node)
            yield position, list(alive)

    def can_be_sent(self, nodes: Sequence[fx.Node]) -> bool:
        """Whether these are tensors of floats, one row a picture, none of them a view of another."""
        for node in nodes:
            first, second = self._first.tensors.get(node), self._second.tensors.get(node)
            if first is None or second is None or not first.floating:
                return False
            one_row_each = len(first.shape) > 1 and (first.shape[0], second.shape[0]) == _BATCHES
            if not one_row_each or first.shape[1:] != second.shape[1:]:
                return False
        storages = [self._first.tensors[node].storage for node in nodes]
        return len(set(storages)) == len(storages)

    def _is_scalar(self, node: fx.Node) -> bool:
        return self.scalars.get(node) is not None


def find_taps(network: Network) -> list[Tap]:
    """All partition points from input to output; names are unique."""
    lives = dict(network.lives())
    placeholder = next(index for index, node in enumerate(network.nodes) if node.op == "placeholder")
    singles = [position for position, nodes in lives.items() if len(nodes) == 1 and network.can_be_sent(nodes)]
    groups = _merge(network, singles, lives)
    names = _Names(network)
    taps = [_tap(network, INPUT, placeholder, [network.nodes[placeholder]])]
    for group in groups:
        taps += _several(network, taps[-1], group.first, lives, names)
        taps.append(_tap(network, names.of_group(group, lives[group.cut][0]), group.cut, lives[group.cut]))
    taps += _several(network, taps[-1], len(network.nodes) - 1, lives, names)
    return [*taps, _output(network)]


@dataclass(frozen=True)
class _Group:
    """Neighbouring single points that differ by element-wise operations only.

    ``first`` and ``cut`` are the positions of the first and the last of them; up to ``until`` the same values only
    change their shape, as in a flatten, which a bottleneck could use less well.
    """

    first: int
    cut: int
    until: int


def _merge(network: Network, singles: list[int], lives: dict[int, list[fx.Node]]) -> list[_Group]:
    groups: list[_Group] = []
    for position in singles:
        (node,) = lives[position]
        if node.op == "placeholder" or _is_answer(network, node, position):
            continue
        last = groups[-1] if groups else None
        if last is None or not _same_values(network, lives[last.cut][0], node, last.cut, position):
            groups.append(_Group(position, position, position))
        elif len(network.shape(node)) == len(network.shape(lives[last.cut][0])) and last.until == last.cut:
            groups[-1] = _Group(last.first, position, position)
        else:
            groups[-1] = _Group(last.first, last.cut, position)
    return groups


def _same_values(network: Network, before: fx.Node, after: fx.Node, start: int, stop: int) -> bool:
    """As many values, and no arithmetic worth counting between."""
    same_number = math.prod(network.shape(before)) == math.prod(network.shape(after))
    return same_number and network.macs_until(start) == network.macs_until(stop)


def _is_answer(network: Network, node: fx.Node, position: int) -> bool:
    """Whether nothing but handing it over is left to do with this tensor."""
    return network.macs_until(position) == network.total_macs and network.shape(node) == network.answer_shape


def _is_idle(earlier: PartitionPoint, later: PartitionPoint) -> bool:
    """Whether the later point does nothing more for the server and sends no less."""
    return earlier.head_macs == later.head_macs and earlier.elements <= later.elements


def _several(network: Network, last: Tap, stop: int, lives: dict[int, list[fx.Node]], names: _Names) -> list[Tap]:
    """Points with several tensors between two neighbouring single ones, at the ends of the modules between them.

    Only where the region between them is made of several modules of the network itself, not inside a block, where
    there would be more to send than before and after it. A point that sends no less than an earlier one and saves the
    server nothing, or leaves it nothing, is left out.
    """
    taps: list[Tap] = []
    for name, position in _children_of_region(network, last.position, stop):
        nodes = lives[position]
        if not 1 < len(nodes) <= MOST_TENSORS or not network.can_be_sent(nodes):
            continue
        tap = _tap(network, name, position, nodes)
        if tap.point.tail_macs and not any(_is_idle(other.point, tap.point) for other in [last, *taps]):
            taps.append(tap)
    for tap in taps:
        names.take(tap.point.name)
    return taps


def _children_of_region(network: Network, start: int, stop: int) -> list[tuple[str, int]]:
    """Modules that end between two positions, as (name, position of the end), if the region deserves a look inside."""
    nodes = [node for node in network.nodes[start : stop + 1] if node not in network.free]
    common = _common([node.meta["scope"] for node in nodes])
    while common and _is_container(network, common[-1]):
        common = common[:-1]
    if common and _macs_of(network, common[-1]) < _MAIN_SHARE * network.total_macs:
        return []
    ends: dict[str, int] = {}
    for index in range(start + 1, stop):
        below = network.nodes[index].meta["scope"][len(common) :]
        child = next((name for name in below if not _is_container(network, name)), None)
        if child is not None:
            ends[child] = index
    # A module called from several places ends where it ends last.
    whole = [(name, index) for name, index in ends.items() if _end_of(network, name) == index]
    return sorted(whole, key=lambda end: end[1])


def _common(scopes: list[tuple[str, ...]]) -> tuple[str, ...]:
    common = scopes[0]
    for scope in scopes:
        while common != scope[: len(common)]:
            common = common[:-1]
    return common


def _end_of(network: Network, module: str) -> int:
    """Position of the last node inside a module."""
    return max(index for index, node in enumerate(network.nodes) if module in node.meta["scope"])


def _macs_of(network: Network, module: str) -> int:
    """Arithmetic inside a module."""
    return sum(macs for macs, node in zip(network.macs, network.nodes) if module in node.meta["scope"])


def _tap(network: Network, name: str, position: int, nodes: list[fx.Node]) -> Tap:
    before = network.macs_until(position)
    point = PartitionPoint(
        name=name,
        shapes=tuple(network.shape(node) for node in nodes),
        head_macs=before,
        tail_macs=network.total_macs - before,
        head_params=network.parameters_of(0, position + 1),
        tail_params=network.parameters_of(position + 1, len(network.nodes)),
        channel_axes=tuple(_channel_axis(network, node) for node in nodes),
    )
    return Tap(point=point, position=position, tensors=tuple(nodes))


def _output(network: Network) -> Tap:
    """All on the device."""
    end = len(network.nodes) - 1
    point = PartitionPoint(
        name=OUTPUT,
        shapes=(network.answer_shape,),
        head_macs=network.total_macs,
        tail_macs=0,
        head_params=network.parameters_of(0, end + 1),
        tail_params=0,
        channel_axes=(1,),
    )
    return Tap(point=point, position=end, tensors=())


# -- names -------------------------------------------------------------------------------------------------------------


class _Names:
    """Names a point after the module that ends there."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._taken = {INPUT, OUTPUT}
        self._ends: dict[str, int] = {}
        for index, node in enumerate(network.nodes):
            for name in node.meta["scope"]:
                self._ends[name] = index

    def take(self, name: str) -> None:
        """Mark a name as given."""
        self._taken.add(name)

    def of_group(self, group: _Group, tensor: fx.Node) -> str:
        """The largest module, not a mere container, that ends here; else the layer; else the operation."""
        # Reshaping belongs to the block that it ends; it is no layer to name a point after.
        ended = [
            name
            for name, end in self._ends.items()
            if group.first <= end <= (group.until if _has_children(self._network, name) else group.cut)
        ]
        plain = ".".join([*tensor.meta["scope"][-1:], *([] if tensor.op == "call_module" else [_operation(tensor)])])
        numbered = (f"{plain}_{number}" for number in itertools.count(2))
        candidates = itertools.chain([self._best(ended), plain], numbered)
        name = next(name for name in candidates if name and name not in self._taken)
        self.take(name)
        return name

    def _best(self, ended: list[str]) -> str | None:
        if "maxpool" in ended:
            return STEM  # ResNet's convolutional stem: convolution, normalisation, activation, pooling
        by_end = sorted(ended, key=lambda name: (-self._ends[name], name.count(".")))
        blocks = [name for name in by_end if _has_children(self._network, name)]
        real = [name for name in blocks if not _is_container(self._network, name)]
        return next(iter([*real, *blocks[::-1], *by_end]), None)


def _operation(node: fx.Node) -> str:
    """``add`` for an addition, whether a function or a method."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    return name.partition(".")[0].strip("_")


def _module(network: Network, name: str) -> nn.Module | None:
    try:
        return network.model.get_submodule(name)
    except AttributeError:  # torch.export names some calls of a shared module name@1
        return None


def _is_container(network: Network, name: str) -> bool:
    """A plain list of blocks, such as the stages of most networks; a list of mere layers is a block itself."""
    module = _module(network, name)
    if type(module) not in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
        return False
    return any(next(child.children(), None) is not None for child in module.children())  # type: ignore[union-attr]


def _has_children(network: Network, name: str) -> bool:
    module = _module(network, name)
    return module is not None and next(module.children(), None) is not None


# -- reading nodes -----------------------------------------------------------------------------------------------------


def _record(graph: fx.GraphModule, image_size: int, batch: int) -> _Recorder:
    recorder = _Recorder(graph)
    # Fused attention is one operation that the counter of arithmetic does not know.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            recorder.run(torch.zeros(batch, 3, image_size, image_size))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return recorder


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_numbers(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_numbers(each) for each in value)
    return isinstance(value, int)


def _scalar(first: Any, second: Any) -> Scalar | None:
    """From the values of two runs; None where they do not follow from the number of images."""
    if isinstance(first, tuple | list):
        parts = [_scalar(a, b) for a, b in zip(first, second, strict=True)]
        if any(part is None for part in parts):
            return None
        return Scalar(tuple(part.fixed for part in parts if part), tuple(part.per_picture for part in parts if part))
    slope, rest = divmod(second - first, _BATCHES[1] - _BATCHES[0])
    return None if rest else Scalar(first - slope * _BATCHES[0], slope)


def _free_nodes(nodes: list[fx.Node]) -> set[fx.Node]:
    """Nodes that do not depend on the picture: parameters, and what is computed from them alone."""
    free: set[fx.Node] = set()
    for node in nodes:
        if node.op not in ("placeholder", "output") and all(source in free for source in node.all_input_nodes):
            free.add(node)
    return free


def _parameters(graph: fx.GraphModule, node: fx.Node) -> dict[int, int]:
    """Number of values in each parameter that a node uses, by the parameter's identity."""
    if node.op == "call_module":
        return {id(p): p.numel() for p in graph.get_submodule(str(node.target)).parameters()}
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        value = getattr(graph.get_submodule(path), name, None)
        return {id(value): value.numel()} if isinstance(value, nn.Parameter) else {}
    return {}


# -- which axis the channels are on ------------------------------------------------------------------------------------

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
_REACH = 12


def _channel_axis(network: Network, node: fx.Node) -> int:
    """1 for (B, C, H, W), -1 for (B, N, C) and (B, H, W, C): as the nearest layer that mixes channels has it."""
    dimensions = len(network.shape(node))
    if dimensions == 1:
        return 1
    found = _nearest_layer(network, node, lambda n: list(n.users))
    if found is None and _layout(network, node) != 0:  # what came before it moved the axes had them elsewhere
        found = _nearest_layer(network, node, lambda n: n.all_input_nodes)
    return found or (1 if dimensions == 3 else -1)


def _nearest_layer(network: Network, node: fx.Node, step: Any) -> int | None:
    waiting, seen = [node], {node}
    for _ in range(_REACH):
        if not waiting:
            return None
        current = waiting.pop(0)
        for other in step(current):
            layout = _layout(network, other)
            if layout is not None:
                return layout if abs(layout) == 1 else None
            if other in seen or other not in network._first.tensors or _other_axes(network, current, other):
                continue
            seen.add(other)
            waiting.append(other)
    return None


def _other_axes(network: Network, node: fx.Node, other: fx.Node) -> bool:
    """Whether a step from one to the other, such as a mean over a map, takes axes away or adds some."""
    return other in node.users and len(network.shape(node)) != len(network.shape(other))


def _layout(network: Network, node: fx.Node) -> int | None:
    """1 or -1 for a layer that mixes channels, 0 for one that moves axes, None for one that says nothing."""
    if node.op == "call_module":
        for module in network.graph.get_submodule(str(node.target)).modules():
            if isinstance(module, _CHANNELS_FIRST) or type(module).__name__.endswith("2d"):
                return 1
            if isinstance(module, _CHANNELS_LAST):
                return -1
        return None
    name = getattr(node.target, "__name__", str(node.target))
    if name.startswith(("conv", "batch_norm", "max_pool", "avg_pool", "adaptive_avg_pool", "group_norm")):
        return 1
    if name.startswith(("linear", "layer_norm")):
        return -1
    moves = ("permute", "transpose", "movedim", "reshape", "view", "flatten")
    return 0 if name.startswith(moves) or (node.op == "call_method" and node.target in moves) else None
