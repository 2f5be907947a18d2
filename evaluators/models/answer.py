"""What a network returns, and which part of it is its answer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from spaces.errors import SplitsearchError

_MAIN = ("logits", "out")  # as transformers and torchvision's segmentation networks call it
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of torchvision's GoogLeNet and Inception


class FirstTensor(nn.Module):
    """A module of which only the answer is wanted, see :func:`first_tensor`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The module's answer."""
        return first_tensor(self.module(*tensors))


def first_tensor(answer: Any) -> torch.Tensor:
    """The answer in whatever a network returns: what it calls ``logits`` or ``out``, else the first tensor.

    Raises:
        SplitsearchError: there is no tensor in it.
    """
    found = _find(answer)
    if found is None:
        raise SplitsearchError(
            f"the network returns a {type(answer).__name__} without a tensor in it; it is to return its class scores, "
            "alone, first in a tuple, or as 'logits' in a dict or dataclass"
        )
    return found


def _find(answer: Any) -> torch.Tensor | None:
    if isinstance(answer, torch.Tensor):
        return answer
    parts = answer._asdict() if hasattr(answer, "_asdict") else as_tree(answer)
    if isinstance(parts, Mapping):
        parts = [*(parts[name] for name in _MAIN if name in parts), *parts.values()]
    if not isinstance(parts, (list, tuple)):
        return None
    return next((found for part in parts if (found := _find(part)) is not None), None)


def as_tree(answer: Any) -> Any:
    """The same with dicts in place of dataclasses and of dicts of a library's own, which torch cannot look into."""
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        answer = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    if isinstance(answer, Mapping):
        return {name: as_tree(value) for name, value in answer.items() if value is not None}
    return type(answer)(map(as_tree, answer)) if type(answer) in (list, tuple) else answer


@contextlib.contextmanager
def without_auxiliary_heads(network: nn.Module) -> Iterator[None]:
    """Leaves out the heads that GoogLeNet and Inception have for training alone, which cutting cannot use.

    They take a fifth of a training step or more, and Inception's does not accept small maps. Their weights stay.
    """
    heads = [head for name in _AUXILIARY if isinstance(head := getattr(network, name, None), nn.Module)]
    try:
        for head in heads:
            head.forward = lambda *_: None  # type: ignore[method-assign]
        yield
    finally:
        for head in heads:
            del head.forward
