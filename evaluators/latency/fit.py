"""Latency from counted work: fitted on published latencies of whole networks, with the error of networks left out.

The model is a sum, latency = c1 * work1 + c2 * work2 + ..., with no constant and no negative coefficient, so that the
latency of a head and that of its tail add up to that of the network. The coefficients minimise the squared *relative*
error, since published latencies range over a factor of a hundred and more, and a small network should count as much as
a large one.

How good such a fit is shows only on networks that it has not seen. Left-out errors of the best of several feature sets
are somewhat too good, because that very error chose the set; :func:`nested_errors` repeats the choice without the
network that is predicted and is free of that.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import SpecError
from spaces.work import Work

Features = tuple[str, ...]
_Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LatencyFit:
    """How long one device takes with one runtime, for any network.

    Attributes:
        runtime: and its version, where the source tells.
        threads: it ran with.
        precision: of its arithmetic.
        coefficients: by feature of :meth:`Work.amount`, in milliseconds for each unit.
        networks: number of networks that it was fitted on.
        median_error: of the relative errors of networks left out one after the other, 0.1 for 10 %.
        worst_error: the largest of them.
        family_error: their median where all relatives are left out at once, all ResNets say: what a network of another
            kind must expect.
        source: where the latencies were published.
    """

    runtime: str
    threads: int
    precision: str
    coefficients: Mapping[str, float]
    networks: int
    median_error: float
    worst_error: float
    family_error: float
    source: str

    def __post_init__(self) -> None:
        for feature, value in self.coefficients.items():
            try:
                Work().amount(feature)
            except ValueError as error:
                raise SpecError(f"coefficients.{feature}", value, str(error)) from None
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise SpecError(f"coefficients.{feature}", value, "milliseconds for each unit, from 0, are needed")

    def predict_ms(self, work: Work) -> float:
        """Modelled latency of this work."""
        return predict_ms(self.coefficients, work)

    def terms_ms(self, work: Work) -> dict[str, float]:
        """What each feature adds to the modelled latency."""
        return {feature: value * work.amount(feature) for feature, value in self.coefficients.items()}

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a profile."""
        return {**asdict(self), "coefficients": dict(self.coefficients)}

    @classmethod
    def from_dict(cls, data: Any, key: str) -> LatencyFit:
        """The inverse of :meth:`to_dict`.

        Args:
            data: what a profile says.
            key: where it says so, for messages.

        Raises:
            SpecError: a mapping that cannot be right.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or set(data) != names or not isinstance(data["coefficients"], dict):
            raise SpecError(key, data, f"exactly these keys are needed: {', '.join(sorted(names))}")
        try:
            return cls(**data)
        except SpecError as error:
            raise error.inside(key) from None


def predict_ms(coefficients: Mapping[str, float], work: Work) -> float:
    """Modelled latency of this work by coefficients of :func:`fit`."""
    return sum(value * work.amount(feature) for feature, value in coefficients.items())


def fit(works: Sequence[Work], latencies_ms: Sequence[float], features: Features) -> dict[str, float]:
    """Coefficients in milliseconds for each unit of each feature, by non-negative least squares on relative errors.

    Raises:
        ValueError: not one positive latency for each work, or no work at all.
    """
    _check(works, latencies_ms)
    coefficients = _solve(_matrix(works, features), np.asarray(latencies_ms, dtype=float))
    return dict(zip(features, coefficients.tolist()))


def leave_one_out(
    works: Sequence[Work], latencies_ms: Sequence[float], groups: Sequence[str], features: Features
) -> list[float]:
    """Relative errors, each predicted minus published over published, of fits that never saw the network's group.

    Args:
        works: one for each published latency.
        latencies_ms: the published latencies.
        groups: which network each belongs to, or which family; all rows of a group are left out together.
        features: of the fit.

    Raises:
        ValueError: as :func:`fit`, or fewer than two groups.
    """
    _check(works, latencies_ms, groups)
    matrix, latencies = _matrix(works, features), np.asarray(latencies_ms, dtype=float)
    errors = np.empty(len(latencies))
    for group in set(groups):
        out = np.array([each == group for each in groups])
        errors[out] = matrix[out] @ _solve(matrix[~out], latencies[~out]) / latencies[out] - 1
    return [float(error) for error in errors]


def choose(
    works: Sequence[Work], latencies_ms: Sequence[float], groups: Sequence[str], feature_sets: Sequence[Features]
) -> Features:
    """The feature set with the smallest root mean square of left-out errors.

    Not with the smallest median, which says nothing of the half of the networks that is predicted worse.
    """

    def error(features: Features) -> float:
        return statistics.fmean(each**2 for each in leave_one_out(works, latencies_ms, groups, features))

    return min(feature_sets, key=error)


def nested_errors(
    works: Sequence[Work], latencies_ms: Sequence[float], groups: Sequence[str], feature_sets: Sequence[Features]
) -> list[float]:
    """As :func:`leave_one_out`, with the feature set chosen anew each time, on the other groups alone.

    Raises:
        ValueError: as :func:`fit`, or fewer than three groups.
    """
    _check(works, latencies_ms, groups)
    errors = [0.0] * len(works)
    for group in sorted(set(groups)):
        kept = [index for index, each in enumerate(groups) if each != group]
        others, their_ms = [works[index] for index in kept], [latencies_ms[index] for index in kept]
        features = choose(others, their_ms, [groups[index] for index in kept], feature_sets)
        coefficients = fit(others, their_ms, features)
        for index in set(range(len(works))) - set(kept):
            errors[index] = predict_ms(coefficients, works[index]) / latencies_ms[index] - 1
    return errors


def _check(works: Sequence[Work], latencies_ms: Sequence[float], groups: Sequence[str] | None = None) -> None:
    if not works or len(works) != len(latencies_ms) or min(latencies_ms) <= 0:
        raise ValueError("one positive latency for each work is needed")
    if groups is not None and (len(groups) != len(works) or len(set(groups)) < 2):
        raise ValueError("one group for each work is needed, and at least two different ones")


def _matrix(works: Sequence[Work], features: Features) -> _Matrix:
    return np.array([[work.amount(feature) for feature in features] for work in works], dtype=float)


def _solve(matrix: _Matrix, latencies: _Matrix) -> _Matrix:
    # Here, not above: predicting needs no scipy, and reading a study file should be quick.
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    relative = matrix / latencies[:, None]
    # Columns differ by nine orders of magnitude, MACs against operations.
    scale = relative.max(axis=0)
    scale[scale == 0] = 1.0
    coefficients, _ = nnls(relative / scale, np.ones(len(latencies)))
    return coefficients / scale
