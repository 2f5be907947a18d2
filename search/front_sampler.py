"""``FrontSampler``: latency is known before anything is trained, so only accuracy has to be guessed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from evaluators.result import Price
from search.accuracy_model import AccuracyModel, Seen
from search.front import Point
from search.knowledge import AskPrice, Knowledge
from search.spec import Constraints
from search.split_sampler import SplitSampler
from spaces.config import SplitConfig
from spaces.space import SearchSpace

_STRENGTHS = 4  # of a continuous TCL, evenly on its scale
_NEARLY = 0.9  # of the best promise, before there is a model
_PLANNED = 50  # a plan is made for one trial in so many, at least one
_TWIN_COST = 0.2  # of a training, for a configuration that differs from a trained one in its coder alone
_BELIEVED_ERROR = 0.01  # in accuracy, of a running trial
_MEMBER_COST = 0.05  # of a training for a whole cut, for one more configuration that it answers for


class FrontSampler(SplitSampler):
    """Takes the configuration that is expected to add most to the front's hypervolume, for what it costs.

    Every configuration of the space is priced: its latency is known but for what a lossless coder makes of the
    payloads, which is taken from what was seen. A Gaussian process models accuracy from all trials. With latency
    certain and accuracy normal, the expected growth of the hypervolume is exact
    (:meth:`~search.hypervolume.Staircase.expected_growth`). Trials that are running count as if they had come out as
    expected, so that several workers do not all take the same.

    Growth is taken per operation of the training that it costs (expected improvement per second: Snoek, Larochelle and
    Adams, 2012), which is counted and not timed, so that equal seeds search equally.

    The model is asked from the first trial on. Until there are trials enough to fit it to, one of them not hopeless,
    only configurations without a regularizer and a lossless coder are taken, all trainings count as equally long, and
    of those that promise nearly the same the seed takes one.

    Args:
        space: what is searched; a continuous TCL strength on a grid.
        seed, shift: see :func:`~search.samplers.make_sampler`.
        ask_price: what a configuration takes.
        limits: the study's constraints.
        once_per_cut: whether one training answers for all AE ratios and bit-widths of a cut, so that the next
            configuration of a cut costs little.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        shift: int,
        ask_price: AskPrice,
        limits: Constraints,
        once_per_cut: bool = False,
    ) -> None:
        super().__init__(RandomSampler(seed=seed + shift), space, seed + shift)
        self.knowledge = Knowledge(space, ask_price, limits, self.of_trial)
        self._model = AccuracyModel(seed, self.knowledge.features.trend, cuts=len(space.partitions))
        self._seed = seed + shift
        self._candidates: _Candidates | None = None
        self._plan: list[int] = []
        self._planned_at = 0
        self._once_per_cut = once_per_cut

    def learn_from(self, points: Sequence[Point]) -> None:
        """Begin with the accuracies of another study's points."""
        self.knowledge.learn_from(points)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of the configuration that promises most; at random when all have had their trial."""
        knowledge = self.knowledge
        knowledge.update(study)
        taken = self.taken(study, trial)
        if self._candidates is None:
            self._candidates = _Candidates(self._space, self.distributions, self.config_of, knowledge)
        candidates, known = self._candidates, set(taken)
        every = max(1, len(taken) // _PLANNED)
        fresh = [number for number in self._plan if candidates.configs[number] not in known]
        if not fresh or len(taken) >= self._planned_at + every:
            fresh = self._best(study, known, every)
            self._planned_at = len(taken)
        if not fresh:
            return super().sample_relative(study, trial, search_space)
        self._plan = fresh[1:]
        return candidates.params[fresh[0]]

    def _best(self, study: optuna.Study, known: set[SplitConfig], how_many: int) -> list[int]:
        """The next configurations, by number, as if each came out as expected before the next is chosen."""
        knowledge, candidates = self.knowledge, self._candidates
        assert candidates is not None
        is_young = self._model.is_young(knowledge.seen, knowledge.floor)
        open_ones = np.array([n for n, config in enumerate(candidates.configs) if config not in known], int)
        if is_young and candidates.plain[open_ones].any():
            open_ones = open_ones[candidates.plain[open_ones]]
        if not len(open_ones):
            return []
        latency_ms = candidates.latencies_ms(open_ones, knowledge)
        running = [self.of_trial(each) for each in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        pending = [config for config in running if config is not None and knowledge.price(config) is not None]
        believed = self._believed(pending)
        assumed = [
            (each.accuracy, knowledge.expected_ms(config) or 0.0)
            for each, config in zip(believed, pending, strict=True)
        ]
        mean, deviation = self._model.predict(
            knowledge.seen, candidates.features[open_ones], knowledge.floor, knowledge.top, believed
        )
        # As long as nothing is known the cheapest would be tried first, which say little about the others.
        cost = np.ones(len(open_ones)) if is_young else candidates.training_macs[open_ones]
        trained = {result.config.training_key: result.accuracy for result in knowledge.results}
        cuts = {_cut_of(result.config) for result in knowledge.results} if self._once_per_cut else set()
        for place, number in enumerate(open_ones):
            accuracy = trained.get(candidates.configs[number].training_key)
            share = _MEMBER_COST if _cut_of(candidates.configs[number]) in cuts else 1.0
            if accuracy is not None:
                mean[place], deviation[place], share = accuracy, 0.0, min(share, _TWIN_COST)
            cost[place] *= share
        chosen: list[int] = []
        for _ in range(min(how_many, len(open_ones))):
            worth = knowledge.front(assumed).expected_growth(mean, deviation, latency_ms) / cost
            worth[np.isin(open_ones, chosen)] = -1.0  # not twice
            # Where nothing promises anything, the first would be a neighbour of the last, and as hopeless.
            by_lot = is_young or worth.max() <= 0
            best = self._one_of_the_best(worth, len(known)) if by_lot else int(np.argmax(worth))
            chosen.append(int(open_ones[best]))
            assumed.append((float(mean[best]), float(latency_ms[best])))
        return chosen

    def _one_of_the_best(self, worth: np.ndarray, trials: int) -> int:
        """One of those that promise nearly as much as the best, by the seed."""
        near = np.flatnonzero(worth >= _NEARLY * worth.max())
        return int(np.random.default_rng([self._seed, trials]).choice(near))

    def _believed(self, pending: Sequence[SplitConfig]) -> list[Seen]:
        """Of running trials, as if they had come out as the model expects ("kriging believer")."""
        if not pending:
            return []
        features = np.array([self.knowledge.features_of(config) for config in pending])
        mean, _ = self._model.predict(self.knowledge.seen, features, self.knowledge.floor, self.knowledge.top)
        return [
            Seen(features=each, accuracy=float(accuracy), error=_BELIEVED_ERROR)
            for each, accuracy in zip(features, mean, strict=True)
        ]


def _cut_of(config: SplitConfig) -> tuple[object, ...]:
    """What the configurations share that one training answers for."""
    return (config.partition, config.head, config.stride, config.tcl, config.rate)


def _is_plain(config: SplitConfig) -> bool:
    return config.lossless == "packed" and not config.tcl and not config.rate


class _Candidates:
    """The configurations of a space that can run and keep the limits that are known before, as arrays."""

    def __init__(
        self, space: SearchSpace, distributions: dict[str, BaseDistribution], config_of: Any, knowledge: Knowledge
    ) -> None:
        self.params: list[dict[str, Any]] = []
        self.configs: list[SplitConfig] = []
        features, prices, known = [], list[Price](), set[SplitConfig]()
        limits = knowledge.limits
        for params in parameter_grid(distributions):
            config = config_of(params)
            price = knowledge.price(config)
            if config in known or price is None:
                continue
            known.add(config)
            too_large = price.device_model_mb > (limits.max_device_model_mb or np.inf)
            if too_large or price.least_ms > (limits.max_latency_ms or np.inf):
                continue
            self.params.append(params)
            self.configs.append(config)
            prices.append(price)
            features.append(knowledge.features.of(config, price.payload_bytes))
        self.features = np.array(features)
        self.plain = np.array([_is_plain(config) for config in self.configs], bool)
        self._packed_ms = np.array([price.latency_ms() for price in prices])
        self._busy_ms = np.array([price.busy_ms for price in prices])
        self._packed_bytes = np.array([price.payload_bytes for price in prices])
        macs = np.array([price.training_macs for price in prices])
        self.training_macs = macs if (macs > 0).all() else np.ones(len(prices))
        # Of each kind of payloads that a lossless coder is known for, one configuration stands for all.
        kinds = {(config.lossless, config.bits): config for config in self.configs}
        self._kinds, place = list(kinds.values()), {kind: number for number, kind in enumerate(kinds)}
        self._kind = np.array([place[config.lossless, config.bits] for config in self.configs], int)

    def latencies_ms(self, numbers: np.ndarray, knowledge: Knowledge) -> np.ndarray:
        """Expected latencies of some of them; endless where a payload limit would be broken."""
        coding = np.array([knowledge.coding(config) for config in self._kinds]).reshape(-1, 2)[self._kind[numbers]]
        share, coding_ms = coding[:, 0], coding[:, 1]
        latencies = self._packed_ms[numbers] + coding_ms - (1.0 - share) * self._busy_ms[numbers]
        most_bytes = knowledge.limits.max_payload_bytes or np.inf
        return np.where(share * self._packed_bytes[numbers] > most_bytes, np.inf, latencies)


def parameter_grid(distributions: dict[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """All parameters of a space, a continuous strength at a few values."""
    values = []
    for distribution in distributions.values():
        if isinstance(distribution, CategoricalDistribution):
            values.append(list(distribution.choices))
            continue
        assert isinstance(distribution, optuna.distributions.FloatDistribution)
        spaced = np.geomspace if distribution.log else np.linspace
        values.append([float(value) for value in spaced(distribution.low, distribution.high, _STRENGTHS)])
        values[-1][0], values[-1][-1] = distribution.low, distribution.high  # exactly
    for chosen in itertools.product(*values):
        yield dict(zip(distributions, chosen, strict=True))
