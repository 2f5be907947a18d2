"""Samplers by name, each as a :class:`SplitSampler`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search.front_sampler import FrontSampler, parameter_grid
from search.knowledge import AskPrice
from search.spec import SAMPLERS, Constraints
from search.split_sampler import SplitSampler
from spaces.space import SearchSpace

# Multivariate: ratio, bit-width and partition act together, so TPE should look at them together.
_INNER: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: _Tpe(seed=seed, multivariate=True),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def make_sampler(
    name: str,
    seed: int,
    space: SearchSpace,
    shift: int = 0,
    *,
    ask_price: AskPrice,
    limits: Constraints,
    once_per_cut: bool = False,
) -> SplitSampler:
    """The named sampler, without repeats. All of them take note of violated constraints.

    Args:
        name: one of ``SAMPLERS``.
        seed: the study's.
        space: what is searched.
        shift: where other random numbers are needed than a fresh study draws.
        ask_price: what a configuration takes, for samplers that want to know.
        limits: the study's constraints.
        once_per_cut: whether one training answers for all AE ratios and bit-widths of a cut.
    """
    assert name in SAMPLERS, name
    if name == "front":
        return FrontSampler(space, seed, shift, ask_price, limits, once_per_cut)
    if name == "grid":
        return GridSampler(space, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        inner = _INNER[name](seed + shift)
    return SplitSampler(inner, space, seed + shift)


class GridSampler(SplitSampler):
    """One configuration after the other; a continuous TCL strength at a few values."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(optuna.samplers.RandomSampler(seed=seed), space, seed)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of the first configuration that no trial has had; if there is none left, of any."""
        known = set(self.taken(study, trial))
        for params in parameter_grid(self.distributions):
            if self.config_of(params) not in known:
                return params
        return super().sample_relative(study, trial, search_space)


class _Tpe(optuna.samplers.TPESampler):
    """TPE that leaves no note of what it drew: a trial here gets all its parameters in one go."""

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sample_relative(study, trial, search_space)
