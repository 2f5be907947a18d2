"""A model of accuracy over the configurations of a space: what trials say of those to come."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spaces.config import HEADS, SplitConfig

if TYPE_CHECKING:  # scikit-learn takes half a second to import, which only a search needs
    from sklearn.gaussian_process.kernels import Kernel

_REFIT = 1.25  # the kernel is fitted anew when there is by so much more to fit it to
_FITTED_ROWS = 150  # that it is fitted to; this takes longest
_MOST_ROWS = 400  # of what was seen last; a model of more takes longer than it helps
_STRONG_TCL, _STRONG_RATE = 1000.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An accuracy that was found.

    Attributes:
        features: of its configuration, see :class:`Features`.
        error: standard deviation of the accuracy.
    """

    features: np.ndarray
    accuracy: float
    error: float


class Features:
    """Numbers of a configuration that accuracies depend on smoothly.

    Args:
        partitions: the space's points in order.
    """

    def __init__(self, partitions: Sequence[str]) -> None:
        self.partitions = tuple(partitions)
        self._places = {name: number for number, name in enumerate(partitions)}

    def of(self, config: SplitConfig, packed_bytes: float) -> np.ndarray:
        """Place of the cut, and whether it is this one; squeeze; regularizers; head. A unit is a large step of each."""
        place = self._places[config.partition]
        one_hot = np.zeros(len(self._places))
        one_hot[place] = 1.0
        heads = [float(config.head == head) for head in HEADS[1:]]
        numbers = [
            place / max(1, len(self._places) - 1),
            np.log2(packed_bytes) / 4.0,
            np.log2(config.bits) / 3.0,
            np.log2(config.ae_ratio) / 4.0,
            np.log1p(config.tcl) / np.log1p(_STRONG_TCL),
            np.log1p(config.rate) / np.log1p(_STRONG_RATE),
            np.log2(config.stride),
        ]
        return np.array([*numbers, *heads, *(0.5 * one_hot)])


class AccuracyModel:
    """A Gaussian process over configurations. Hopeless accuracies count as no worse than ``floor``, so that
    the model spends itself on what matters.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kernel: Kernel | None = None
        self._fitted_rows = 0

    def predict(self, seen: Sequence[Seen], wanted: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the accuracy after all of the training.

        Args:
            seen: at least two, in order.
            wanted: (N, features) of configurations.
            floor: accuracies below it count as this.

        Returns:
            Two arrays (N,).
        """
        from sklearn.gaussian_process import GaussianProcessRegressor

        rows = list(seen)[-_MOST_ROWS:]
        inputs = np.array([row.features for row in rows])
        targets = np.array([max(row.accuracy, floor) for row in rows])
        middle, scale = targets.mean(), max(targets.std(), 1e-3)
        noise = np.array([max(row.error, 1e-3) / scale for row in rows]) ** 2
        targets = (targets - middle) / scale
        if self._kernel is None or len(seen) >= _REFIT * self._fitted_rows:
            self._kernel, self._fitted_rows = self._fitted(inputs, targets, noise), len(seen)
        process = GaussianProcessRegressor(kernel=self._kernel, alpha=noise, optimizer=None).fit(inputs, targets)
        mean, deviation = process.predict(wanted, return_std=True)
        # What a result would scatter by is no doubt about the accuracy.
        deviation = np.sqrt(np.maximum(deviation**2 - self._kernel.k2.noise_level, 0.0))
        return mean * scale + middle, deviation * scale

    def _fitted(self, inputs: np.ndarray, targets: np.ndarray, noise: np.ndarray) -> Kernel:
        """The kernel that makes some of the rows most likely."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor

        some = np.sort(np.random.default_rng(self._seed).permutation(len(inputs))[:_FITTED_ROWS])
        kernel = _new_kernel(inputs.shape[1])
        process = GaussianProcessRegressor(kernel=kernel, alpha=noise[some], random_state=self._seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a kernel at the edge of its bounds serves as well
            return process.fit(inputs[some], targets[some]).kernel_


def _new_kernel(features: int) -> Kernel:
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = Matern(length_scale=np.ones(features), length_scale_bounds=(0.1, 30.0), nu=2.5)
    return ConstantKernel(1.0, (0.05, 20.0)) * smooth + WhiteKernel(0.01, (1e-5, 0.3))
