"""What running a study needs of a storage besides Optuna's own interface, for databases and for everything else."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib
import json
import sqlite3
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.journal import open_journal
from search.places import Database, Journal, Place, Proxy, SqliteFile
from search.presence import alone
from search.rows import read_trials, uncollected
from spaces.errors import SplitsearchError

OWNER = "owner"  # attribute of a trial: see search.presence
HEARTBEAT_S = 20  # between two signs of life of a running trial
GRACE_S = 120  # without one, until the others take its process for dead
_WAIT_S = 120.0  # for another process that writes
_TRIES, _PAUSE_S = 20, 0.1  # at making tables that others make too
# Locks that end with the connection that took them: at once if free, else by waiting, and given back.
_LOCKS = {
    "postgresql": (
        "SELECT pg_try_advisory_lock(:key)",
        "SELECT pg_advisory_lock(:key)",
        "SELECT pg_advisory_unlock(:key)",
    ),
    "mysql": ("SELECT GET_LOCK(:key, 0)", "SELECT GET_LOCK(:key, -1)", "SELECT RELEASE_LOCK(:key)"),
}


class Backend(ABC):
    """A storage as :mod:`search.drawing` and :mod:`search.objective` use it.

    Of a trial, ``begin`` or ``take_waiting`` is called first, then ``write_params`` unless it had been waiting, then
    ``finish``. The first two, and whatever is read to decide on them, stand inside ``alone("study")``.
    """

    storage: BaseStorage
    is_exclusive: bool  # whether ``alone`` keeps out the processes of other machines as well
    beats: bool  # whether running trials give signs of life that other machines can see

    def __init__(self) -> None:
        self._cut_off_at: float | None = None

    @abstractmethod
    def alone(self, what: str, waiting: Callable[[], None] = lambda: None) -> contextlib.AbstractContextManager[None]:
        """Do something that only one process of a study may do at a time.

        Args:
            what: names the lock.
            waiting: called once if another process has it.
        """

    @abstractmethod
    def begin(self, study_id: int, attributes: Mapping[str, Any]) -> FrozenTrial:
        """A new running trial without parameters, from the first moment with these user attributes."""

    @abstractmethod
    def take_waiting(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> bool:
        """Run a trial that waits, with these user attributes; whether nobody else was faster."""

    @abstractmethod
    def write_params(
        self, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        """All parameters of a running trial."""

    @abstractmethod
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

    def beat(self, trial_id: int) -> None:
        """Give a sign of life of a running trial; raises what the storage raises."""
        return

    def silent_trials(self, study_id: int) -> set[int]:
        """Ids of running trials without a sign of life for too long. None while this process itself was cut off."""
        return set()

    def has_trials(self, study_id: int) -> bool:
        """Whether a study has any, without reading them where that is possible."""
        return bool(self.storage.get_all_trials(study_id, deepcopy=False))

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        """Write the system attributes of studies that are set inside together where that is faster."""
        return contextlib.nullcontext()

    def was_cut_off(self) -> None:
        """Take note that the storage did not answer: others could not give signs of life either."""
        self._cut_off_at = time.monotonic()


class StudyDatabase(RDBStorage, Backend):
    """Optuna's database storage, where what belongs together is written at once.

    Optuna writes each parameter and attribute by itself and waits for the disk each time, some 45 times a trial.

    On a database server ``alone`` is a lock in the database, held by one connection; a trial's parameters are written
    over that same connection, so whoever has lost the lock cannot write them. An SQLite file is for one machine, and
    has a lock file beside it.

    Args:
        place: where it is.
        folder: of the study's results; for a lock file if the database has no locks.
        name: of the study.
    """

    is_exclusive, beats = True, True

    def __init__(self, place: SqliteFile | Database, folder: Path, name: str) -> None:
        self._locks_in = place.path.parent if isinstance(place, SqliteFile) else folder
        self._study_name = name
        self._holder: sqlalchemy.Connection | None = None
        self._together: dict[tuple[int, str], Any] | None = None
        Backend.__init__(self)
        url, how = _engine(place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                url,
                engine_kwargs=how,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
        self.storage = optuna.storages.get_storage(self)

    @contextmanager
    def alone(self, what: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        locks = _LOCKS.get(self.engine.dialect.name)
        if locks is None:
            with alone(self._locks_in, what, waiting):
                yield
            return
        with self._locked(f"{self._study_name}/{what}", locks, waiting) as connection:
            self._holder, before = connection, self._holder
            try:
                yield
            finally:
                self._holder = before

    def begin(self, study_id: int, attributes: Mapping[str, Any]) -> FrozenTrial:
        return self._create_new_trial(study_id, create_trial(state=TrialState.RUNNING, user_attrs={**attributes}))

    def take_waiting(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> bool:
        with self._one_transaction() as session:
            row = models.TrialModel.find_or_raise_by_id(trial._trial_id, session, for_update=True)
            if row.state != TrialState.WAITING:
                return False
            for key, value in attributes.items():
                self._set_trial_attr_without_commit(
                    session, models.TrialUserAttributeModel, trial._trial_id, key, value
                )
            session.add(models.TrialHeartbeatModel(trial_id=trial._trial_id))
            row.state, row.datetime_start = TrialState.RUNNING, datetime.datetime.now()
        return True

    def write_params(
        self, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        rows = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": distribution.to_internal_repr(params[name]),
                "distribution_json": distribution_to_json(distribution),
            }
            for name, distribution in distributions.items()
        ]
        statement = sqlalchemy.insert(models.TrialParamModel)
        if self._holder is not None:
            self._holder.execute(statement, rows)
            self._holder.commit()
            return
        with self._one_transaction() as session:
            session.execute(statement, rows)

    def finish(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float],
        user: Mapping[str, Any],
        system: Mapping[str, Any],
        on_the_way: Sequence[float] = (),
    ) -> None:
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

    def beat(self, trial_id: int) -> None:
        self.record_heartbeat(trial_id)

    def silent_trials(self, study_id: int) -> set[int]:
        if self._cut_off_at is not None and time.monotonic() - self._cut_off_at < GRACE_S:
            return set()
        return set(self._get_stale_trial_ids(study_id))

    def has_trials(self, study_id: int) -> bool:
        query = sqlalchemy.select(models.TrialModel.trial_id).where(models.TrialModel.study_id == study_id).limit(1)
        with self._one_transaction() as session:
            return session.execute(query).first() is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        self._together = {}
        try:
            yield
            together = self._together
        finally:
            self._together = None
        table = models.StudySystemAttributeModel
        rows = [
            {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
            for (study_id, key), value in together.items()
        ]
        with self._one_transaction() as session:
            for row in rows:
                same = (table.study_id == row["study_id"], table.key == row["key"])
                session.execute(sqlalchemy.delete(table).where(*same))
            if rows:
                session.execute(sqlalchemy.insert(table), rows)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Optuna's; inside :meth:`at_once` at its end."""
        if self._together is None:
            super().set_study_system_attr(study_id, key, value)
        else:
            self._together[study_id, key] = value

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Optuna's, in a fraction of the time."""
        with self._one_transaction() as session, uncollected():
            found = read_trials(session, study_id, included_trial_ids, trial_id_greater_than)
        return [trial for trial in found if states is None or trial.state in states]

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Any) -> Any:
        """Optuna's, with the first sign of life in the same transaction."""
        trial = super()._get_prepared_new_trial(study_id, template_trial, session)
        if trial.state == TrialState.RUNNING:
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id))
        return trial

    @contextmanager
    def _locked(self, key: str, locks: Sequence[str], waiting: Callable[[], None]) -> Iterator[sqlalchemy.Connection]:
        at_once, by_waiting, back = map(sqlalchemy.text, locks)
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
        with self.engine.connect() as connection:
            try:
                if not connection.execute(at_once, {"key": number}).scalar():
                    waiting()
                    connection.execute(by_waiting, {"key": number})
                connection.commit()
                yield connection
            except BaseException:
                connection.invalidate()  # closed, the lock with it, whatever went wrong
                raise
            try:
                connection.execute(back, {"key": number})
                connection.commit()
            except sqlalchemy.exc.DBAPIError:  # the server was away meanwhile, and the lock with it
                connection.invalidate()

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


class PlainBackend(Backend):
    """Any other storage of Optuna's, by its plain calls.

    Neither knows locks or signs of life. Processes of one machine keep each other out by a lock file, beside a journal
    or in the folder of the results. Those of other machines may draw at the same moment; whoever finds afterwards that
    an earlier trial has the same configuration gives its own up (see :func:`search.drawing.next_trial`). A lock file on
    a network file system that has locks keeps out other machines too. A trial whose process was killed on another
    machine counts as running for a day.
    """

    is_exclusive, beats = False, False

    def __init__(self, place: Journal | Proxy, folder: Path) -> None:
        super().__init__()
        self._locks_in = place.path.parent if isinstance(place, Journal) else folder
        self.storage = open_journal(place.path) if isinstance(place, Journal) else _proxy(place)

    @contextmanager
    def alone(self, what: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        with alone(self._locks_in, what, waiting):
            yield

    def begin(self, study_id: int, attributes: Mapping[str, Any]) -> FrozenTrial:
        blank = create_trial(state=TrialState.RUNNING, user_attrs={**attributes})
        return self.storage.get_trial(self.storage.create_new_trial(study_id, blank))

    def take_waiting(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> bool:
        # Before, so that nobody sees it running without its owner; after, as somebody else may have come in between.
        self._set_user_attrs(trial._trial_id, attributes)
        if not self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            return False
        self._set_user_attrs(trial._trial_id, attributes)
        return True

    def write_params(
        self, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        for name, distribution in distributions.items():
            self.storage.set_trial_param(trial_id, name, distribution.to_internal_repr(params[name]), distribution)

    def finish(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float],
        user: Mapping[str, Any],
        system: Mapping[str, Any],
        on_the_way: Sequence[float] = (),
    ) -> None:
        self._set_user_attrs(trial_id, user)
        for key, value in system.items():
            self.storage.set_trial_system_attr(trial_id, key, value)
        for step, value in enumerate(on_the_way):
            self.storage.set_trial_intermediate_value(trial_id, step, value)
        self.storage.set_trial_state_values(trial_id, state, list(values) or None)  # last: with it the trial is whole

    def _set_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)


def open_backend(place: Place, folder: Path, name: str) -> Backend:
    """The storage at a place, made if there is none.

    Args:
        place: where it is.
        folder: of the study's results.
        name: of the study.

    Raises:
        SplitsearchError: a file that was cut short; besides what :func:`search.places.explained` explains.
    """
    if isinstance(place, SqliteFile | Journal):
        place.path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(place, SqliteFile) and _stays_empty(place.path):
        raise SplitsearchError(f"{place} is empty: writing it was cut short. Remove it and run the study again")
    if isinstance(place, Journal | Proxy):
        return PlainBackend(place, folder)
    for _ in range(_TRIES - 1):
        try:
            return StudyDatabase(place, folder, name)
        except (
            sqlalchemy.exc.IntegrityError,
            sqlalchemy.exc.ProgrammingError,
            sqlalchemy.exc.OperationalError,
        ) as error:
            if "exists" not in str(error) and "unique" not in str(error).lower():
                raise
            time.sleep(_PAUSE_S)  # another process makes the same tables at this moment
    return StudyDatabase(place, folder, name)


def _stays_empty(path: Path) -> bool:
    """Whether a file is there and empty, and not only because another process has this moment made it."""
    for _ in range(_TRIES):
        if not path.is_file() or path.stat().st_size:
            return False
        time.sleep(_PAUSE_S)
    return True


def _engine(place: SqliteFile | Database) -> tuple[str, dict[str, Any]]:
    """URL and options of SQLAlchemy's engine."""
    if isinstance(place, Database):
        return place.url, {"pool_pre_ping": True}  # a server that was restarted costs no trial
    # Not as a URL: there '?', '%' and '#' in a path mean something else, and to Optuna braces do.
    file = str(place.path)
    return "sqlite:///study.db", {"creator": lambda: sqlite3.connect(file, timeout=_WAIT_S, check_same_thread=False)}


def _proxy(place: Proxy) -> BaseStorage:
    importlib.import_module("grpc")  # Optuna says only at the first call that it is missing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.GrpcStorageProxy(host=place.host, port=place.port)
