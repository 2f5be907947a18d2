"""The study: opened or resumed, run, and read back as points."""

from __future__ import annotations

import datetime
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from evaluators.base import Evaluator, Progress
from evaluators.result import Evaluation
from search.front import OBJECTIVES, Point
from search.samplers import make_sampler
from search.spec import Constraints, StudySpec
from spaces.errors import InfeasibleSplit, MeasurementError, NotFinished, SpecError
from spaces.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

_SPEC = "spec"
_BASELINES = "baselines"
_ENVIRONMENT = "environment"
_EVALUATION = "evaluation"
_FOR_NOW = "infeasible_for_now"
_RETRY_OF = "retry_of"
_MOST_UNANSWERED = 3  # in a row, before a run gives up
# Where optuna-dashboard 0.21 looks for constraints; Optuna 5's own set_constraint writes one attribute each instead.
_DASHBOARD_CONSTRAINTS = "constraints"


def run_folder(spec: StudySpec, out: Path | None) -> Path:
    """Where a study's results are: ``runs/<name>`` unless told otherwise."""
    return out or Path("runs") / spec.name


def storage_url(folder: Path, storage: str | None) -> str:
    """The study's storage: an SQLite file in its folder unless a URL is given."""
    return storage or f"sqlite:///{folder / 'study.db'}"


def open_study(spec: StudySpec, folder: Path, storage: str | None = None) -> optuna.Study:
    """The finished or half-finished study for reading.

    Raises:
        NotFinished: there is none yet.
        SpecError: it was made by another version of the study file.
    """
    if storage is None and not (folder / "study.db").is_file():
        raise NotFinished(f"no results in {folder} yet; 'splitsearch run {spec.file}' makes them")
    try:
        study = optuna.load_study(study_name=spec.name, storage=storage_url(folder, storage))
    except KeyError:
        where = storage or folder
        raise NotFinished(f"no study '{spec.name}' in {where} yet; 'splitsearch run {spec.file}' makes it") from None
    _check_same_spec(study, spec, folder)
    return study


def start_or_resume(spec: StudySpec, space: SearchSpace, folder: Path, storage: str | None = None) -> optuna.Study:
    """The study for running, made if need be. Trials that a killed run left unfinished are marked as failed.

    Raises:
        SpecError: the study exists and was made by another version of the study file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=spec.name,
        storage=storage_url(folder, storage),
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    if _SPEC in study.user_attrs:
        _check_same_spec(study, spec, folder)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(OBJECTIVES))
        study.set_user_attr(_SPEC, spec.comparable())
        study.set_user_attr("spec_sha256", spec.digest)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    # A resumed sampler must not draw the numbers again that it drew at the start.
    seed = spec.search.seed + len(study.get_trials(deepcopy=False))
    study.sampler = make_sampler(spec.search.sampler, seed, space)
    return study


def prepare(study: optuna.Study, space: SearchSpace, evaluator: Evaluator, progress: Progress) -> None:
    """Everything that precedes the first trial: the uncut model, the baselines, a note of the circumstances."""
    evaluator.prepare(space.partitions, progress)
    if _BASELINES in study.user_attrs:
        return
    progress("measuring the baselines")
    found = [evaluation.to_dict() for evaluation in evaluator.baselines(trained=True)]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    circumstances = {"date": now, "optuna": optuna.__version__, **evaluator.describe()}
    study.set_user_attr(_ENVIRONMENT, circumstances)
    study.set_user_attr(_BASELINES, found)


def run_trials(
    study: optuna.Study,
    spec: StudySpec,
    space: SearchSpace,
    evaluator: Evaluator,
    *,
    timeout_s: float | None = None,
    finished: Callable[[], None] = lambda: None,
) -> None:
    """Run until the study has as many finished trials as the spec asks for, the space is exhausted, or time is over.

    A trial whose device did not answer is infeasible for now: it teaches the sampler nothing, and is tried again as
    soon as another one was measured, or when the study is run the next time. Its training is kept meanwhile.

    Args:
        finished: called after every trial that came to an end.

    Raises:
        MeasurementError: the device did not answer several times in a row.
    """
    worst_ms = 2 * max(point.latency_ms for point in baseline_points(study))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        config = space.suggest(trial)
        try:
            evaluation = evaluator.evaluate(config)
        except InfeasibleSplit as reason:
            _set_constraints(trial, {"runs": 1.0}, str(reason))
            return 0.0, worst_ms
        except MeasurementError as reason:
            _set_constraints(trial, {"measured": 1.0}, f"for now: {reason}")
            trial.set_user_attr(_FOR_NOW, str(reason))
            raise
        except KeyboardInterrupt:
            trial.set_user_attr("stopped", "interrupted by the user")
            raise
        _record(trial, evaluation, spec.constraints)
        return evaluation.accuracy, evaluation.latency_ms

    wanted = min(spec.search.trials, space.size or spec.search.trials)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended: list[optuna.trial.FrozenTrial] = []
    unanswered = 0
    _enqueue_unmeasured(study)
    while len(finished_trials(study)) < wanted:
        if deadline is not None and time.monotonic() >= deadline:
            return
        watch = [lambda _study, trial: ended.append(trial)]
        study.optimize(objective, n_trials=1, catch=(MeasurementError,), callbacks=watch)
        if ended[-1].state == TrialState.COMPLETE:
            finished()
            _enqueue_unmeasured(study)
            unanswered = 0
            continue
        unanswered += 1
        if unanswered == _MOST_UNANSWERED:
            raise MeasurementError(ended[-1].user_attrs[_FOR_NOW])


def _enqueue_unmeasured(study: optuna.Study) -> None:
    """Put trials back in line whose device did not answer."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(_RETRY_OF) for trial in trials}
    for trial in trials:
        if trial.state == TrialState.FAIL and _FOR_NOW in trial.user_attrs and trial.number not in retried:
            study.enqueue_trial(trial.params, user_attrs={_RETRY_OF: trial.number})


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that came to an end, infeasible ones among them."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def trial_points(study: optuna.Study) -> list[Point]:
    """Every trial that was scored, in order. Configurations that could not run have no point."""
    return [
        Point(
            trial=trial.number,
            evaluation=Evaluation.from_dict(json.loads(trial.user_attrs[_EVALUATION])),
            feasible=all(value <= 0 for value in trial.constraints.values()),
        )
        for trial in finished_trials(study)
        if _EVALUATION in trial.user_attrs
    ]


def baseline_points(study: optuna.Study) -> list[Point]:
    """The baselines, measured when the study began."""
    found = study.user_attrs.get(_BASELINES, [])
    return [Point(trial=None, evaluation=Evaluation.from_dict(data)) for data in found]


def environment(study: optuna.Study) -> dict[str, Any]:
    """Under which circumstances the study ran: date, machine, versions, hardware, images."""
    return dict(study.user_attrs.get(_ENVIRONMENT, {}))


def _record(trial: optuna.Trial, evaluation: Evaluation, limits: Constraints) -> None:
    trial.set_user_attr(_EVALUATION, json.dumps(evaluation.to_dict()))
    trial.set_user_attr("configuration", evaluation.name)
    trial.set_user_attr("payload_bytes", round(evaluation.payload_bytes, 1))
    trial.set_user_attr("accuracy_drop_pp", round(evaluation.accuracy_drop_pp, 3))
    for name, value in evaluation.metrics.items():
        trial.set_user_attr(name, round(value, 4))
    for part, ms in evaluation.latency.to_dict().items():
        trial.set_user_attr(part, round(ms, 4))
    for part, ms in evaluation.latency.to_dict().items():
        if ms:
            trial.set_user_attr(f"source_{part.removesuffix('_ms')}", str(evaluation.source_of(part)))
    for place, source in evaluation.sources.to_dict().items():
        trial.set_user_attr(f"source_{place}", source)
    trial.set_user_attr("frames_per_s", round(evaluation.frames_per_s, 2))
    if evaluation.warnings:
        trial.set_user_attr("warnings", "; ".join(evaluation.warnings))
    excess = limits.excess(evaluation)
    broken = [f"{name} exceeded by {over:.3g}" for name, over in excess.items() if over > 0]
    _set_constraints(trial, {"runs": 0.0, **excess}, "; ".join(broken))


def _set_constraints(trial: optuna.Trial, constraints: dict[str, float], reason: str) -> None:
    """The one place where constraints are written, for Optuna and for optuna-dashboard; above 0 is violated."""
    for name, value in constraints.items():
        trial.set_constraint(name, value)
    trial.storage.set_trial_system_attr(trial._trial_id, _DASHBOARD_CONSTRAINTS, list(constraints.values()))
    if reason:
        trial.set_user_attr("infeasible", reason)


def _check_same_spec(study: optuna.Study, spec: StudySpec, folder: Path) -> None:
    then, now = study.user_attrs.get(_SPEC, {}), json.loads(json.dumps(spec.comparable()))
    differing = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if differing:
        changes = ", ".join(f"{key} (was {then.get(key)!r}, is {now.get(key)!r})" for key in differing)
        advice = f"the study '{spec.name}' in {folder} was made with other values: {changes}"
        error = SpecError("name", spec.name, f"{advice}. Give the study another name, use --out, or undo the change")
        error.file = str(spec.file)
        raise error
