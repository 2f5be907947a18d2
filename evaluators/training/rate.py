"""The rate penalty: training pays for the bits that the context coder would spend on what it sends.

The model that will code the symbols is learned from the symbols of recent batches, again and again, so what is paid
for is what will be sent. The penalty is what the rounded values cost; its gradient is how the costs of the levels
around a value differ, taken straight through the rounding.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from evaluators.compression.bottleneck import Tensors
from evaluators.compression.tcl import LevelGrid
from evaluators.edge import context
from spaces.errors import InfeasibleSplit

_RECENT_IMAGES = 512  # that a model is counted on
_LEAST_IMAGES = 64
_AGAIN_AFTER = 200  # steps


class RatePenalty:
    """Estimated bits a value, under context models of its own that follow the training.

    Args:
        grid: the levels that are sent.

    Raises:
        InfeasibleSplit: context models are not made for so many bits.
    """

    def __init__(self, grid: LevelGrid) -> None:
        if grid.bits > context.MOST_BITS:
            limit = context.MOST_BITS
            raise InfeasibleSplit(f"a rate penalty needs a context model: for 1 to {limit} bits, not for {grid.bits}")
        self._grid = grid
        self._recent: deque[list[np.ndarray]] = deque()
        self._tables: list[np.ndarray] = []
        self._age = 0

    def __call__(self, activations: Tensors) -> torch.Tensor:
        """Mean bits a value of a batch, a scalar; gradients flow through the values.

        Args:
            activations: within [-1, 1], (B, K, ...) for each tensor.
        """
        symbols = [self._grid.symbols(tensor) for tensor in activations]
        self._follow(symbols)
        bits, values = torch.zeros((), device=activations[0].device), 0
        for tensor, own, table in zip(activations, symbols, self._tables, strict=True):
            costs = torch.from_numpy(context.costs(own, table, self._grid.bits)).to(tensor.device)
            bits = bits + self._spent(tensor, torch.from_numpy(own).to(tensor.device), costs).sum()
            values += tensor.numel()
        return bits / values

    def _spent(self, activations: torch.Tensor, symbols: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
        """What each value costs at its level, with the slope of the costs there as its gradient."""
        top = costs.shape[-1] - 1
        level = symbols.long()[..., None]
        before, after = (level - 1).clamp_min(0), (level + 1).clamp_max(top)
        slope = (costs.gather(-1, after) - costs.gather(-1, before)) / (after - before)
        position = self._grid.position(activations)
        return costs.gather(-1, level)[..., 0] + slope[..., 0] * (position - position.detach())

    def _follow(self, symbols: list[np.ndarray]) -> None:
        self._recent.append(symbols)
        while sum(len(each[0]) for each in self._recent) > _RECENT_IMAGES:
            self._recent.popleft()
        enough = sum(len(each[0]) for each in self._recent) >= _LEAST_IMAGES
        if not self._tables or (self._age >= _AGAIN_AFTER and enough):
            joined = [np.concatenate(parts) for parts in zip(*self._recent)]
            self._tables = [context.learn(each, self._grid.bits) for each in joined]
            self._age = 0
        self._age += 1
