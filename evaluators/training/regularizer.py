"""What training asks of a bottleneck's activations besides the task: to lie on levels, and to cost few bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evaluators.compression.bottleneck import Bottleneck, Tensors
from evaluators.compression.tcl import LevelGrid, clustering_loss, ramp, settled_share
from evaluators.settings import FinetuneSettings
from evaluators.training.rate import RatePenalty
from spaces.config import SplitConfig


@dataclass(frozen=True, kw_only=True)
class Pull:
    """How the activations of one batch are pulled.

    Attributes:
        loss: to be added to the task's, a scalar.
        clustering: TCL's own term without its strength, a scalar.
        settled: share of activations within a quarter of a step of a level, a scalar.
    """

    loss: torch.Tensor
    clustering: torch.Tensor
    settled: torch.Tensor


Squeezed = tuple[Tensors, Pull]
"""Features as decoders rebuild them from a batch, and the pull on its activations."""


class Regularizer:
    """TCL, the rate penalty, and what the decoder gets to see while training: activations, or their levels.

    Args:
        config: bit-width and strengths, of TCL and of the rate penalty.
        settings: ``quantization`` and ``ramp``.
        total_steps: of reconstruction and fine-tuning together.

    Raises:
        InfeasibleSplit: a rate penalty for more bits than context models are made for.
    """

    def __init__(self, config: SplitConfig, settings: FinetuneSettings, total_steps: int) -> None:
        self.config, self.grid = config, LevelGrid(config.bits)
        self._settings, self._total_steps = settings, total_steps
        self._rate = RatePenalty(self.grid) if config.rate > 0 else None

    def squeeze(self, bottleneck: Bottleneck, maps: Tensors, step: int) -> Squeezed:
        """Features as the decoder rebuilds them from a batch of a head's maps, and the pull on its activations.

        Args:
            bottleneck: in training.
            maps: what the head returns, (B, ...) for each tensor.
            step: of reconstruction and fine-tuning together, from 0.
        """
        activations, settling = bottleneck.activations(*maps)
        rounded = self._settings.quantization == "straight-through"
        rebuilt: Tensors = bottleneck.decoder(*(self.grid.snap(z) if rounded else z for z in activations))
        return rebuilt, self._pull(activations, settling, step)

    def row(self, clustering: float, settled: float) -> dict[str, float]:
        """What a row of a candidate's history says of the activations."""
        error = clustering * self.grid.step**2
        return {"clustering_loss": clustering, "settled": settled, "quantization_error": error}

    def _pull(self, activations: Tensors, settling: Tensors, step: int) -> Pull:
        joined = torch.cat([tensor.flatten(1) for tensor in settling], 1)
        clustering = clustering_loss(joined, self.grid)
        loss = torch.zeros((), device=joined.device)
        if self.config.tcl > 0:
            progress = step / max(self._total_steps - 1, 1)
            loss = self.config.tcl * ramp(progress, self._settings.ramp) * clustering
        if self._rate is not None:
            loss = loss + self.config.rate * self._rate(activations)
        return Pull(loss=loss, clustering=clustering, settled=settled_share(joined, self.grid))
