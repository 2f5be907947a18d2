"""``--storage``: where a study may be kept, read from what the user gave, and in words what is wrong with it."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy

from spaces.errors import SpecError, SplitsearchError

_SQLITE_FILES = (".db", ".sqlite", ".sqlite3")
_JOURNAL, _JOURNAL_FILE, _GRPC = "journal://", ".log", "grpc://"
_GRPC_PORT = 13000  # Optuna's own
_AWAY = (errno.ESTALE, errno.EIO, errno.ENOSPC, errno.ETIMEDOUT, errno.EHOSTDOWN)  # of a disk on another machine
_STORAGES = (
    f"an SQLite file ({', '.join(_SQLITE_FILES)}) or a database's URL is needed: sqlite:///study.db, "
    "postgresql://user@host/name, mysql+pymysql://user@host/name; or a journal on a shared disk: study.log, "
    "journal:///shared/study.log; or Optuna's proxy: grpc://host:13000"
)


@dataclass(frozen=True)
class SqliteFile:
    """A file with an SQLite database."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Database:
    """A database by its URL."""

    url: str

    def __str__(self) -> str:
        """Without the password."""
        return sqlalchemy.make_url(self.url).render_as_string()


@dataclass(frozen=True)
class Journal:
    """A file that every change is appended to; works on network file systems."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Proxy:
    """Optuna's gRPC storage proxy, in front of a database that workers cannot reach themselves."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{_GRPC}{self.host}:{self.port}"


Place = SqliteFile | Database | Journal | Proxy


def read_place(folder: Path, storage: str | None) -> Place:
    """Where a study is kept: in its folder unless something else is given.

    Raises:
        SpecError: no such kind of storage.
    """
    if storage is None:
        return SqliteFile(folder / "study.db")
    if storage.startswith(_GRPC):
        return _proxy(storage)
    if storage.startswith(_JOURNAL):
        return _journal(storage)
    if "://" not in storage and Path(storage).suffix in (*_SQLITE_FILES, _JOURNAL_FILE):
        return Journal(Path(storage)) if storage.endswith(_JOURNAL_FILE) else SqliteFile(Path(storage))
    return _database(storage)


def _journal(storage: str) -> Journal:
    path = storage.removeprefix(_JOURNAL)
    if not path:
        raise SpecError("--storage", storage, _STORAGES)
    return Journal(Path(path))


def _proxy(storage: str) -> Proxy:
    host, colon, port = storage.removeprefix(_GRPC).rstrip("/").rpartition(":")
    if not colon:
        host, port = port, str(_GRPC_PORT)
    if not host or not port.isdigit():
        raise SpecError("--storage", storage, _STORAGES)
    return Proxy(host=host, port=int(port))


def _database(storage: str) -> Place:
    try:
        url = sqlalchemy.make_url(storage)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise SpecError("--storage", storage, _STORAGES) from None
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:") and not url.query:
        return SqliteFile(Path(str(url.database)))
    if url.drivername == "postgresql":  # SQLAlchemy would take the old driver
        url = url.set(drivername="postgresql+psycopg")
    return Database(url.render_as_string(hide_password=False))


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Say in a sentence what is wrong with a storage.

    Raises:
        SpecError: it cannot be one, or its driver is not installed.
        SplitsearchError: it cannot be reached, or is damaged.
    """
    try:
        yield
    except ImportError as error:
        raise SpecError("--storage", str(place), _missing(place, error)) from None
    except sqlalchemy.exc.ArgumentError as error:  # not readable as a URL, or of an unknown kind
        raise SpecError("--storage", str(place), f"no database can be reached with this URL: {error}") from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise SplitsearchError(_trouble(place, error)) from None
    except (RuntimeError, ValueError) as error:  # another version's tables; attributes that are no JSON
        raise SplitsearchError(_trouble(place, error)) from None
    except Exception as error:
        if not is_unreachable(error):
            raise
        raise SplitsearchError(f"{place} cannot be used: {in_words(error)}") from None


def is_unreachable(error: BaseException) -> bool:
    """Whether an error says that a storage does not answer just now, and may again: it restarts, is locked, is full."""
    cause = _cause(error)
    if isinstance(cause, OSError) and cause.errno in _AWAY:
        return True
    said = getattr(cause, "orig", None)
    if isinstance(said, sqlite3.Error):
        return isinstance(said, sqlite3.OperationalError) and any(
            each in str(said) for each in ("locked", "unable to open", "disk I/O", "full")
        )
    if isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
        return True
    if isinstance(cause, sqlalchemy.exc.DBAPIError):
        return cause.connection_invalidated
    code = getattr(cause, "code", None)  # grpc.RpcError, of a package that may not be there
    return type(cause).__module__.startswith("grpc") and callable(code) and code().name == "UNAVAILABLE"


def in_words(error: BaseException) -> str:
    """What a storage said, on one line."""
    cause = _cause(error)
    details = getattr(cause, "details", None)
    said = details() if callable(details) else getattr(cause, "orig", None) or cause
    return " ".join(str(said).split())


def _cause(error: BaseException) -> BaseException:
    """The driver's error behind Optuna's."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else None
    return cause or error


def _missing(place: Place, error: ImportError) -> str:
    if isinstance(place, Proxy):
        return f"Optuna's proxy needs the package grpcio: pip install 'splitsearch[grpc]' ({error})"
    extra = ": pip install 'splitsearch[postgresql]'" if str(place).startswith("postgresql") else ""
    return f"the driver for this database is not installed{extra} ({error})"


def _trouble(place: Place, error: BaseException) -> str:
    cause = _cause(error)
    said = getattr(cause, "orig", None) or cause
    if isinstance(said, sqlite3.OperationalError) or not isinstance(said, sqlite3.DatabaseError | ValueError):
        return f"{place} cannot be used: {said}"
    return (
        f"{place} is damaged ({said}). Move it away and run the study again; trainings that are kept in the "
        "store are not repeated"
    )
