"""From a module to a graph that computes the very same: what everything about cutting builds on.

Tracing runs the model's own Python with a stand-in for the picture. Where a submodule does something that a stand-in
cannot (decide on a size, iterate over chunks), that kind of submodule becomes one opaque node, and the graph around it
stays open. If what is opaque does too much of the work, or the model's own ``forward`` is what cannot be traced,
``torch.export`` is tried, which follows sizes but gives operations in place of modules.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from evaluators.models.answer import as_tree
from spaces.errors import SpecError, SplitsearchError

_TRACED_BATCH = 2  # of 1, torch.export would conclude that it is always 1
_MOST_OPAQUE = 1 / 2  # of all parameters, in one opaque module
_ROOT = "network"


def trace(model: nn.Module, image_size: int) -> fx.GraphModule:
    """The graph of a model in eval mode, from one picture (B, 3, S, S) to whatever the model returns.

    The graph holds the model's own modules. Every node's ``meta["scope"]`` is the tuple of names of the modules it
    stands in, from the outermost (without the model itself) to the innermost. Bit for bit the model's own answer on a
    random picture has been checked.

    Raises:
        SpecError: the model does not accept images of this size.
        SplitsearchError: the model cannot be traced; says which line stops it and what to do.
    """
    picture = torch.randn(_TRACED_BATCH, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    expected = _answer(model, picture)
    graph, stopped, cause = _trace_modules(model)
    if graph is not None and _most_opaque(model, stopped) <= _MOST_OPAQUE and _agrees(graph, picture, expected):
        return graph
    exported = _export(model, picture)
    if exported is not None and _agrees(exported, picture, expected):
        return exported
    if graph is not None and _agrees(graph, picture, expected):
        return graph
    raise SplitsearchError(_why_not(model, cause))


def _answer(model: nn.Module, picture: torch.Tensor) -> list[Any]:
    size = picture.shape[-1]
    try:
        with torch.no_grad():
            return pytree.tree_leaves(as_tree(model(picture.clone())))
    except Exception as error:  # the model's own code, which may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SpecError(
            "data.image_size", size, f"{type(model).__name__} does not accept images of 3x{size}x{size}: {reason}"
        ) from None


def _agrees(graph: fx.GraphModule, picture: torch.Tensor, expected: list[Any]) -> bool:
    """Whether the graph gives the model's own answer, and accepts another batch size than it was traced with."""
    try:
        with torch.no_grad():
            found = pytree.tree_leaves(graph(picture.clone()))
            graph(picture[:1].repeat(_TRACED_BATCH + 1, 1, 1, 1))
    except Exception:
        return False
    pairs = zip(found, expected)
    return len(found) == len(expected) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
    )


# -- with torch.fx, submodule by submodule -----------------------------------------------------------------------------


class _Whole(nn.Module):
    """Calls the model with a picture and nothing else, whatever else its ``forward`` would take, and returns a tree."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = model

    def forward(self, picture: torch.Tensor) -> Any:
        return as_tree(self.network(picture))


class _Stopped(Exception):
    """Tracing a module failed."""

    def __init__(self, module: nn.Module, cause: Exception) -> None:
        self.module, self.cause = module, cause


class _Tracer(fx.Tracer):
    def __init__(self, opaque: set[type[nn.Module]]) -> None:
        super().__init__()
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self._opaque or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if m not in self.submodule_paths:  # type: ignore[operator]
            return forward(*args, **kwargs)  # made inside a forward; it is part of that one
        try:
            return super().call_module(m, forward, args, kwargs)
        except _Stopped:
            raise
        except Exception as error:  # the module's own code, which may raise anything at a stand-in
            if self.is_leaf_module(m, ""):
                raise  # what it is called with cannot stand in a graph, so that the module around it has to be opaque
            raise _Stopped(m, error) from error


def _trace_modules(model: nn.Module) -> tuple[fx.GraphModule | None, set[type[nn.Module]], Exception | None]:
    """The graph, or None where the model's own forward stops it; the opaque classes; what stopped the last attempt."""
    opaque: set[type[nn.Module]] = set()
    whole = _Whole(model).eval()
    cause: Exception | None = None
    # Each attempt makes another class opaque, until there is none left.
    for _ in range(len({type(module) for module in whole.modules()})):
        try:
            graph = _Tracer(opaque).trace(whole)
        except _Stopped as stopped:
            cause = stopped.cause
            if stopped.module is model:
                return None, opaque, cause
            opaque.add(type(stopped.module))
            continue
        except Exception as error:  # such as a model that returns an object of its own making
            return None, opaque, error
        for node in graph.nodes:
            path = node.meta.get("nn_module_stack", {})
            inside = [name for name, _ in path.values()] if path else []
            if node.op == "call_module" and str(node.target) not in inside:
                inside.append(str(node.target))
            node.meta["scope"] = tuple(_below(name) for name in inside if name not in ("", _ROOT))
        return fx.GraphModule(whole, graph).eval(), opaque, cause
    return None, opaque, cause


def _below(name: str) -> str:
    """A module's name in the model, from its name in :class:`_Whole`."""
    return name.removeprefix(f"{_ROOT}.")


def _most_opaque(model: nn.Module, opaque: set[type[nn.Module]]) -> float:
    """Share of all parameters in the largest opaque module."""
    total = sum(parameter.numel() for parameter in model.parameters()) or 1
    sizes = [sum(p.numel() for p in module.parameters()) for module in model.modules() if type(module) in opaque]
    return max(sizes, default=0) / total


# -- with torch.export -------------------------------------------------------------------------------------------------


def _export(model: nn.Module, picture: torch.Tensor) -> fx.GraphModule | None:
    noisy = logging.getLogger("torch")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        # It prints the graph so far when a model stops it.
        quiet = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            sizes = ({0: torch.export.Dim.AUTO},)
            program = torch.export.export(_Whole(model).eval(), (picture,), dynamic_shapes=sizes, strict=False)
            graph = program.module(check_guards=False)
            _answer_in_full(graph)
    except Exception:  # a model's own code again; the reason that is told is that of the first attempt
        return None
    finally:
        noisy.setLevel(level)
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack", {})
        node.meta["scope"] = tuple(_below(name) for name, _ in stack.values() if name not in ("", _ROOT))
    return graph


def _answer_in_full(graph: fx.GraphModule) -> None:
    """Have the output node hold what the model returns, where it holds a flat list that called code puts together."""
    *_, output = graph.graph.nodes
    spec = graph.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    output.args = (pytree.tree_unflatten(list(output.args[0]), spec),)
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph.recompile()


# -- when neither works ------------------------------------------------------------------------------------------------


def _why_not(model: nn.Module, cause: Exception | None) -> str:
    name = type(model).__name__
    if cause is None:
        return (
            f"{name} cannot be cut: its graph gives another answer than the model itself for the same picture; "
            "anything random or remembered between calls must go from its forward"
        )
    reason = (str(cause).splitlines() or [type(cause).__name__])[0]
    return (
        f"{name} cannot be cut: tracing it stops{line_of(cause)}: {reason}. Move that line into a submodule of its "
        "own, which then stays in one piece, or write it without depending on the picture's values"
    )


def line_of(error: BaseException) -> str:
    """`` at 'the line' (file:number)`` of the user's or a library's code that an error comes from, or nothing."""
    ours = Path(torch.__file__).parent, Path(__file__).parent.parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.line and not any(Path(frame.filename).is_relative_to(folder) for folder in ours)
    ]
    return f" at '{frames[-1].line}' ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
