"""Where a network can be cut, and the cut itself.

The network is traced into a graph. A point is a place in it where one single tensor carries everything forward; between
two points that differ only by element-wise operations (BatchNorm, an activation, the sum of a residual block) only the
last counts, since it sends the same number of values and leaves the server less to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from spaces.errors import SpecError, SplitsearchError
from spaces.partition import INPUT, OUTPUT, PartitionPoint

STEM = "stem"


@dataclass(frozen=True)
class _Tap:
    """A node of the graph that is a partition point."""

    node: fx.Node
    point: PartitionPoint


class SplitModel:
    """A traced network with its partition points; makes heads and tails.

    Head and tail run the very operations of the whole network on the very same modules, in the same order, so
    head-then-tail equals the whole bit for bit.

    Args:
        model: in eval mode.
        image_size: side of its square RGB input in pixels.

    Raises:
        SplitsearchError: the model cannot be traced.
        SpecError: the model does not accept pictures of this size.
    """

    def __init__(self, model: nn.Module, image_size: int) -> None:
        try:
            self.graph_module = fx.symbolic_trace(model)
        except Exception as error:  # tracing runs the model's own code, which may raise anything
            reason = str(error).splitlines()[0]
            raise SplitsearchError(f"{type(model).__name__} cannot be traced by torch.fx: {reason}") from error
        self.image_size = image_size
        self._taps = _find_taps(self.graph_module, image_size)

    @property
    def points(self) -> list[PartitionPoint]:
        """From ``input`` to ``output``."""
        return [tap.point for tap in self._taps.values()]

    def head(self, name: str) -> nn.Module:
        """Everything up to a point: picture (B, 3, S, S) to feature map. Shares its modules with the whole model."""
        return self._part(INPUT, name)

    def tail(self, name: str) -> nn.Module:
        """Everything after a point: feature map to class scores (B, classes). Shares its modules likewise."""
        return self._part(name, OUTPUT)

    def tapped(self) -> tuple[nn.Module, list[str]]:
        """The whole model returning the tensor at every point after ``input``, and the points' names in that order."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self.graph_module.graph.nodes:
            if node.op != "output":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        names = [name for name in self._taps if name != INPUT]
        graph.output(tuple(copies[self._taps[name].node] for name in names))
        return fx.GraphModule(self.graph_module, graph).eval(), names

    def _part(self, start: str, end: str) -> nn.Module:
        nodes = list(self.graph_module.graph.nodes)
        first, last = self._tap(start).node, self._tap(end).node
        span = nodes[nodes.index(first) + 1 : nodes.index(last) + 1]
        constants = [node for node in nodes if node.op == "get_attr" and not set(span).isdisjoint(node.users)]
        graph = fx.Graph()
        copies = {first: graph.placeholder("tensor")}
        for node in [*constants, *span]:
            if node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[last])
        return fx.GraphModule(self.graph_module, graph).eval()

    def _tap(self, name: str) -> _Tap:
        if name not in self._taps:
            raise SpecError("partition", name, f"known: {', '.join(self._taps)}")
        return self._taps[name]


class _Recorder(fx.Interpreter):
    """Runs the graph once, noting shape and MACs of every node."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> object:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2  # it counts a multiply-accumulate as two
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape[1:])
        return result


def _find_taps(graph_module: fx.GraphModule, image_size: int) -> dict[str, _Tap]:
    recorder = _Recorder(graph_module)
    try:
        with torch.inference_mode():
            recorder.run(torch.zeros(1, 3, image_size, image_size))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise SpecError("data.image_size", image_size, f"the model does not accept such pictures: {reason}") from None
    singles = _single_tensor_nodes(graph_module.graph)
    total = sum(recorder.macs.values())
    order = list(graph_module.graph.nodes)
    taps: dict[str, _Tap] = {}
    for nodes in _merge_elementwise(singles, recorder):
        node = nodes[-1]
        before = sum(recorder.macs[each] for each in order[: order.index(node) + 1])
        name = INPUT if node.op == "placeholder" else OUTPUT if node is singles[-1] else _name(nodes)
        name = name if name not in taps else node.name
        shapes = (recorder.shapes[node],)
        taps[name] = _Tap(node, PartitionPoint(name=name, shapes=shapes, head_macs=before, tail_macs=total - before))
    return taps


def _single_tensor_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Nodes after which nothing else that was computed is used again: the graph's dominators, in order."""
    nodes = list(graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    singles, reach = [], -1
    for node in nodes:
        if node.op in ("get_attr", "output"):
            continue
        # `reach` is the last use of anything before this node.
        if reach <= position[node]:
            singles.append(node)
        reach = max(reach, last_use[node])
    return singles


def _merge_elementwise(singles: list[fx.Node], recorder: _Recorder) -> list[list[fx.Node]]:
    """Group neighbouring points that send the same number of values with no arithmetic worth counting between them."""
    position = {node: index for index, node in enumerate(recorder.shapes)}
    groups: list[list[fx.Node]] = []
    for node in singles:
        shape = recorder.shapes[node]
        previous = groups[-1][-1] if groups else None
        if previous is None or previous.op == "placeholder" or not _same_values(previous, node, recorder, position):
            groups.append([node])
        elif len(shape) == len(recorder.shapes[previous]):
            groups[-1].append(node)
        # Else a flatten: the same values without the shape that a bottleneck can use. Not a point.
    if groups[-1][-1] is not singles[-1]:
        groups.append([singles[-1]])
    return groups


def _same_values(before: fx.Node, after: fx.Node, recorder: _Recorder, position: dict[fx.Node, int]) -> bool:
    between = [node for node, index in position.items() if position[before] < index <= position[after]]
    same_size = math.prod(recorder.shapes[before]) == math.prod(recorder.shapes[after])
    return same_size and all(recorder.macs[node] == 0 for node in between)


def _name(nodes: list[fx.Node]) -> str:
    """The innermost module, larger than one layer, that ends here; else the layer itself."""
    if any(n.op == "call_module" and n.target == "maxpool" for n in nodes):
        return STEM  # ResNet's convolutional stem: convolution, normalisation, activation, pooling
    targets = [str(node.target) for node in nodes if node.op == "call_module"]
    if not targets:
        return nodes[-1].name
    parent, _, _ = targets[-1].rpartition(".")
    return parent or targets[-1]
