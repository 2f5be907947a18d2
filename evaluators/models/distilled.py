"""Distilled heads: small networks from the picture that learn to stand in for a network's own head.

What the device computes up to a good cut is the best part of a split's latency, and most of it is there for the
network's sake: a cut where little has to be sent lies deep. A few convolutions of stride 2 straight from the picture
reach a map of the same size for a stem's price, and the decoder on the server makes of it what the network's own
layers would have made (head network distillation: Matsubara et al., HotEdgeVideo 2019; an encoder so shallow: Duan and
Zhu, PCS 2022, arXiv 2211.09897).

    picture -> 3x3, stride 2 -> ... -> 3x3, stride 2 -> encoder -> payload -> decoder -> features at the point -> tail
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.partition import PartitionPoint

# Channels of the first convolution; each further one has twice as many, up to the limit.
_WIDTHS = {"distilled-narrow": 8, "distilled": 24, "distilled-wide": 48}
_MOST_CHANNELS = 192


class DistilledHead(nn.Module):
    """Convolutions of stride 2, each with BatchNorm and ReLU; a map is taken wherever the point has one of its size.

    Args:
        size: ``distilled``, ``distilled-wide`` or ``distilled-narrow``.
        halvings: for each tensor at the point how often the picture's side is halved, 1 or more.
    """

    def __init__(self, size: str, halvings: tuple[int, ...]) -> None:
        super().__init__()
        widths = [min(_WIDTHS[size] << number, _MOST_CHANNELS) for number in range(max(halvings))]
        self.stages = nn.ModuleList(_stage(before, after) for before, after in itertools.pairwise([3, *widths]))
        self.halvings = halvings
        self.channels = [widths[count - 1] for count in halvings]
        """Of each map that it returns."""
        self.key = f"{size}/{'+'.join(map(str, halvings))}"
        """What its latency depends on, besides the picture's size."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, S, S) to one map (B, W, H, H) for each tensor at the point, as large as that tensor's."""
        maps = list(itertools.accumulate(self.stages, lambda signal, stage: stage(signal), initial=images))
        return tuple(maps[count] for count in self.halvings)


def distilled_head(size: str, point: PartitionPoint, image_size: int, seed: int = 0) -> DistilledHead:
    """An untrained distilled head for a partition point, in eval mode.

    Args:
        size: ``distilled``, ``distilled-wide`` or ``distilled-narrow``.
        point: its tensors say which maps the head has to return.
        image_size: side of the pictures in pixels.
        seed: of its weights.

    Raises:
        InfeasibleSplit: a tensor there is no square map whose side is the picture's, halved.
    """
    halvings = tuple(_halvings(size, sides, image_size) for sides in point.maps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DistilledHead(size, halvings).eval()


def stand_in(config: SplitConfig, point: PartitionPoint, image_size: int) -> DistilledHead | None:
    """The untrained distilled head of a configuration; None where it has the network's own. Raises InfeasibleSplit."""
    return None if config.head == "own" else distilled_head(config.head, point, image_size)


def _halvings(size: str, sides: tuple[int, ...], image_size: int) -> int:
    if len(sides) == 2 and sides[0] == sides[1]:
        count = round(math.log2(image_size / sides[0]))
        # A convolution of stride 2 rounds up where a side is odd.
        if count >= 1 and math.ceil(image_size / 2**count) == sides[0]:
            return count
    found = "x".join(map(str, sides)) if sides else "no map at all"
    raise InfeasibleSplit(
        f"a {size} head halves pictures of {image_size} pixels a side; this point has {found}, which that never makes"
    )


def _stage(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
