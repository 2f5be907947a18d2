"""The loop: what precedes the first trial, then one trial after the other until there are enough."""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from evaluators.base import Evaluator, Progress
from evaluators.latency.profiles import LOCAL
from evaluators.result import Evaluation, LatencyParts
from search.backends import HEARTBEAT_S, OWNER
from search.drawing import FOR_NOW, Asking, Begun, are_others_under_way, next_trial
from search.front_sampler import FrontSampler
from search.knowledge import ACCURACY_ERROR, RUNG_ACCURACIES, RUNG_ERRORS, Knowledge
from search.patience import Patience
from search.points import (
    BASELINES,
    ENVIRONMENT,
    EVALUATION,
    INFEASIBLE,
    STOPPED,
    baseline_points,
    environment,
    finished_trials,
)
from search.presence import Presence, beating
from search.pruning import Pruning
from search.retrying import times_killed
from search.spec import SearchSettings, StudySpec
from search.split_sampler import SplitSampler
from search.storage import OwnStudy
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit, MeasurementError, SpecError
from spaces.space import SearchSpace

_SAME_TRAINING = "same_training_as_trial"  # attribute of one that differs in its lossless coder alone
_HOPE = 2.0  # standard deviations that a configuration may exceed the best baseline by
_MOST_UNANSWERED = 3  # in a row, before a run gives up
_MOST_KILLED = 5  # times, before a configuration is taken for one that cannot run
_POLL_S = 1.0  # of a worker that waits for others' trials
# Where optuna-dashboard 0.21 looks for constraints; Optuna 5's own set_constraint writes one attribute each instead.
_DASHBOARD_CONSTRAINTS = "constraints"

_log = logging.getLogger("splitsearch")


def prepare(study: OwnStudy, space: SearchSpace, evaluator: Evaluator, progress: Progress) -> None:
    """Everything that precedes the first trial: the uncut model, the baselines, a note of the circumstances.

    Of several processes that run one study, one does it while the others wait; then each finds it done.

    Raises:
        SpecError: timings are taken on this machine, and the study's are of another one.
    """
    with study.backend.alone("prepare", lambda: progress("waiting: another run of this study prepares it")):
        evaluator.prepare(space, progress)
        attributes, described = study.user_attrs, evaluator.describe()
        if BASELINES in attributes:
            _check_machine(environment(study), described)
            return
        progress("measuring the baselines")
        found = [evaluation.to_dict() for evaluation in evaluator.baselines(trained=True)]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        patient, about = Patience(study.backend), {"date": now, "optuna": optuna.__version__, **described}
        patient(lambda: study.set_user_attr(ENVIRONMENT, about))
        patient(lambda: study.set_user_attr(BASELINES, found))


def _check_machine(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A timing belongs to a machine: those of another one do not go into the same study."""
    timed_here = [place for place in ("device", "server") if now.get(place, {}).get("name") == LOCAL]
    was, is_now = (
        ", ".join(str(side.get("machine", {}).get(key)) for key in ("processor", "cores")) for side in (then, now)
    )
    if timed_here and was != is_now:
        raise SpecError(
            timed_here[0],
            LOCAL,
            f"the study's timings are of another machine ({was} cores), this one is {is_now} cores. Run it there, or "
            "name a device that is the same for all: a profile (splitsearch profile), or one over ssh://",
        )


def run_trials(
    study: OwnStudy,
    spec: StudySpec,
    space: SearchSpace,
    evaluator: Evaluator,
    folder: Path,
    *,
    timeout_s: float | None = None,
    finished: Callable[[], None] = lambda: None,
    stay: bool = False,
) -> None:
    """Run until the study has as many finished trials as the spec asks for, the space is exhausted, or time is over.

    Or until its front has stopped growing, where the spec says when. Trials that other processes have under way count
    as finished. A trial whose device did not answer is infeasible for now: it teaches the sampler nothing, and is tried
    again as soon as another one was measured, or when the study is run the next time. Its training is kept meanwhile.
    A trial whose process was killed is run again. A storage that does not answer is waited for.

    Args:
        study: from :func:`start_or_resume`.
        spec: the study file.
        space: what is searched.
        evaluator: prepared.
        folder: of the study's results.
        timeout_s: no trial begins after so many seconds.
        finished: called after every trial that came to an end.
        stay: while others' trials are under way, wait to take over one whose process is killed.

    Raises:
        MeasurementError: the device did not answer several times in a row.
        StorageGone: the storage did not answer for too long.
    """
    patient, loop = Patience(study.backend), _Loop(study, spec, space, evaluator)
    wanted = min(spec.search.trials, space.size or spec.search.trials)
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    unanswered = 0
    with Presence(folder) as presence, _noting_what_stopped(study, presence.owner):
        asking = Asking(space=space, owner=presence.owner, wanted=wanted, look=loop.look)
        while time.monotonic() < deadline:
            if patient(lambda: loop.has_stopped_growing and len(finished_trials(study)) < wanted):
                _log.warning(
                    "over the last %d trials the front's hypervolume has grown by less than %g %%: the search ends; a "
                    "larger search.patience goes on",
                    spec.search.patience,
                    100 * spec.search.min_growth,
                )
                return
            begun = patient(functools.partial(next_trial, study, asking, again=unanswered == 0))
            if begun is None:
                if stay and patient(lambda: len(finished_trials(study)) < wanted and are_others_under_way(study)):
                    time.sleep(_POLL_S)
                    continue
                return
            outcome = _finish(study, begun, loop, patient)
            if outcome.for_now is None:
                patient(finished)
                unanswered = 0
                continue
            unanswered += 1
            if unanswered == _MOST_UNANSWERED:
                raise outcome.for_now


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How a trial ended. ``for_now`` is why it has no result yet."""

    values: tuple[float, ...]
    constraints: Mapping[str, float]
    reason: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    for_now: MeasurementError | None = None


class _Loop:
    """What scoring a trial needs to know of the study."""

    def __init__(self, study: OwnStudy, spec: StudySpec, space: SearchSpace, evaluator: Evaluator) -> None:
        self._study, self._settings = study, spec.search
        self.evaluator, self.limits, self.budget = evaluator, spec.constraints, spec.finetune.budget
        baselines = baseline_points(study)
        self.worst_ms = 2 * max(point.latency_ms for point in baselines)
        sampler = study.sampler
        assert isinstance(sampler, SplitSampler)
        known = sampler.knowledge if isinstance(sampler, FrontSampler) else None
        self._knowledge = known or Knowledge(space, evaluator.price, spec.constraints, sampler.of_trial)
        most = max(point.accuracy + _HOPE * point.evaluation.accuracy_error for point in baselines)
        self.pruning = Pruning(self._knowledge, most) if spec.search.pruning != "none" else None

    def look(self) -> None:
        """Read what has ended since the last time."""
        self._knowledge.update(self._study)

    def expected_ms(self, config: SplitConfig) -> float:
        """A configuration's latency, as far as it is known without training."""
        return self._knowledge.expected_ms(config) or self.worst_ms

    def trained_in(self, config: SplitConfig) -> int | None:
        """The trial that a configuration shares its training with, if there is one."""
        return self._knowledge.trained_in(config)

    def constraints(self, **known: float) -> dict[str, float]:
        """Of a trial, above 0 where violated: always all of them, as samplers expect the same of every trial."""
        limits = [name for name, limit in vars(self.limits).items() if limit is not None]
        return {name: known.get(name, 0.0) for name in ("runs", "trained", *limits)}

    @property
    def has_stopped_growing(self) -> bool:
        """Whether the spec's patience is over."""
        if self._settings.patience is None:
            return False
        self.look()
        return stopped_growing(self._knowledge.hypervolumes, self._settings)


def stopped_growing(hypervolumes: Sequence[float], settings: SearchSettings) -> bool:
    """Whether the last trials, as many as the patience says, have added less than is asked for.

    Args:
        hypervolumes: after each trial.
        settings: with a patience.
    """
    patience = settings.patience
    if patience is None or len(hypervolumes) <= patience or hypervolumes[-1] <= 0:
        return False
    return hypervolumes[-1] - hypervolumes[-1 - patience] < settings.min_growth * hypervolumes[-1]


@contextmanager
def _noting_what_stopped(study: OwnStudy, owner: Mapping[str, Any]) -> Iterator[None]:
    """What ends a run ends the trial that it had begun, be it a moment ago or almost over.

    It may have ended in the middle of writing. What was under way there is let go of first: its transaction would keep
    everybody out of the storage, the note included, for as long as the traceback remembers its connection.
    """
    try:
        yield
    except BaseException as error:
        _forget(error)
        said = "interrupted by the user" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):  # what went wrong matters more than the note of it
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get(OWNER) == owner:
                    study.backend.finish(trial._trial_id, TrialState.FAIL, (), {"stopped": said}, {})
        raise


def _forget(error: BaseException | None) -> None:
    """Drop the variables of all calls that an error came through, except those that still run."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()  # SQLAlchemy's sessions and connections refer to each other


def _finish(study: OwnStudy, begun: Begun, loop: _Loop, patient: Patience) -> _Outcome:
    trial = begun.trial
    with beating(lambda: study.backend.beat(trial._trial_id), HEARTBEAT_S):
        outcome = _killed_too_often(trial, loop) or _score(begun.config, loop)
    patient(functools.partial(_write, study, trial, outcome))
    if outcome.for_now:
        _log.warning("trial %d: %s. It is tried again later", trial.number, outcome.for_now)
    return outcome


def _killed_too_often(trial: FrozenTrial, loop: _Loop) -> _Outcome | None:
    """A configuration that takes its process along each time, for want of memory perhaps, is one that cannot run."""
    times = times_killed(trial)
    if times < _MOST_KILLED:
        return None
    return _cannot_run(f"its process was killed {times} times; is the memory too small for it?", loop)


def _score(config: SplitConfig, loop: _Loop) -> _Outcome:
    """What becomes of a configuration: a result, a reason why it has none, or a reason to try it again later."""
    rungs: dict[str, Evaluation] = {}
    twin = loop.trained_in(config)
    try:
        found = _up_the_rungs(config, loop, rungs)
        if isinstance(found, str):
            return _stopped(found, rungs, config, loop)
        evaluation = found
    except InfeasibleSplit as reason:
        return _cannot_run(str(reason), loop)
    except MeasurementError as reason:
        return _Outcome(
            values=(),
            constraints={"measured": 1.0},
            reason=f"for now: {reason}",
            attributes={FOR_NOW: str(reason)},
            for_now=reason,
        )
    except Exception as error:
        if _is_the_configurations_fault(error):
            return _cannot_run(f"{type(error).__name__}: {error}", loop)
        raise
    broken = _not_finite(evaluation)
    if broken:
        return _cannot_run(f"no number: {', '.join(broken)}", loop)
    excess = loop.limits.excess(evaluation)
    return _Outcome(
        values=(evaluation.accuracy, evaluation.latency_ms),
        constraints=loop.constraints(**excess),
        reason="; ".join(f"{name} exceeded by {over:.3g}" for name, over in excess.items() if over > 0),
        attributes=_attributes(evaluation)
        | (_of_rungs(rungs) if rungs else {})
        | ({_SAME_TRAINING: twin} if twin is not None else {}),
    )


def _up_the_rungs(config: SplitConfig, loop: _Loop, scores: dict[str, Evaluation]) -> Evaluation | str:
    """The result of all the training, or why it was stopped before.

    Args:
        config: what to score.
        loop: with the budget and with what may stop a trial.
        scores: gets those of the cheaper rungs, by name.
    """
    evaluator, pruning = loop.evaluator, loop.pruning
    if pruning is None or loop.trained_in(config) is not None:
        return evaluator.evaluate(config)
    if why := pruning.by_price(config):
        return why
    for name, budget in loop.budget.rungs.items():
        if name == "full" or not pruning.tells(name):
            continue
        scores[name] = evaluator.evaluate(replace(config, lossless="packed"), budget=budget)
        if why := pruning.by_rung(config, scores):
            return why
    return evaluator.evaluate(config)


def _of_rungs(scores: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """As attributes of a trial."""
    return {
        RUNG_ACCURACIES: {name: score.accuracy for name, score in scores.items()},
        RUNG_ERRORS: {name: round(score.accuracy_error, 5) for name, score in scores.items()},
    }


def _stopped(why: str, rungs: Mapping[str, Evaluation], config: SplitConfig, loop: _Loop) -> _Outcome:
    """Optuna knows no pruning with two objectives, so such a trial is one that breaks a constraint: it teaches every
    sampler something and is on no front.
    """
    return _Outcome(
        values=(max((score.accuracy for score in rungs.values()), default=0.0), loop.expected_ms(config)),
        constraints=loop.constraints(trained=1.0),
        attributes={STOPPED: why, **_of_rungs(rungs)},
    )


def _cannot_run(reason: str, loop: _Loop) -> _Outcome:
    return _Outcome(values=(0.0, loop.worst_ms), constraints=loop.constraints(runs=1.0), reason=reason)


def _is_the_configurations_fault(error: Exception) -> bool:
    """Memory that does not suffice and numbers that overflow depend on the configuration; another one may run."""
    if isinstance(error, MemoryError | FloatingPointError):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()  # torch's, of any device


def _not_finite(evaluation: Evaluation) -> list[str]:
    """``accuracy nan`` for each number of a result that is none."""
    numbers = {
        "accuracy": evaluation.accuracy,
        "payload_bytes": evaluation.payload_bytes,
        "accuracy_drop_pp": evaluation.accuracy_drop_pp,
        **evaluation.latency.to_dict(),
        **evaluation.metrics,
    }
    return [f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value)]


def _attributes(evaluation: Evaluation) -> dict[str, Any]:
    """The result as a trial's user attributes: whole for reading it back, and part by part for the dashboard."""
    parts = evaluation.latency.to_dict()
    places = evaluation.sources.to_dict()
    found: dict[str, Any] = {
        EVALUATION: json.dumps(evaluation.to_dict()),
        "configuration": evaluation.name,
        "payload_bytes": round(evaluation.payload_bytes, 1),
        "accuracy_drop_pp": round(evaluation.accuracy_drop_pp, 3),
        ACCURACY_ERROR: round(evaluation.accuracy_error, 5),
        "frames_per_s": round(evaluation.frames_per_s, 2),
        **{name: round(value, 4) for name, value in evaluation.metrics.items()},
        **{part: round(ms, 4) for part, ms in parts.items()},
        **{f"source_{place}": source for place, source in places.items()},
    }
    for part in LatencyParts.names():
        # Where a part comes from, unless it is what the whole place comes from.
        source = str(evaluation.source_of(part))
        if parts[part] and source != places[evaluation.place_of(part)]:
            found[f"source_{part.removesuffix('_ms')}"] = source
    if evaluation.warnings:
        found["warnings"] = "; ".join(evaluation.warnings)
    return found


def _write(study: OwnStudy, trial: FrozenTrial, outcome: _Outcome) -> None:
    """The one place where constraints are written, for Optuna and for optuna-dashboard; above 0 is violated."""
    as_optuna_does = create_trial(state=TrialState.RUNNING, constraints=dict(outcome.constraints)).system_attrs
    system = {**as_optuna_does, _DASHBOARD_CONSTRAINTS: list(outcome.constraints.values())}
    user = {**outcome.attributes} | ({INFEASIBLE: outcome.reason} if outcome.reason else {})
    state = TrialState.COMPLETE if outcome.values else TrialState.FAIL
    study.sampler.after_trial(study, trial, state, outcome.values or None)
    rungs = outcome.attributes.get(RUNG_ACCURACIES, {})
    try:
        study.backend.finish(trial._trial_id, state, outcome.values, user, system, list(rungs.values()))
    except UpdateFinishedTrialError:
        # Written already, and only the answer was lost; or taken for dead by others, whose retry finds the training.
        if study._storage.get_trial(trial._trial_id).state != state:
            _log.warning("trial %d was given up by others while it ran; they try it again", trial.number)
