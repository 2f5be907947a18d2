"""The next trial of a study: which it is, and that no other process has it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.backends import OWNER
from search.presence import is_alive
from search.retrying import retry_dead_trials
from search.split_sampler import SplitSampler
from search.storage import OwnStudy
from spaces.config import SplitConfig
from spaces.space import SearchSpace

FOR_NOW = "infeasible_for_now"  # attribute of a trial whose device did not answer: why
_RETRY_OF = "retry_of"  # attribute of a trial: the number of one whose device did not answer
_COUNTED = (TrialState.COMPLETE, TrialState.RUNNING)
_POLL_S = 0.05
_MOST_POLLS = 1200  # for an earlier trial's parameters


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A trial that is running, with all its parameters in the storage."""

    trial: FrozenTrial
    config: SplitConfig


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Who asks for trials, and for what.

    Attributes:
        space: what is searched.
        owner: of this process's trials.
        wanted: number of finished trials to come to.
        look: reads what has ended since the last time.
    """

    space: SearchSpace
    owner: Mapping[str, Any]
    wanted: int
    look: Callable[[], None]


def next_trial(study: OwnStudy, asking: Asking, *, again: bool) -> Begun | None:
    """The next trial, running and owned; None when enough have ended or are under way.

    First comes one whose process was killed, with its parameters; then, with ``again``, one whose device did not
    answer; else what the sampler proposes. Not ``study.ask``: that makes a trial which nobody owns and which has no
    parameters at first.
    """
    while True:
        with study.backend.alone("study"):
            begun = _looked_and_drawn(study, asking, again=again)
        if begun is None or study.backend.is_exclusive or _is_ours(study, asking, begun):
            return begun


def are_others_under_way(study: OwnStudy) -> bool:
    """Whether trials are running that will come to an end, or whose end this process will get to know of."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    known = study.backend.beats
    return any(known or is_alive(trial.user_attrs.get(OWNER), None) for trial in running)


def _looked_and_drawn(study: OwnStudy, asking: Asking, *, again: bool) -> Begun | None:
    with study.one_look() as trials:
        if not retry_dead_trials(study, study.backend, asking.owner, _sampler(study).distributions):
            return _drawn(study, asking, trials, again=again)
    return _looked_and_drawn(study, asking, again=again)  # what was seen is no longer so


def _drawn(study: OwnStudy, asking: Asking, trials: list[FrozenTrial], *, again: bool) -> Begun | None:
    if sum(trial.state in _COUNTED for trial in trials) >= asking.wanted:
        return None
    backend, sampler = study.backend, _sampler(study)
    asking.look()
    for waiting in trials:
        if waiting.state == TrialState.WAITING and backend.take_waiting(waiting, {OWNER: asking.owner}):
            return _begun(waiting, waiting.params, asking.space)
    lost = _unmeasured(trials) if again else None
    trial = backend.begin(study._study_id, {OWNER: asking.owner, **({_RETRY_OF: lost.number} if lost else {})})
    params = lost.params if lost else sampler.sample_relative(study, trial, sampler.distributions)
    backend.write_params(trial._trial_id, params, sampler.distributions)
    return _begun(trial, params, asking.space)


def _begun(trial: FrozenTrial, params: Mapping[str, Any], space: SearchSpace) -> Begun:
    return Begun(trial=trial, config=space.suggest(optuna.trial.FixedTrial({**params})))


def _unmeasured(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The first trial whose device did not answer and that was not tried again."""
    retried = {trial.user_attrs.get(_RETRY_OF) for trial in trials}
    for trial in trials:
        if trial.state == TrialState.FAIL and FOR_NOW in trial.user_attrs and trial.number not in retried:
            return trial
    return None


def _is_ours(study: OwnStudy, asking: Asking, begun: Begun) -> bool:
    """Whether no earlier trial has the same configuration and there is room for this one; else it is given up.

    Where drawing excludes nobody, two processes may have drawn at the same moment. Both have written their parameters
    before they look, and the one with the lower number stays (Lamport's bakery).
    """
    earlier = _earlier(study, begun)
    taken = {_sampler(study).of_trial(trial) for trial in earlier}
    if begun.config not in taken and len(earlier) < asking.wanted:
        return True
    said = {"stopped": "another process had begun the same, or the last one that was wanted"}
    study.backend.finish(begun.trial._trial_id, TrialState.FAIL, (), said, {})
    return False


def _earlier(study: OwnStudy, begun: Begun) -> list[FrozenTrial]:
    """Trials before this one that count, once all of them have their parameters."""
    names = _sampler(study).distributions.keys()
    for _ in range(_MOST_POLLS):
        trials = study.get_trials(deepcopy=False, states=_COUNTED)
        earlier = [trial for trial in trials if trial.number < begun.trial.number]
        blank = [trial for trial in earlier if not names <= trial.params.keys()]
        if not any(is_alive(trial.user_attrs.get(OWNER), trial.datetime_start) for trial in blank):
            break
        time.sleep(_POLL_S)
    return earlier


def _sampler(study: OwnStudy) -> SplitSampler:
    assert isinstance(study.sampler, SplitSampler)
    return study.sampler
