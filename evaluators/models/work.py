"""Counts the :class:`Work` of a network before and after every partition point, and of small modules.

Counted are the operations that torch really carries out, below modules and functions, so it makes no difference
whether a layer is a module, a function, or hidden in a node that tracing left opaque.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from evaluators.models.cut import SplitModel
from spaces.work import Work

_BATCH = 2  # as in tracing: of 1, torch.export would have concluded that it is always 1
_CONVOLUTIONS = {"convolution", "_convolution"}
_NORMALISATIONS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"}
_PIECEWISE_LINEAR = {"relu", "hardtanh", "clamp", "clamp_min", "leaky_relu"}
_COPIES = {"cat", "clone", "copy", "_to_copy", "constant_pad_nd", "reflection_pad2d", "index", "index_select", "roll"}

_totals: weakref.WeakKeyDictionary[SplitModel, list[Work]] = weakref.WeakKeyDictionary()


def head_work(split: SplitModel, point_name: str) -> Work:
    """What the head does for one picture when the network is cut at this point.

    Raises:
        SpecError: no such point.
    """
    return _work_until(split)[split.tap(point_name).position]


def tail_work(split: SplitModel, point_name: str) -> Work:
    """What the tail does for one picture; with :func:`head_work` it makes up the whole network.

    Raises:
        SpecError: no such point.
    """
    totals = _work_until(split)
    return totals[-1] - totals[split.tap(point_name).position]


def module_work(module: nn.Module, examples: Sequence[torch.Tensor]) -> Work:
    """What a module does for one picture, such as an encoder.

    Args:
        module: run once, in eval mode.
        examples: what it is called with, one row a picture.
    """
    modes = {each: each.training for each in module.modules()}
    counter = _Counter(module, len(examples[0]))
    try:
        module.eval()
        with torch.no_grad(), _plain_attention(), counter:
            module(*examples)
    finally:
        for each, training in modes.items():
            each.training = training
    return counter.work


def _work_until(split: SplitModel) -> list[Work]:
    """Work up to and including each node; counted once for each network."""
    if split not in _totals:
        network = split._network
        runner = _Runner(network.graph, network.free)
        side = split.image_size
        with torch.no_grad(), _plain_attention():
            runner.run(torch.zeros(_BATCH, 3, side, side))
        _totals[split] = list(itertools.accumulate(runner.work[node] for node in network.nodes))
    return _totals[split]


class _Runner(fx.Interpreter):
    """Runs a graph once and notes the work of each node."""

    def __init__(self, graph: fx.GraphModule, free: set[fx.Node]) -> None:
        super().__init__(graph)
        self.work: dict[fx.Node, Work] = {}
        self._free = free
        self._counter = _Counter(graph, _BATCH)

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.work
        with self._counter:
            result = super().run_node(n)
        # What is computed from parameters alone is folded into constants before it runs anywhere.
        self.work[n] = Work() if n in self._free else self._counter.work - before
        return result


class _Counter(TorchDispatchMode):
    """Adds up the work of the operations that run while it is entered."""

    def __init__(self, module: nn.Module, batch: int) -> None:
        super().__init__()
        self.work = Work()
        self._batch = batch
        self._parameters = {_storage(parameter) for parameter in module.parameters()}
        # Where the layers' outputs lie that nothing has been done with yet.
        self._fresh: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        output = next((leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)), None)
        if output is not None and inputs and not _is_view(func, inputs, output):
            self.work += self._of(func, args, kwargs, result, inputs, output)
        return result

    def _of(
        self, func: Any, args: Any, kwargs: Any, result: Any, inputs: list[torch.Tensor], output: torch.Tensor
    ) -> Work:
        name = func._overloadpacket.__name__
        elements = output.numel() // self._batch
        if func._overloadpacket in flop_registry:
            self._fresh.add(_storage(output))
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)  # two for each MAC
            macs = {_kind(name, args, self._batch): flops // 2 // self._batch}
            return Work(**macs, weights=self._weights(name, inputs), layer_elements=elements, layers=1)
        fresh = _storage(inputs[0]) in self._fresh
        self._fresh.discard(_storage(output))
        if fresh and name in _NORMALISATIONS:
            self._fresh.add(_storage(output))
            return Work(fused_elements=elements, fused=1)
        if fresh and name.rstrip("_") in _PIECEWISE_LINEAR:
            return Work(fused_elements=elements, fused=1)
        if name.rstrip("_") in _COPIES:
            return Work(copied_elements=elements, copies=1)
        return Work(other_elements=elements, others=1)

    def _weights(self, name: str, inputs: list[torch.Tensor]) -> int:
        """Of a convolution all but the first input; of a matrix product, which may have none, the parameters."""
        if name in _CONVOLUTIONS:
            return sum(each.numel() for each in inputs[1:])
        return sum(each.numel() for each in inputs if _storage(each) in self._parameters)


def _kind(name: str, args: tuple[Any, ...], batch: int) -> str:
    """Which of the kinds of arithmetic a layer is."""
    if name not in _CONVOLUTIONS:
        rows = args[1 if name in ("addmm", "baddbmm") else 0].shape
        return "dense_macs" if len(rows) == 2 and rows[0] == batch else "pointwise_macs"
    weight, stride, groups = args[1], args[3], args[8]
    if groups > 1:
        return "depthwise_macs" if weight.shape[1] == 1 else "grouped_macs"
    kernel = tuple(weight.shape[2:])
    if all(side == 1 for side in kernel):
        return "pointwise_macs"
    return "winograd_macs" if kernel == (3, 3) and all(step == 1 for step in stride) else "convolution_macs"


def _is_view(func: Any, inputs: list[torch.Tensor], output: torch.Tensor) -> bool:
    """Whether the output is an input in another shape, for which nothing is computed."""
    return not func._schema.is_mutable and _storage(output) in {_storage(each) for each in inputs}


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as the matrix products it is made of; fused, it is one operation that nobody can count."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
