"""Hypervolume of fronts of accuracy against latency: what a front is worth, as one number.

The area, in accuracy times milliseconds, between a front and a corner that nobody wants to be beyond: the lowest
accuracy and the highest latency worth having. With two objectives a front is a staircase, so all of this is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr


@dataclass(frozen=True, kw_only=True)
class Corner:
    """The worst that is worth having: ``accuracy`` in 0..1, ``latency_ms``."""

    accuracy: float
    latency_ms: float


class Staircase:
    """The front of some results as a function: the best accuracy that is to be had within a latency.

    Args:
        results: (accuracy, latency in ms) of feasible results; beyond the corner they count as nothing.
        corner: of the area.
    """

    def __init__(self, results: Iterable[tuple[float, float]], corner: Corner) -> None:
        self._corner = corner
        steps: list[tuple[float, float]] = []
        for accuracy, latency_ms in sorted(results, key=lambda each: (each[1], -each[0])):
            if latency_ms < corner.latency_ms and accuracy > max(corner.accuracy, steps[-1][0] if steps else 0.0):
                steps.append((accuracy, latency_ms))
        self._levels = np.array([corner.accuracy, *(accuracy for accuracy, _ in steps)])
        self._starts_ms = np.array([0.0, *(latency_ms for _, latency_ms in steps)])
        self._ends_ms = np.append(self._starts_ms[1:], corner.latency_ms)

    @property
    def hypervolume(self) -> float:
        """The area in accuracy times milliseconds."""
        return float(np.sum((self._levels - self._corner.accuracy) * (self._ends_ms - self._starts_ms)))

    def level(self, latency_ms: float) -> float:
        """The best accuracy within a latency; the corner's where there is none."""
        return float(self._levels[np.searchsorted(self._starts_ms, latency_ms, side="right") - 1])

    def expected_growth(self, mean: np.ndarray, deviation: np.ndarray, latency_ms: np.ndarray) -> np.ndarray:
        """How much hypervolume results are expected to add, each for itself, whose latency is known.

        Over each step of the staircase that a result reaches, it adds what its accuracy exceeds the step by; of a
        normally distributed accuracy that is the expected improvement (Mockus 1978), so their sum is exact.

        Args:
            mean, deviation, latency_ms: of the results, (N,); accuracies are normal, a deviation of 0 is certain.

        Returns:
            (N,) in accuracy times milliseconds.
        """
        widths = np.clip(self._ends_ms - np.maximum(self._starts_ms, latency_ms[:, None]), 0.0, None)
        excess = mean[:, None] - self._levels
        spread = np.maximum(deviation, 1e-12)[:, None]
        ratio = excess / spread
        improvement = excess * ndtr(ratio) + spread * np.exp(-0.5 * ratio**2) / np.sqrt(2 * np.pi)
        return np.sum(widths * improvement, axis=1)


class GrowingFront:
    """A front that results come to one by one.

    Attributes:
        results: those that no other one beats, (accuracy, latency in ms).
        hypervolumes: after each result.
    """

    def __init__(self, corner: Corner) -> None:
        self.corner = corner
        self.results: list[tuple[float, float]] = []
        self.hypervolumes: list[float] = []

    def add(self, result: tuple[float, float] | None) -> None:
        """Take one more; None adds nothing."""
        now = self.hypervolumes[-1] if self.hypervolumes else 0.0
        if result is not None and not any(_covers(other, result) for other in self.results):
            self.results = [other for other in self.results if not _covers(result, other)] + [result]
            now = Staircase(self.results, self.corner).hypervolume
        self.hypervolumes.append(now)


def _covers(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] <= other[1]
