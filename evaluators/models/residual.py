"""Residual branches, found in the graph, whatever a library calls its blocks."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from evaluators.models.trace import trace

_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_PASSED = (nn.Identity, nn.Dropout, nn.Dropout2d)  # modules between a norm and a sum that leave its values alone


@torch.no_grad()
def zero_init_residual(network: nn.Module, image_size: int) -> int:
    """Set the last BatchNorm weight of each residual branch to zero, so that its block starts as the identity.

    For networks that nobody has trained yet. It lets deep ones learn from the first steps on; after Goyal et al.,
    "Accurate, Large Minibatch SGD" (arXiv 1706.02677, section 5.1). Where both terms of a sum end in a norm, none of
    them is the plain shortcut, and both stay as they are; so do norms of a library's own (timm's BatchNormAct2d).
    Leaves the network in eval mode.

    Returns:
        The number of branches.
    """
    graph = trace(network.eval(), image_size)
    modules = dict(graph.named_modules())
    silenced: set[nn.BatchNorm2d] = set()
    for node in graph.graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in _SUMS and len(node.args) == 2:
            norms = [norm for norm in (_norm(term, modules) for term in node.args) if norm is not None]
            if len(norms) == 1:
                silenced.add(norms[0])
    for norm in silenced:
        norm.weight.zero_()
    return len(silenced)


def _norm(term: object, modules: dict[str, nn.Module]) -> nn.BatchNorm2d | None:
    """The BatchNorm whose output this term of a sum is and nothing else's, seen through what does nothing in eval."""
    while isinstance(term, fx.Node) and len(term.users) == 1:
        module = modules[str(term.target)] if term.op == "call_module" else None
        if isinstance(module, nn.BatchNorm2d):
            return module if module.affine else None
        # torchvision's stochastic depth is a function, known by its name since graphs may hold a wrapper of it.
        function = getattr(term.target, "__name__", "") if term.op == "call_function" else ""
        if not isinstance(module, _PASSED) and function not in ("stochastic_depth", "dropout"):
            return None
        term = term.args[0]
    return None
