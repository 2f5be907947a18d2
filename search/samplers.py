"""Samplers by name, and the wrapper that keeps them from asking for the same configuration twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from spaces.config import SplitConfig
from spaces.space import SearchSpace

# Multivariate: ratio, bit-width and partition act together, so TPE should look at them together.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: _tpe(seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}

_TRIES = 20
_RANDOM_TRIES = 200


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def make_sampler(name: str, seed: int, space: SearchSpace) -> BaseSampler:
    """The named sampler, never repeating itself. All of them take note of violated constraints."""
    return Unrepeated(SAMPLERS[name](seed), optuna.samplers.RandomSampler(seed=seed), space)


class Unrepeated(BaseSampler):
    """Another sampler, asked again when it proposes a configuration that was tried before.

    Scoring is deterministic, so a repeated trial teaches nothing; left alone, TPE spends a third of a small study on
    repeats. After some tries a random new configuration is taken instead.

    Two sets of parameters are the same when they make the same :class:`SplitConfig`: the strength of a TCL that is off
    does not count.
    """

    def __init__(self, inner: BaseSampler, fallback: BaseSampler, space: SearchSpace) -> None:
        self._inner, self._fallback, self._space = inner, fallback, space
        self._distributions = _distributions(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space, from the first trial on."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of a configuration that no trial has had; if there is none left, of any."""
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        past = study.get_trials(deepcopy=False, states=states)
        tried = {self._config(other.params) for other in past if other.number != trial.number and other.params}
        params: dict[str, Any] = {}
        for attempt in range(_TRIES + _RANDOM_TRIES):
            params = self._draw(self._inner if attempt < _TRIES else self._fallback, study, trial, search_space)
            if self._config(params) not in tried:
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

    def _config(self, params: dict[str, Any]) -> SplitConfig:
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
