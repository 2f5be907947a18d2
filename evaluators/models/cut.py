"""``SplitModel``: a network with its partition points, cut at any of them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from evaluators.models.answer import first_tensor
from evaluators.models.points import Network, Scalar, Tap, find_taps
from evaluators.models.trace import trace
from spaces.errors import SpecError, nearest
from spaces.partition import INPUT, OUTPUT, PartitionPoint


class SplitModel:
    """A traced network with its partition points; makes heads and tails.

    Head and tail run the very operations of the whole network on the very same modules, in the same order, so
    head-then-tail equals the whole bit for bit.

    Args:
        model: in eval mode.
        image_size: side of its square RGB input in pixels.

    Raises:
        SpecError: the model does not accept images of this size.
        SplitsearchError: the model cannot be traced.
    """

    def __init__(self, model: nn.Module, image_size: int) -> None:
        self.image_size = image_size
        self._graph = trace(model, image_size)
        self._network = Network(model, self._graph, image_size)
        self._taps = {tap.point.name: tap for tap in find_taps(self._network)}

    @property
    def points(self) -> list[PartitionPoint]:
        """From ``input`` to ``output``."""
        return [tap.point for tap in self._taps.values()]

    def channel_axes(self, name: str) -> tuple[int, ...]:
        """For each tensor at a point, the axis its channels are on, batch dimension included: 1 or -1."""
        return self.tap(name).point.channel_axes

    def head(self, name: str) -> nn.Module:
        """Everything up to a point: picture (B, 3, S, S) to a tuple of tensors, as many as cross there.

        Shares its modules with the whole model. At ``output`` the tuple holds the model's answer, (B, classes), see
        :func:`first_tensor`.
        """
        graph, copies = self._copy_until(self.tap(name).position)
        graph.output(self._results(name, graph, copies))
        return fx.GraphModule(self._graph, graph).eval()

    def tail(self, name: str) -> nn.Module:
        """Everything after a point: the tensors that cross there, one argument each, to what the model returns."""
        tap = self.tap(name)
        graph = fx.Graph()
        copies: dict[fx.Node, Any] = {node: graph.placeholder(f"tensor_{i}") for i, node in enumerate(tap.tensors)}
        first = copies[tap.tensors[0]] if tap.tensors else graph.placeholder("answer")
        if name == OUTPUT:
            graph.output(first)
            return fx.GraphModule(self._graph, graph).eval()
        span = self._network.nodes[tap.position + 1 :]
        self._copy_what_need_not_be_sent(tap, span, graph, copies, first)
        for node in span:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return fx.GraphModule(self._graph, graph).eval()

    def tapped(self) -> tuple[nn.Module, dict[str, list[str]]]:
        """The whole network returning every tensor that crosses at any point.

        Returns:
            The module, from picture to tuple; and for each point the names of its tensors, which are those of the
            tuple's entries in the order of first use.
        """
        graph, copies = self._copy_until(len(self._network.nodes) - 1)
        names = {name: [_tensor_name(node) for node in tap.tensors] for name, tap in self._taps.items()}
        names[INPUT], names[OUTPUT] = [INPUT], [OUTPUT]
        inner = {node: None for name, tap in self._taps.items() if name not in (INPUT, OUTPUT) for node in tap.tensors}
        results = [self._kept(graph, copies[node]) for node in inner]
        graph.output((*results, *self._results(OUTPUT, graph, copies)))
        return fx.GraphModule(self._graph, graph).eval(), names

    def tap(self, name: str) -> Tap:
        """A point by name. Raises SpecError for one that does not exist."""
        if name not in self._taps:
            raise SpecError("partition", name, nearest(name, self._taps))
        return self._taps[name]

    def _copy_until(self, position: int) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in self._network.nodes[: position + 1]:
            if node.op != "output":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return graph, copies

    def _results(self, name: str, graph: fx.Graph, copies: dict[fx.Node, fx.Node]) -> tuple[fx.Node, ...]:
        if name != OUTPUT:
            return tuple(copies[node] for node in self.tap(name).tensors)
        answer = fx.map_arg(self._network.nodes[-1].args[0], copies.__getitem__)
        return (graph.call_function(first_tensor, (answer,)),)

    @staticmethod
    def _kept(graph: fx.Graph, node: fx.Node) -> fx.Node:
        """A copy taken on the spot, which a later operation in place does not change."""
        with graph.inserting_after(node):
            return graph.call_function(torch.clone, (node,))

    def _copy_what_need_not_be_sent(
        self, tap: Tap, span: list[fx.Node], graph: fx.Graph, copies: dict[fx.Node, Any], first: fx.Node
    ) -> None:
        """What the tail needs from before the cut besides tensors: parameters, and sizes, which it can tell itself."""
        network = self._network
        sources = {source for node in span for source in node.all_input_nodes}
        waiting = [node for node in sources if network.position[node] <= tap.position and node not in copies]
        wanted: set[fx.Node] = set()
        while waiting:
            node = waiting.pop()
            wanted.add(node)
            if node in network.free:
                waiting += [source for source in node.all_input_nodes if source not in wanted]
        batch = None
        for node in network.nodes[: tap.position + 1]:
            if node not in wanted:
                continue
            if node in network.free:
                copies[node] = graph.node_copy(node, copies.__getitem__)
            else:
                batch = batch or graph.call_method("size", (first, 0))
                copies[node] = _size(network.scalars[node], graph, batch)


def _tensor_name(node: fx.Node) -> str:
    return f"{node.name}_crossing"


def _size(scalar: Scalar | None, graph: fx.Graph, batch: fx.Node) -> Any:
    assert scalar is not None  # a point where anything else crosses is not one
    if isinstance(scalar.fixed, tuple):
        parts = zip(scalar.fixed, scalar.per_picture)
        return tuple(_size(Scalar(fixed, per_picture), graph, batch) for fixed, per_picture in parts)
    if scalar.per_picture == 0:
        return scalar.fixed
    scaled = graph.call_function(operator.mul, (batch, scalar.per_picture))
    return graph.call_function(operator.add, (scaled, scalar.fixed))
