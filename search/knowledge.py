"""What the trials of a study have shown so far, as samplers and pruning use it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from evaluators.result import Price
from search.accuracy_model import Features, Seen
from search.front import Point, corner_of
from search.hypervolume import Corner, GrowingFront, Staircase
from search.points import EVALUATION, baseline_points, finished_trials
from search.spec import Constraints
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.space import SearchSpace

RUNG_ACCURACIES = "rungs"  # attribute of a trial: accuracy by name of the rung
RUNG_ERRORS = "rung_errors"  # attribute of a trial: standard deviation of each of these
ACCURACY_ERROR = "accuracy_error"  # attribute of a trial: standard deviation of its accuracy
_USUAL_ERROR = 0.01
_LEAST_GAINS = 6  # trials, before a rung's accuracies promise anything
_MOST_SCATTER = 0.03  # in accuracy, of what is gained after a rung; beyond that it says little
_DOUBT_OF_OTHERS = 0.02  # in accuracy, of another study's results
_FLOOR_BELOW_CORNER = 0.05  # in accuracy; how far below what is worth having it matters how bad a result is

AskPrice = Callable[[SplitConfig], Price]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trial that came to its end."""

    trial: int
    config: SplitConfig
    accuracy: float
    latency_ms: float
    feasible: bool
    payload_bytes: float
    coding_ms: float


class Knowledge:
    """Reads each finished trial once.

    Args:
        space: what is searched.
        ask_price: what a configuration takes.
        limits: the study's constraints.
        config_of: the configuration of a trial.
    """

    def __init__(
        self,
        space: SearchSpace,
        ask_price: AskPrice,
        limits: Constraints,
        config_of: Callable[[FrozenTrial], SplitConfig | None],
    ) -> None:
        self.features = Features(space)
        self.limits = limits
        self._ask_price, self._config_of = ask_price, config_of
        self._prices: dict[SplitConfig, Price | None] = {}
        self._front: GrowingFront | None = None
        self._best_baseline = 1.0
        self._read: set[int] = set()
        self.seen: list[Seen] = []
        self.results: list[Result] = []
        self._gains: dict[str, list[float]] = {}  # by rung: in accuracy, until the end of training

    def update(self, study: optuna.Study) -> None:
        """Read what ended since the last call."""
        if self._front is None:
            baselines = baseline_points(study)
            self._front = GrowingFront(corner_of(baselines, self.limits))
            self._best_baseline = max((each.accuracy for each in baselines), default=1.0)
        for trial in finished_trials(study):
            if trial.number not in self._read:
                self._read.add(trial.number)
                result = self._take(trial)
                self._front.add((result.accuracy, result.latency_ms) if result and result.feasible else None)

    def learn_from(self, points: Sequence[Point]) -> None:
        """Take the accuracies of another study's points, with a doubt, as they may be of another budget."""
        known = set(self.features.partitions)
        for point in points:
            config = point.evaluation.config
            if config is None or config.partition not in known or (features := self.features_of(config)) is None:
                continue
            error = math.hypot(point.evaluation.accuracy_error or _USUAL_ERROR, _DOUBT_OF_OTHERS)
            self.seen.append(Seen(features=features, accuracy=point.accuracy, error=error))

    def promise(self, rung: str, accuracy: float, error: float = 0.0) -> tuple[float, float] | None:
        """What an accuracy at a rung lets hope for after all of the training: mean and standard deviation.

        By what earlier trials gained from there on; None before there are enough of them. The gains scatter by the
        rung's own error too, but a few of them may agree by chance: no promise is surer than ``error``.
        """
        gains = self._gains.get(rung, [])
        if len(gains) < _LEAST_GAINS:
            return None
        return accuracy + statistics.fmean(gains), max(statistics.stdev(gains), error)

    def tells(self, rung: str) -> bool:
        """Whether a rung is worth scoring: it is not known yet to say little of what comes out in the end."""
        hope = self.promise(rung, 0.0)
        return hope is None or hope[1] <= _MOST_SCATTER

    def price(self, config: SplitConfig) -> Price | None:
        """What a configuration takes; None for one that cannot run."""
        plain = SplitConfig(
            partition=config.partition,
            ae_ratio=config.ae_ratio,
            bits=config.bits,
            stride=config.stride,
            head=config.head,
        )
        if plain not in self._prices:
            try:
                self._prices[plain] = self._ask_price(plain)
            except InfeasibleSplit:
                self._prices[plain] = None
        return self._prices[plain]

    @property
    def corner(self) -> Corner:
        """Of the hypervolume."""
        return self._grown.corner

    @property
    def hypervolumes(self) -> list[float]:
        """Of the front, after each trial that ended."""
        return self._grown.hypervolumes

    @property
    def _grown(self) -> GrowingFront:
        assert self._front is not None, "update comes first"
        return self._front

    @property
    def floor(self) -> float:
        """Accuracies below this are all the same."""
        return self.corner.accuracy - _FLOOR_BELOW_CORNER

    @property
    def top(self) -> float:
        """The best accuracy that is known, baselines' included."""
        return max([self._best_baseline, *(each.accuracy for each in self.seen)])

    def front(self, more: Sequence[tuple[float, float]] = ()) -> Staircase:
        """Of the feasible results; ``more`` are added as if they had been found."""
        return Staircase([*self._grown.results, *more], self.corner)

    def features_of(self, config: SplitConfig) -> np.ndarray | None:
        """Of a configuration that can run."""
        price = self.price(config)
        return None if price is None else self.features.of(config, price.payload_bytes)

    def coding(self, config: SplitConfig) -> tuple[float, float]:
        """What a lossless coder makes of a configuration's payloads: share that is left, and ms for both ways.

        The mean of what was seen of this coder at this bit-width, else at any; before that nothing is gained or lost.
        """
        if config.lossless == "packed":
            return 1.0, 0.0
        same = [result for result in self.results if result.config.lossless == config.lossless]
        same = [result for result in same if result.config.bits == config.bits] or same
        shares = [
            result.payload_bytes / price.payload_bytes
            for result in same
            if (price := self.price(result.config)) is not None
        ]
        if not shares:
            return 1.0, 0.0
        return min(1.0, statistics.fmean(shares)), statistics.fmean(result.coding_ms for result in same)

    def trained_in(self, config: SplitConfig) -> int | None:
        """The trial that had the same training with another lossless coder, if one had."""
        same = (result.trial for result in self.results if result.config.training_key == config.training_key)
        return next(same, None)

    def expected_ms(self, config: SplitConfig) -> float | None:
        """Its latency: certain but for a lossless coder's share. None for one that cannot run."""
        price = self.price(config)
        if price is None:
            return None
        share, coding_ms = self.coding(config)
        return price.latency_ms(share * price.payload_bytes, coding_ms)

    def _take(self, trial: FrozenTrial) -> Result | None:
        config = self._config_of(trial)
        features = None if config is None else self.features_of(config)
        if config is None or features is None:
            return None
        rungs, errors = (trial.user_attrs.get(name, {}) for name in (RUNG_ACCURACIES, RUNG_ERRORS))
        if EVALUATION not in trial.user_attrs:
            for name, accuracy in list(rungs.items())[-1:]:
                if (hope := self.promise(name, accuracy, errors.get(name, 0.0))) is not None:
                    self.seen.append(Seen(features=features, accuracy=hope[0], error=max(hope[1], _USUAL_ERROR)))
            return None
        accuracy, latency_ms = trial.values
        error = trial.user_attrs.get(ACCURACY_ERROR) or _USUAL_ERROR
        self.seen.append(Seen(features=features, accuracy=accuracy, error=error))
        for name, before in rungs.items():
            self._gains.setdefault(name, []).append(accuracy - before)
        coding_ms = sum(trial.user_attrs.get(part, 0.0) for part in ("compress_ms", "decompress_ms"))
        result = Result(
            trial=trial.number,
            config=config,
            accuracy=accuracy,
            latency_ms=latency_ms,
            feasible=all(value <= 0 for value in trial.constraints.values()),
            payload_bytes=trial.user_attrs["payload_bytes"],
            coding_ms=coding_ms,
        )
        self.results.append(result)
        return result
