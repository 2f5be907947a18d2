"""A model of accuracy over the configurations of a space: what trials say of those to come."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spaces.config import HEADS, SplitConfig
from spaces.space import SearchSpace

if TYPE_CHECKING:  # scikit-learn takes half a second to import, which only a search needs
    from sklearn.gaussian_process.kernels import Kernel

_NUMBERS = 7  # among the features, AE ratio and bit-width first
_FITTED_FROM = 4  # rows; of fewer, a fit makes too much
_TREND = 0.6  # of the way from floor to top lies between a space's strongest squeeze and its gentlest one
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


@dataclass(frozen=True, kw_only=True)
class Trend:
    """What is expected of accuracies before any was seen, linear in the features: -1 is the floor, 1 the top."""

    slope: np.ndarray
    offset: float

    def of(self, features: np.ndarray) -> np.ndarray:
        """Of configurations, features (N, F)."""
        return features @ self.slope + self.offset


class Features:
    """Numbers of a configuration that accuracies depend on smoothly.

    Args:
        space: whose configurations they are of.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.partitions = tuple(space.partitions)
        self._ratios, self._bits = space.ae_ratios, space.bits
        self._places = {name: number for number, name in enumerate(self.partitions)}

    def of(self, config: SplitConfig, packed_bytes: float) -> np.ndarray:
        """AE ratio and bit-width; other numbers of the squeeze; place of the cut; head; and last, for each cut, whether
        it is this one. A unit is a large step of each.
        """
        place = self._places[config.partition]
        one_hot = np.zeros(len(self._places))
        one_hot[place] = 1.0
        heads = [float(config.head == head) for head in HEADS[1:]]
        numbers = [
            _ratio_feature(config.ae_ratio),
            _bits_feature(config.bits),
            np.log2(packed_bytes) / 4.0,
            np.log2(config.stride),
            np.log1p(config.tcl) / np.log1p(_STRONG_TCL),
            np.log1p(config.rate) / np.log1p(_STRONG_RATE),
            place / max(1, len(self._places) - 1),
        ]
        return np.array([*numbers, *heads, *(0.5 * one_hot)])

    @property
    def trend(self) -> Trend:
        """The gentler the squeeze, the better: half of it by AE ratio, half by bit-width, over what the space has."""
        slope, offset = np.zeros(_NUMBERS + len(HEADS[1:]) + len(self._places)), 0.0
        ends = (
            (_ratio_feature(min(self._ratios)), _ratio_feature(max(self._ratios))),
            (_bits_feature(min(self._bits)), _bits_feature(max(self._bits))),
        )
        for column, (least, most) in enumerate(ends):
            if most > least:
                slope[column] = _TREND / (most - least)
                offset -= slope[column] * (least + most) / 2
        return Trend(slope=slope, offset=offset)


def _ratio_feature(ae_ratio: float) -> float:
    return float(np.log2(ae_ratio)) / 4.0


def _bits_feature(bits: int) -> float:
    return float(np.log2(bits)) / 3.0


class AccuracyModel:
    """A Gaussian process over configurations. Hopeless accuracies count as no worse than ``floor``, so that
    the model spends itself on what matters.

    Before there is much to fit it to, it expects a trend between the floor and the best that is known, and is as
    unsure as that range is wide.

    Args:
        seed: of the fit.
        trend: what is expected then.
        cuts: how many of the features, the last ones, say which cut it is. They share a length scale: one for each
            would be fitted to a trial or two.
    """

    def __init__(self, seed: int, trend: Trend, cuts: int = 0) -> None:
        self._seed, self._trend, self._cuts = seed, trend, cuts
        self._kernel: Kernel | None = None
        self._fitted_rows = 0

    @staticmethod
    def is_young(seen: Sequence[Seen], floor: float) -> bool:
        """Whether there is too little to fit anything to: few results, or none that is better than hopeless, which are
        all the same.
        """
        return len(seen) < _FITTED_FROM or all(row.accuracy <= floor for row in seen)

    def predict(
        self, seen: Sequence[Seen], wanted: np.ndarray, floor: float, top: float, believed: Sequence[Seen] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the accuracy after all of the training.

        Args:
            seen: in order; none says nothing.
            wanted: (N, features) of configurations.
            floor: accuracies below it count as this.
            top: the best accuracy that is known.
            believed: more that counts as seen, but that nothing is fitted to.

        Returns:
            Two arrays (N,).
        """
        from sklearn.gaussian_process import GaussianProcessRegressor

        known = list(seen)[-_MOST_ROWS:]
        rows = [*known, *believed]
        inputs = np.array([row.features for row in rows]).reshape(len(rows), wanted.shape[1])
        targets = np.array([max(row.accuracy, floor) for row in rows])
        is_young = self.is_young(seen, floor)
        if is_young:
            scale = max((top - floor) / 2, 1e-3)
            expected, expected_of_rows = ((floor + top) / 2 + scale * self._trend.of(each) for each in (wanted, inputs))
        else:
            scale = max(targets[: len(known)].std(), 1e-3)
            expected = expected_of_rows = targets[: len(known)].mean()
        noise = np.array([max(row.error, 1e-3) / scale for row in rows]) ** 2
        targets = (targets - expected_of_rows) / scale
        known_rows = (each[: len(known)] for each in (inputs, targets, noise))
        kernel = _new_kernel(wanted.shape[1], self._cuts) if is_young else self._kernel_for(seen, *known_rows)
        process = GaussianProcessRegressor(kernel=kernel, alpha=noise if rows else 1e-10, optimizer=None)
        if rows:
            process.fit(inputs, targets)
        mean, deviation = (np.atleast_1d(each) for each in process.predict(wanted, return_std=True))
        # What a result would scatter by is no doubt about the accuracy.
        deviation = np.sqrt(np.maximum(deviation**2 - kernel.k2.noise_level, 0.0))
        return mean * scale + expected, deviation * scale

    def _kernel_for(self, seen: Sequence[Seen], inputs: np.ndarray, targets: np.ndarray, noise: np.ndarray) -> Kernel:
        if self._kernel is None or len(seen) >= _REFIT * self._fitted_rows:
            self._kernel, self._fitted_rows = self._fitted(inputs, targets, noise), len(seen)
        return self._kernel

    def _fitted(self, inputs: np.ndarray, targets: np.ndarray, noise: np.ndarray) -> Kernel:
        """The kernel that makes some of the rows most likely."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor

        some = np.sort(np.random.default_rng(self._seed).permutation(len(inputs))[:_FITTED_ROWS])
        kernel = _new_kernel(inputs.shape[1], self._cuts)
        process = GaussianProcessRegressor(kernel=kernel, alpha=noise[some], random_state=self._seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a kernel at the edge of its bounds serves as well
            return process.fit(inputs[some], targets[some]).kernel_


def _new_kernel(features: int, cuts: int) -> Kernel:
    from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel

    from search.tied_kernel import TiedMatern

    smooth = TiedMatern(np.ones(features - cuts + min(cuts, 1)), tied=cuts)
    return ConstantKernel(1.0, (0.05, 20.0)) * smooth + WhiteKernel(0.01, (1e-5, 0.3))
