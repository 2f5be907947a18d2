"""TCL, the time-dependent clustering loss: pulls bottleneck activations onto quantization levels while training.

    L = L_task + strength * ramp(t) * mean(((z - stop_gradient(c(z))) / step)^2)

z are the activations, c(z) their nearest level, step the distance between levels, t the share of training done, the
reconstruction included. The ramp lets the network learn its task first and settle afterwards; by default a cosine,
after the way Nagel et al. (ICML 2022) raise the weight of their oscillation dampening.

Its rival is quantization-aware training: the decoder gets c(z) during training already, and gradients pass through the
rounding as if it were not there (the straight-through estimator: Bengio et al., arXiv 1308.3432).

The loss is named after "TCL: Time-Dependent Clustering Loss for Optimizing Post-Training Feature Map Quantization for
Partitioned DNNs", IEEE Access 13 (2025) 103640-103648, doi 10.1109/ACCESS.2025.3579107; formula and schedule are our
own reading, since we know the paper by its abstract alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from evaluators.edge.wire import TensorLevels
from evaluators.settings import Ramp

RAMPS: dict[Ramp, Callable[[float], float]] = {
    "cosine": lambda progress: (1.0 - math.cos(math.pi * progress)) / 2.0,
    "linear": lambda progress: progress,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class LevelGrid:
    """The ``2**bits`` evenly spaced levels on [-1, 1] that training pulls to.

    They span the whole range of the encoder's tanh, because that is where its values gather by themselves: levels
    further inside would work against it. Since they are where they are from the first step, nothing has to follow the
    activations and freeze. What is sent is these levels or, if that is better, levels calibrated afterwards.
    """

    bits: int

    @property
    def step(self) -> float:
        """Distance between two levels."""
        return 2.0 / (2**self.bits - 1)

    def offsets(self, activations: torch.Tensor) -> torch.Tensor:
        """Distance to the nearest level in steps, signed; gradients flow through the activations alone."""
        in_steps = self.position(activations)
        return in_steps - self._nearest(in_steps)

    def snap(self, activations: torch.Tensor) -> torch.Tensor:
        """The nearest level of each activation, in float32; its gradient is that of the activation itself."""
        nearest = self._nearest(self.position(activations)) * self.step - 1.0
        values = activations.float()
        return values + (nearest - values).detach()

    def symbols(self, activations: torch.Tensor) -> np.ndarray:
        """The number of the nearest level of each activation, uint8."""
        found: np.ndarray = self._nearest(self.position(activations)).to(torch.uint8).cpu().numpy()
        return found

    def levels(self, shape: tuple[int, ...]) -> TensorLevels:
        """These levels for a tensor of ``shape`` (channels first, without the batch dimension), as they are sent."""
        ones = np.ones(shape[0], np.float32)
        return TensorLevels(shape, -ones, ones)

    def position(self, activations: torch.Tensor) -> torch.Tensor:
        """Where activations lie in steps from the lowest level, 0 to ``2**bits - 1``, in float32."""
        return (activations.float() + 1.0) * ((2**self.bits - 1) / 2.0)

    def _nearest(self, in_steps: torch.Tensor) -> torch.Tensor:
        """Rounded as :func:`evaluators.edge.wire.quantize` rounds."""
        return torch.floor(in_steps.detach() + 0.5).clamp(0, 2**self.bits - 1)


def ramp(progress: float, shape: Ramp = "cosine") -> float:
    """Weight of the clustering term after a share ``progress`` in 0..1 of training.

    ``cosine`` and ``linear`` rise from 0 to 1, ``constant`` is 1 throughout.
    """
    return RAMPS[shape](progress)


def clustering_loss(activations: torch.Tensor, grid: LevelGrid) -> torch.Tensor:
    """Mean squared distance to the nearest level, in steps.

    Args:
        activations: within [-1, 1], any shape.
        grid: the levels; they do not move.

    Returns:
        A scalar; 0 when every value is on a level, 1/4 when every value is half-way between two.
    """
    return (grid.offsets(activations) ** 2).mean()


@torch.no_grad()
def settled_share(activations: torch.Tensor, grid: LevelGrid) -> torch.Tensor:
    """Share of activations within a quarter of a step of a level; 1/2 when they are spread evenly."""
    return (grid.offsets(activations).abs() < 0.25).float().mean()
