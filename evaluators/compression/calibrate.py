"""Quantization levels from training data, after training."""

from __future__ import annotations

import torch

from evaluators.edge.wire import TensorLevels

_ROUNDS = 25
_SMALLEST_SPAN = 1e-3


@torch.no_grad()
def calibrate(activations: torch.Tensor, bits: int) -> TensorLevels:
    """Evenly spaced levels for each channel that minimise the squared quantization error on a sample.

    Alternates between assigning each value to its nearest level and fitting, in closed form, the line
    ``low + step * k`` through the assigned values; each round can only lower the error.

    Args:
        activations: (N, K, H, W) or (N, K).
        bits: bit-width, 1 to 8.
    """
    rows = activations.movedim(1, -1).reshape(-1, activations.shape[1]).double()  # (M, K)
    top = float(2**bits - 1)
    mean, deviation = rows.mean(0), rows.std(0, unbiased=False)
    # Start from one deviation around the mean for one bit, nearly the whole range for many.
    reach = 1.0 + 0.35 * (bits - 1)
    low = torch.maximum(rows.amin(0), mean - reach * deviation)
    high = torch.minimum(rows.amax(0), mean + reach * deviation)
    low, high = _apart(low, high)
    for _ in range(_ROUNDS):
        step = (high - low) / top
        index = torch.floor((rows - low) / step + 0.5).clamp(0, top)
        centred = index - index.mean(0)
        spread = (centred**2).mean(0)
        slope = (centred * (rows - mean)).mean(0) / spread.clamp_min(1e-12)
        usable = (spread > 1e-9) & (slope > 0)
        step = torch.where(usable, slope, step)
        low = torch.where(usable, mean - slope * index.mean(0), low)
        low, high = _apart(low, low + step * top)
    return TensorLevels(tuple(activations.shape[1:]), low.float().numpy(), high.float().numpy())


def _apart(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep a dead channel's levels distinct, so that quantization stays defined."""
    return low, torch.maximum(high, low + _SMALLEST_SPAN)
