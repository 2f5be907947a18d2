"""One autoencoder that holds those of many AE ratios and bit-widths: each has the first so many of its channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from evaluators.compression.bottleneck import Bottleneck

Member = tuple[float, int]
"""AE ratio and bit-width."""


class NestedBottleneck(nn.Module):
    """The weights of the widest member are those of all; the staircases' sharpness is each member's own.

    Slimmable networks (Yu et al., ICLR 2019, arXiv 1812.08928) of an autoencoder: a member with K channels has the
    first K rows of the encoders and the first K columns of the decoders.

    Args:
        members: an untrained bottleneck of each, all of the same tensors, head and stride.
    """

    def __init__(self, members: Mapping[Member, Bottleneck]) -> None:
        super().__init__()
        self.members = sorted(members)
        self._forms = {member: _Call(bottleneck) for member, bottleneck in members.items()}
        self.widest = copy.deepcopy(members[self.members[-1]])
        self.stairs = nn.ModuleList(
            nn.ParameterList(torch.zeros_like(each) for each in members[member].sharpness()) for member in self.members
        )

    @property
    def encoders(self) -> list[Any]:
        """Of the widest member."""
        return self.widest.encoders

    @property
    def channels(self) -> list[int]:
        """Of the features, for each tensor."""
        return self.widest.channels

    def weights(self) -> list[nn.Parameter]:
        """What all members share."""
        return self.widest.weights()

    def sharpness(self) -> list[nn.Parameter]:
        """The staircases' parameters, of every member."""
        return list(self.stairs.parameters())

    def start_from(
        self,
        features: Sequence[torch.Tensor],
        importance: Sequence[torch.Tensor] | None = None,
        seed: int = 0,
        maps: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Start in closed form, see :meth:`Bottleneck.start_from`: each member's channels are the strongest."""
        counts = [self._forms[member].bottleneck.bottleneck_channels for member in self.members]
        prefixes = [sorted(set(each)) for each in zip(*counts, strict=True)]
        self.widest.start_from(features, importance, seed, maps, prefixes)

    def call(self, member: Member, function: Any, *arguments: Any) -> Any:
        """``function(bottleneck, *arguments)`` with a member; gradients reach the shared weights."""
        form = self._forms[member]
        return functional_call(form, self._state(member), (function, *arguments))

    @torch.no_grad()
    def cut_out(self, member: Member) -> Bottleneck:
        """A member as a bottleneck of its own, on the CPU."""
        alone = copy.deepcopy(self._forms[member].bottleneck)
        state = {name.removeprefix("bottleneck."): tensor.cpu() for name, tensor in self._state(member).items()}
        alone.load_state_dict(state)
        return alone

    def _state(self, member: Member) -> dict[str, torch.Tensor]:
        """A member's parameters by name: views of the widest one's, and its own."""
        shared, stairs = dict(self.widest.named_parameters()), self.stairs[self.members.index(member)].parameters()
        return {
            f"bottleneck.{name}": next(stairs) if name.endswith("sharpness") else _first(shared[name], own.shape)
            for name, own in self._forms[member].bottleneck.named_parameters()
        }


class _Call(nn.Module):
    """A bottleneck that :func:`torch.func.functional_call` gives to a function."""

    def __init__(self, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.bottleneck = bottleneck

    def forward(self, function: Any, *arguments: Any) -> Any:
        return function(self.bottleneck, *arguments)


def _first(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The corner of a tensor that has a shape."""
    return tensor[tuple(slice(size) for size in shape)]
