"""Trials of processes that are no more: given up, and queued to be run again with their parameters."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from search.backends import OWNER, Backend
from search.presence import is_alive

KILLED = "killed"  # attribute of a trial whose process is no more: its own number, so that a retry does not inherit it
_HISTORY = "retry_history"  # where Optuna keeps the numbers of the trials that a trial repeats


def times_killed(trial: FrozenTrial) -> int:
    """How often a trial was begun before by a process that did not live to its end."""
    return len(trial.system_attrs.get(_HISTORY, ()))


def retry_dead_trials(study: optuna.Study, backend: Backend, mine: Mapping[str, Any], names: Collection[str]) -> int:
    """Fail running trials whose process is no more, and queue their parameters. Those of living processes stay.

    Dead are: trials of this machine whose process has let go of its lock; trials of other machines without a sign of
    life for too long; and trials of the calling process itself, which runs none while it asks. Stands inside
    ``backend.alone("study")``. If this process is killed half way, the next one does the rest.

    Args:
        study: whose trials.
        backend: of the study.
        mine: the owner of the calling process's trials.
        names: of the parameters that a trial must have to be run again.

    Returns:
        How many trials were changed or queued.
    """
    given_up = _fail(study, backend, _dead(study, backend, mine))
    return given_up + _queue(study, names)


def _dead(study: optuna.Study, backend: Backend, mine: Mapping[str, Any]) -> list[FrozenTrial]:
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    silent = backend.silent_trials(study._study_id) if running else set()

    def is_dead(trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(OWNER)
        is_silent = trial._trial_id in silent
        return owner == mine or is_silent or not is_alive(owner, trial.datetime_start, beats=backend.beats)

    return [trial for trial in running if is_dead(trial)]


def _fail(study: optuna.Study, backend: Backend, dead: Sequence[FrozenTrial]) -> int:
    for trial in dead:
        with contextlib.suppress(UpdateFinishedTrialError):  # it came to its end just now
            backend.storage.set_trial_user_attr(trial._trial_id, KILLED, trial.number)
            backend.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return len(dead)


def _queue(study: optuna.Study, names: Collection[str]) -> int:
    """Have Optuna queue every killed trial that no other one repeats yet."""
    trials = study.get_trials(deepcopy=False)
    killed = [
        trial for trial in trials if trial.state == TrialState.FAIL and trial.user_attrs.get(KILLED) == trial.number
    ]
    if not killed:
        return 0
    repeated = {number for trial in trials for number in trial.system_attrs.get(_HISTORY, ())}
    lost = [trial for trial in killed if trial.number not in repeated and set(names) <= trial.params.keys()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        again = RetryHeartbeatStaleTrialCallback()
    for trial in lost:
        again(study, study._storage.get_trial(trial._trial_id))
    return len(lost)
