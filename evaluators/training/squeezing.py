"""What a training step sends through a bottleneck: once, or once for each member of a nested one that it takes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from evaluators.compression.bottleneck import Bottleneck, Tensors
from evaluators.compression.nested import NestedBottleneck
from evaluators.settings import FinetuneSettings
from evaluators.training.regularizer import Pull, Regularizer, Squeezed
from spaces.config import SplitConfig


class Squeezing(Protocol):
    """A bottleneck in training, with the regularizers of its activations."""

    config: SplitConfig

    def each(self, maps: Tensors, step: int) -> list[Squeezed]:
        """All that a step learns from.

        Args:
            maps: what the head returns, (B, ...) for each tensor.
            step: of reconstruction and fine-tuning together, from 0.
        """
        ...

    def row(self, clustering: float, settled: float) -> dict[str, float]:
        """What a row of the training's history says of the activations."""
        ...


def squeezing_of(
    bottleneck: Bottleneck | NestedBottleneck,
    config: SplitConfig,
    settings: FinetuneSettings,
    total_steps: int,
    seed: int,
) -> Squeezing:
    """Of a bottleneck in training.

    Args:
        bottleneck: where it is.
        config: strengths of the regularizers, and the bit-width of a bottleneck that is not nested.
        settings, total_steps: see :class:`Regularizer`.
        seed: of a nested one's random members.

    Raises:
        InfeasibleSplit: a rate penalty for more bits than context models are made for.
    """
    if isinstance(bottleneck, NestedBottleneck):
        return _Members(bottleneck, config, settings, total_steps, seed)
    return _Alone(bottleneck, config, settings, total_steps)


def mean_pull(squeezed: Sequence[Squeezed]) -> Pull:
    """Over members."""
    loss, clustering, settled = (
        torch.stack([getattr(pull, name) for _, pull in squeezed]).mean() for name in ("loss", "clustering", "settled")
    )
    return Pull(loss=loss, clustering=clustering, settled=settled)


class _Alone:
    def __init__(
        self, bottleneck: Bottleneck, config: SplitConfig, settings: FinetuneSettings, total_steps: int
    ) -> None:
        self.config = config
        self._bottleneck, self._regularizer = bottleneck, Regularizer(config, settings, total_steps)

    def each(self, maps: Tensors, step: int) -> list[Squeezed]:
        return [self._regularizer.squeeze(self._bottleneck, maps, step)]

    def row(self, clustering: float, settled: float) -> dict[str, float]:
        return self._regularizer.row(clustering, settled)


class _Members:
    """The widest, the narrowest and one at random (the sandwich rule: Yu and Huang, ICCV 2019, arXiv 1903.05134)."""

    def __init__(
        self,
        bottleneck: NestedBottleneck,
        config: SplitConfig,
        settings: FinetuneSettings,
        total_steps: int,
        seed: int,
    ) -> None:
        self.config = config
        self._bottleneck, self._random = bottleneck, random.Random(seed)
        self._regularizers = {
            (ratio, bits): Regularizer(replace(config, ae_ratio=ratio, bits=bits), settings, total_steps)
            for ratio, bits in bottleneck.members
        }

    def each(self, maps: Tensors, step: int) -> list[Squeezed]:
        members = self._bottleneck.members
        taken = sorted({members[0], members[-1], self._random.choice(members)})
        return [self._bottleneck.call(member, self._regularizers[member].squeeze, maps, step) for member in taken]

    def row(self, clustering: float, settled: float) -> dict[str, float]:
        return {"clustering_loss": clustering, "settled": settled}
