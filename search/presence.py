"""Who works on a study just now. Each process holds a lock file for as long as it lives, however it ends."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

_SAY_AFTER_S = 2.0
_LAST_BEAT_S = 10.0  # for a sign of life that is on its way
_FORGOTTEN_AFTER = timedelta(days=1)  # of a machine whose lock files cannot be seen from here


class Presence:
    """This process at work on a study, from ``with`` to its end. Its trials carry :attr:`owner`."""

    def __init__(self, folder: Path) -> None:
        self._path = (_locks(folder) / f"run-{uuid.uuid4().hex}.lock").resolve()
        self._lock = FileLock(self._path)

    @property
    def owner(self) -> dict[str, Any]:
        """How others find out whether this process is alive. JSON-ready."""
        return {"host": platform.node(), "pid": os.getpid(), "lock": str(self._path)}

    def __enter__(self) -> Presence:
        self._lock.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._lock.release()


def is_alive(owner: Mapping[str, Any] | None, since: datetime | None, *, beats: bool = False) -> bool:
    """Whether the process that began a trial still runs.

    Args:
        owner: what :attr:`Presence.owner` said there; None for a trial that nobody owns.
        since: when the trial began.
        beats: whether the storage knows of signs of life, which then tell of processes on other machines.
    """
    if owner is None:
        return False
    if owner["host"] != platform.node():
        return beats or (since is not None and datetime.now() - since < _FORGOTTEN_AFTER)
    return _is_held(Path(owner["lock"]))


@contextmanager
def beating(beat: Callable[[], None], interval_s: float) -> Iterator[None]:
    """Give a sign of life every so often, from a thread, until the block ends. One that fails is left out."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(interval_s):
            with contextlib.suppress(Exception):
                beat()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LAST_BEAT_S)


@contextmanager
def alone(folder: Path, what: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Do something that only one process of a study may do at a time.

    Args:
        folder: of the study's results.
        what: names the lock.
        waiting: called once if another process has it for longer than a moment.
    """
    lock = FileLock(_locks(folder) / f"{what}.lock")
    try:
        lock.acquire(timeout=_SAY_AFTER_S)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _locks(folder: Path) -> Path:
    place = folder / ".locks"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            path.unlink(missing_ok=True)  # of a process that was killed
    except Timeout:
        return True
    except OSError:  # another user's lock file: who may not open it cannot say
        return True
    return False
