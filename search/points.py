"""A study read back: its trials and baselines as points."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from typing import Any
from weakref import WeakKeyDictionary

import optuna
from optuna.trial import FrozenTrial, TrialState

from evaluators.result import Evaluation
from search.front import Point, corner_of
from search.hypervolume import GrowingFront
from search.rows import uncollected
from search.spec import Constraints
from spaces.errors import NotFinished, SplitsearchError

BASELINES, ENVIRONMENT = "baselines", "environment"  # attributes of a study
EVALUATION = "evaluation"  # attribute of a trial
INFEASIBLE = "infeasible"  # attribute of a trial: why its configuration cannot run
STOPPED = "stopped_early"  # attribute of a trial: why it was not trained to the end


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to an end: scored, found infeasible, or stopped early."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def could_not_run(study: optuna.Study) -> str:
    """How many trials could not run, and the most frequent reason, in a sentence; empty where all could."""
    done = finished_trials(study)
    unscored = [trial.user_attrs for trial in done if EVALUATION not in trial.user_attrs]
    reasons = Counter(str(attributes[INFEASIBLE]) for attributes in unscored if INFEASIBLE in attributes)
    if not reasons:
        return ""
    ((reason, _),) = reasons.most_common(1)
    return f"{reasons.total()} of {len(done)} trials could not run{', such as' if len(reasons) > 1 else ''}: {reason}."


def why_no_front(study: optuna.Study) -> str:
    """Why a study's front is empty, and what to do."""
    if trial_points(study):
        return "the front is empty: no trial kept the constraints; run more trials or loosen them"
    told = could_not_run(study).rstrip(".")
    return f"the front is empty: {told or 'no trial has a result'}; run more trials, or give the study another space"


def trial_points(study: optuna.Study) -> list[Point]:
    """Every trial that was scored, in order. Configurations that could not run have no point.

    What was read of a study is kept for the next who asks: a trial that has ended does not change any more.

    Raises:
        SplitsearchError: a trial that cannot be read.
    """
    reader, points = _READ.setdefault(study, (PointReader(study), []))
    points += reader.new()
    return sorted(points, key=lambda point: point.trial or 0)


class PointReader:
    """Reads each trial of a study once, however often it is asked."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = weakref.proxy(study)
        self._read: set[int] = set()

    @property
    def finished(self) -> int:
        """Number of trials that came to an end and were looked at."""
        return len(self._read)

    def new(self) -> list[Point]:
        """Points of the trials that ended since the last call."""
        ended = [trial for trial in finished_trials(self._study) if trial.number not in self._read]
        with uncollected():
            points = [_point(trial) for trial in ended if EVALUATION in trial.user_attrs]
        self._read |= {trial.number for trial in ended}
        return points


_READ: WeakKeyDictionary[optuna.Study, tuple[PointReader, list[Point]]] = WeakKeyDictionary()


def baseline_points(study: optuna.Study) -> list[Point]:
    """The baselines, measured when the study began."""
    found = study.user_attrs.get(BASELINES, [])
    return [Point(trial=None, evaluation=Evaluation.from_dict(data)) for data in found]


def hypervolumes(study: optuna.Study, limits: Constraints) -> list[float]:
    """Of the front after each trial that came to an end, in accuracy times milliseconds; see ``corner_of``."""
    feasible = {point.trial: point for point in trial_points(study) if point.feasible}
    front = GrowingFront(corner_of(baseline_points(study), limits))
    for trial in finished_trials(study):
        point = feasible.get(trial.number)
        front.add((point.accuracy, point.latency_ms) if point else None)
    return front.hypervolumes


def environment(study: optuna.Study) -> dict[str, Any]:
    """Under which circumstances the study ran: date, machine, versions, hardware, images.

    Raises:
        NotFinished: nobody knows yet, since what precedes the first trial is not done.
    """
    found = study.user_attrs.get(ENVIRONMENT)
    if found is None:
        raise NotFinished(
            f"the study '{study.study_name}' has begun and is not ready for its first trial: the uncut model is "
            "trained, or baselines are measured. Wait, or give 'splitsearch run' again if it was stopped"
        )
    return dict(found)


def _point(trial: FrozenTrial) -> Point:
    try:
        evaluation = Evaluation.from_dict(json.loads(trial.user_attrs[EVALUATION]))
    except (SplitsearchError, ValueError, TypeError, AttributeError) as error:
        raise SplitsearchError(f"trial {trial.number} cannot be read: {error}") from None
    return Point(
        trial=trial.number, evaluation=evaluation, feasible=all(value <= 0 for value in trial.constraints.values())
    )
