"""Where a study is kept: opened for reading, or made and resumed for running, and only as the study that is meant."""

from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.front import OBJECTIVES
from search.identity import differing_contents, differing_settings, listed
from search.knowledge import AskPrice
from search.presence import alone, is_alive, others_at_work
from search.samplers import make_sampler
from search.spec import StudySpec
from spaces.errors import NotFinished, SpecError, SplitsearchError
from spaces.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

FORMAT = 2  # of a study's attributes: 1 had no number, and the study file's text in place of resolved values
OWNER = "owner"
_FORMAT, _SPEC, _CONTENTS = "format", "spec", "contents"
_SEARCHED = "space.partitions"  # known only with the model at hand, so kept with its contents
_SQLITE_FILES = (".db", ".sqlite", ".sqlite3")
_STORAGES = (
    f"an SQLite file ({', '.join(_SQLITE_FILES)}) or a database's URL is needed: sqlite:///study.db, "
    "postgresql+psycopg://user@host/name, mysql+pymysql://user@host/name"
)
_WAIT_S = 120.0  # for another process that writes
_STREAM_STRIDE = 1_000_003  # between the seeds of processes that begin together


def run_folder(spec: StudySpec, out: Path | None) -> Path:
    """Where a study's results are: ``runs/<name>`` unless told otherwise."""
    return out or Path("runs") / spec.name


class StudyDatabase(RDBStorage):
    """Optuna's database storage, where what belongs together is written at once.

    Optuna writes each parameter and attribute by itself and waits for the disk each time, some 45 times a trial.

    Args:
        place: a database's URL, or an SQLite file.
    """

    def __init__(self, place: str | Path) -> None:
        if isinstance(place, str):
            super().__init__(place)
            return
        # Not as a URL: there '?', '%' and '#' in a path mean something else, and to Optuna braces do.
        file = str(place)
        how = {"creator": lambda: sqlite3.connect(file, timeout=_WAIT_S, check_same_thread=False)}
        super().__init__("sqlite:///study.db", engine_kwargs=how)

    def begin(self, study_id: int, owner: Mapping[str, Any], notes: Mapping[str, Any]) -> FrozenTrial:
        """A new running trial, from the first moment with its owner."""
        return self._create_new_trial(
            study_id, create_trial(state=TrialState.RUNNING, user_attrs={OWNER: owner, **notes})
        )

    def write_params(
        self, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        """All parameters of a running trial."""
        rows = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": distribution.to_internal_repr(params[name]),
                "distribution_json": distribution_to_json(distribution),
            }
            for name, distribution in distributions.items()
        ]
        with self._one_transaction() as session:
            session.execute(sqlalchemy.insert(models.TrialParamModel), rows)

    def finish(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float],
        user: Mapping[str, Any],
        system: Mapping[str, Any],
        on_the_way: Sequence[float] = (),
    ) -> None:
        """End a running trial: values and attributes that it has not had, and its state.

        ``on_the_way`` are its intermediate values, in order.

        Raises:
            UpdateFinishedTrialError: it has ended already.
        """
        with self._one_transaction() as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            self.check_trial_is_updatable(trial_id, trial.state)  # type: ignore[arg-type]
            for kind, attributes in (
                (models.TrialUserAttributeModel, user),
                (models.TrialSystemAttributeModel, system),
            ):
                rows = [
                    {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
                    for key, value in attributes.items()
                ]
                if rows:
                    session.execute(sqlalchemy.insert(kind), rows)
            for objective, value in enumerate(values):
                stored, value_type = models.TrialValueModel.value_to_stored_repr(value)
                row = {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": value_type}
                session.execute(sqlalchemy.insert(models.TrialValueModel), row)
            for step, value in enumerate(on_the_way):
                number, kind_of = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
                passed: dict[str, Any] = {"trial_id": trial_id, "step": step, "intermediate_value": number}
                passed["intermediate_value_type"] = kind_of
                session.execute(sqlalchemy.insert(models.TrialIntermediateValueModel), passed)
            trial.state, trial.datetime_complete = state, datetime.datetime.now()

    @contextmanager
    def _one_transaction(self) -> Iterator[Any]:
        session = self.scoped_session()
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()


class OwnStudy(optuna.Study):
    """A study that can be looked at once and then thought about, without asking the database over and over."""

    _looked = False

    @contextmanager
    def one_look(self) -> Iterator[list[FrozenTrial]]:
        """Whoever reads trials inside gets those of this moment."""
        self._thread_local.cached_all_trials = None
        self._looked = True
        try:
            yield self.get_trials(deepcopy=False)
        finally:
            self._looked = False
            self._thread_local.cached_all_trials = None

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return super()._get_trials(deepcopy, states, use_cache or self._looked)


def database_of(study: optuna.Study) -> StudyDatabase:
    """The database behind a study that this room opened."""
    database = study._storage._backend  # type: ignore[attr-defined]  # Optuna keeps its storage behind a cache
    assert isinstance(database, StudyDatabase)
    return database


def open_study(spec: StudySpec, folder: Path, storage: str | None = None) -> optuna.Study:
    """The finished or half-finished study for reading.

    Raises:
        NotFinished: there is none yet.
        SpecError: it was made with other settings, or there is no such storage.
        SplitsearchError: what is kept there cannot be read.
    """
    place = _place(folder, storage)
    if isinstance(place, Path) and not place.is_file():
        raise NotFinished(f"no results in {place.parent} yet; 'splitsearch run {spec.file}' makes them")
    with _explained(place):
        try:
            study = optuna.load_study(study_name=spec.name, storage=_database(place))
        except KeyError:
            raise NotFinished(
                f"no study '{spec.name}' in {_shown(place)} yet; 'splitsearch run {spec.file}' makes it"
            ) from None
        _check_settings(study, spec, place)
        study.get_trials(deepcopy=False)  # damage shows here, not in the middle of something
    return study


def has_trials(spec: StudySpec, folder: Path, storage: str | None = None) -> bool:
    """Whether a study has begun. Makes nothing."""
    try:
        return bool(open_study(spec, folder, storage).get_trials(deepcopy=False))
    except NotFinished:
        return False


def start_or_resume(
    spec: StudySpec,
    space: SearchSpace,
    folder: Path,
    storage: str | None = None,
    contents: Mapping[str, str] | None = None,
    *,
    ask_price: AskPrice,
) -> OwnStudy:
    """The study for running, made if need be. Trials whose process was killed are marked as failed.

    Args:
        spec: the study file.
        space: what is searched.
        folder: of the results.
        storage: a database's URL or file, in place of the folder's own.
        contents: the evaluator's identity.
        ask_price: the evaluator's, of configurations.

    Raises:
        SpecError: the study exists and was made with other settings or other contents.
        SplitsearchError: what is kept there cannot be read.
    """
    place = _place(folder, storage)
    folder.mkdir(parents=True, exist_ok=True)
    with _explained(place), alone(folder, "study"):
        study = optuna.create_study(
            study_name=spec.name,
            storage=_database(place),
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        now = {**(contents or {}), _SEARCHED: list(space.partitions)}
        if study.user_attrs.get(_SPEC) is None and not study.get_trials(deepcopy=False):
            _describe(study, spec, now)
        _check_settings(study, spec, place)
        _check_contents(study, spec, place, now)
        fail_dead_trials(study)
        begun = len(study.get_trials(deepcopy=False))
    # A resumed sampler must not draw the numbers again that it drew at the start, nor what another process draws.
    shift = begun + _STREAM_STRIDE * others_at_work(folder)
    sampler = make_sampler(
        spec.search.sampler,
        spec.search.seed,
        space,
        shift,
        ask_price=ask_price,
        limits=spec.constraints,
        once_per_cut=bool(spec.finetune.shared),
    )
    return OwnStudy(study_name=spec.name, storage=study._storage, sampler=sampler)


def check_contents(
    study: optuna.Study, spec: StudySpec, folder: Path, storage: str | None, contents: Mapping[str, str]
) -> None:
    """Raise SpecError where weights, images or code are not those that the study was made with."""
    known = study.user_attrs.get(_CONTENTS, {})
    _check_contents(
        study, spec, _place(folder, storage), {"space.partitions": known.get("space.partitions"), **contents}
    )


def contents_of(study: optuna.Study) -> dict[str, str]:
    """The identity of the evaluator that a study was made with."""
    return dict(study.user_attrs.get(_CONTENTS, {}))


def fail_dead_trials(study: optuna.Study) -> int:
    """Mark running trials as failed whose process is no more. Those of living processes are not touched.

    Returns:
        How many there were.
    """
    dead = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_alive(trial.user_attrs.get(OWNER), trial.datetime_start):
            dead += 1
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # another process did it
                study.tell(trial.number, state=TrialState.FAIL)
    return dead


def _describe(study: optuna.Study, spec: StudySpec, contents: Mapping[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(OBJECTIVES))
    study.set_user_attr(_FORMAT, FORMAT)
    study.set_user_attr(_CONTENTS, dict(contents))
    study.set_user_attr("spec_sha256", spec.digest)
    study.set_user_attr(_SPEC, spec.comparable())  # last: with it the description is whole


def _check_settings(study: optuna.Study, spec: StudySpec, place: str | Path) -> None:
    found = study.user_attrs.get(_FORMAT)
    if found != FORMAT:
        raise _refused(
            spec,
            f"the study '{spec.name}' in {_shown(place)} was made by another version of splitsearch (format "
            f"{found or 1}, {FORMAT} is known here) and cannot be read. Give the study another name or use --out",
        )
    _refuse(spec, place, differing_settings(study.user_attrs.get(_SPEC, {}), spec.comparable()))


def _check_contents(study: optuna.Study, spec: StudySpec, place: str | Path, now: Mapping[str, Any]) -> None:
    then = dict(study.user_attrs.get(_CONTENTS, {}))
    searched = differing_settings({_SEARCHED: then.pop(_SEARCHED, None)}, {_SEARCHED: now[_SEARCHED]})
    digests = {name: value for name, value in now.items() if name != _SEARCHED}
    _refuse(spec, place, [*differing_contents(then, digests), *searched])


def _refuse(spec: StudySpec, place: str | Path, differences: Sequence[str]) -> None:
    if differences:
        advice = f"the study '{spec.name}' in {_shown(place)} was made with other values: {listed(differences)}"
        raise _refused(spec, f"{advice}. Give the study another name, use --out, or undo the change")


def _refused(spec: StudySpec, why: str) -> SpecError:
    error = SpecError("name", spec.name, why)
    error.file = str(spec.file)
    return error


def _place(folder: Path, storage: str | None) -> str | Path:
    """A database's URL, or an SQLite file."""
    if storage is None:
        return folder / "study.db"
    if "://" not in storage and Path(storage).suffix in _SQLITE_FILES:
        return Path(storage)
    try:
        url = sqlalchemy.make_url(storage)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise SpecError("--storage", storage, _STORAGES) from None
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:") and not url.query
    return Path(str(url.database)) if is_file else storage


def _database(place: str | Path) -> StudyDatabase:
    if isinstance(place, Path):
        if place.is_file() and place.stat().st_size == 0:
            raise SplitsearchError(f"{place} is empty: writing it was cut short. Remove it and run the study again")
        place.parent.mkdir(parents=True, exist_ok=True)
    return StudyDatabase(place)


def _shown(place: str | Path) -> str:
    """A file, or a URL without its password."""
    return str(place) if isinstance(place, Path) else sqlalchemy.make_url(place).render_as_string()


@contextmanager
def _explained(place: str | Path) -> Iterator[None]:
    """Say in a sentence what is wrong with a storage."""
    try:
        yield
    except ImportError as error:
        raise SpecError("--storage", str(place), f"the driver for this database is not installed ({error})") from None
    except sqlalchemy.exc.ArgumentError as error:  # not readable as a URL, or of an unknown kind
        raise SpecError("--storage", str(place), f"no database can be reached with this URL: {error}") from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise SplitsearchError(_trouble(place, error)) from None
    except (RuntimeError, ValueError) as error:  # another version's tables; attributes that are no JSON
        raise SplitsearchError(_trouble(place, error)) from None


def _trouble(place: str | Path, error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    said = getattr(cause, "orig", None) or cause
    if isinstance(said, sqlite3.OperationalError) or not isinstance(said, sqlite3.DatabaseError | ValueError):
        return f"{_shown(place)} cannot be used: {said}"
    return (
        f"{_shown(place)} is damaged ({said}). Move it away and run the study again; trainings that are kept in the "
        "store are not repeated"
    )
