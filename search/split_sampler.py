"""``SplitSampler``: keeps any sampler from repeating itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from spaces.config import SplitConfig
from spaces.space import SearchSpace

_TRIES = 20
_RANDOM_TRIES = 200


class SplitSampler(BaseSampler):
    """Another sampler that tries no configuration twice.

    Scoring is deterministic, so a repeat teaches nothing; plain TPE spent six of 24 trials on repeats. The inner
    sampler is asked again, and after some tries a random configuration is taken. Two sets of parameters are the same
    when they make the same :class:`SplitConfig`: the strength of a TCL that is off does not count.
    """

    def __init__(self, inner: BaseSampler, space: SearchSpace, seed: int) -> None:
        self._inner, self._fallback, self._space = inner, optuna.samplers.RandomSampler(seed=seed), space
        self.distributions = _distributions(space)
        self._configs: dict[int, SplitConfig] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, from the first trial on."""
        return self.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of a configuration that no trial has had; if there is none left, of any."""
        known, params = set(self.taken(study, trial)), dict[str, Any]()
        for attempt in range(_TRIES + _RANDOM_TRIES):
            sampler = self._inner if attempt < _TRIES else self._fallback
            params = self._draw(sampler, study, trial, search_space)
            if self.config_of(params) not in known:
                break
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """For parameters outside the space; there are none."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Passed on."""
        self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Passed on."""
        self._inner.reseed_rng()
        self._fallback.reseed_rng()

    def taken(self, study: optuna.Study, trial: FrozenTrial) -> list[SplitConfig]:
        """The configurations that other trials have."""
        past = [self.of_trial(other) for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        return [config for config in past if config is not None]

    def of_trial(self, trial: FrozenTrial) -> SplitConfig | None:
        """The configuration that a trial takes from the others.

        None for one that failed, and for one of another process that has not got all its parameters yet.
        """
        if trial.number in self._configs:
            return self._configs[trial.number]
        if not _counts(trial) or not self.distributions.keys() <= trial.params.keys():
            return None
        config = self.config_of(trial.params)
        if trial.state.is_finished():
            self._configs[trial.number] = config
        return config

    def config_of(self, params: dict[str, Any]) -> SplitConfig:
        """What parameters make."""
        return self._space.suggest(optuna.trial.FixedTrial(params))

    @staticmethod
    def _draw(
        sampler: BaseSampler, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        own = sampler.infer_relative_search_space(study, trial)
        params = sampler.sample_relative(study, trial, own) if own else {}
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = sampler.sample_independent(study, trial, name, distribution)
        return params


def _counts(trial: FrozenTrial) -> bool:
    """Whether its configuration is taken: it came to an end, is being scored, or waits to be tried again."""
    kept = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
    return trial.state in kept or "measured" in trial.constraints


class _Recorder:
    """Stands in for a trial and writes down what it is asked for."""

    def __init__(self) -> None:
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.distributions[name] = optuna.distributions.CategoricalDistribution(choices)
        return choices[0]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.distributions[name] = optuna.distributions.FloatDistribution(low, high, log=log)
        return low


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    recorder = _Recorder()
    space.suggest(recorder)
    return recorder.distributions
