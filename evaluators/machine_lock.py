"""One machine, two kinds of work: whoever measures has it alone, whoever trains makes way.

Two locks on files that every user of the machine may open. Training holds ``work`` together with others, and looks at
``gate`` between its steps. A measurement takes ``gate`` first, so no training begins its next step, then ``work``,
which it gets when the steps under way have ended. A lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from spaces.errors import MeasurementError

WAIT_S = 1800.0  # of a measurement, for other measurements and for steps of training
_POLL_S = 0.02


class _Turn:
    """A training's share of the machine."""

    def __init__(self, work: int, gate: int) -> None:
        self._work, self._gate = work, gate

    def take(self) -> None:
        fcntl.flock(self._gate, fcntl.LOCK_SH)  # waits until a measurement is done
        fcntl.flock(self._work, fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def release(self) -> None:
        fcntl.flock(self._work, fcntl.LOCK_UN)

    def make_way(self) -> None:
        if _try(self._gate, fcntl.LOCK_SH):
            fcntl.flock(self._gate, fcntl.LOCK_UN)
            return
        self.release()
        self.take()


_turn: ContextVar[_Turn | None] = ContextVar("turn", default=None)
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def training() -> Iterator[None]:
    """Hold the machine together with other trainings; waits while somebody measures.

    What runs inside calls :func:`make_way` between its steps. Inside another ``training`` it does nothing.
    """
    if _turn.get() is not None:
        yield
        return
    with _opened("work") as work, _opened("gate") as gate:
        turn = _Turn(work, gate)
        turn.take()
        token = _turn.set(turn)
        try:
            yield
        finally:
            _turn.reset(token)


def make_way() -> None:
    """Between two steps of a training: let a measurement that waits have the machine; else returns at once."""
    turn = _turn.get()
    if turn is not None:
        turn.make_way()


@contextmanager
def measuring(wait_s: float = WAIT_S) -> Iterator[None]:
    """Have the machine alone: no other measurement and no step of training runs meanwhile.

    Inside :func:`training` that share is given back for as long. Inside another ``measuring`` it does nothing.

    Raises:
        MeasurementError: others kept the machine busy for ``wait_s`` seconds.
    """
    if _alone.get():
        yield
        return
    with standing_back(), _opened("gate") as gate, _opened("work") as work:
        _take_alone((gate, work), wait_s)
        token = _alone.set(True)
        try:
            yield
        finally:
            _alone.reset(token)


@contextmanager
def standing_back() -> Iterator[None]:
    """Give a training's share of the machine back for as long; outside of one it does nothing.

    For a training that waits for what another one makes: a measurement could otherwise never begin while the other one
    makes way for it.
    """
    turn = _turn.get()
    if turn is None:
        yield
        return
    turn.release()
    try:
        yield
    finally:
        turn.take()


def _take_alone(locks: tuple[int, ...], wait_s: float) -> None:
    end = time.monotonic() + wait_s
    for lock in locks:
        while not _try(lock, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise MeasurementError(
                    f"others have kept this machine busy for {wait_s:g} s; try again when they are done"
                )
            time.sleep(_POLL_S)


def _folder() -> Path:
    """The same for every user and every process of the machine."""
    return Path(os.environ.get("SPLITSEARCH_LOCKS") or tempfile.gettempdir())


@contextmanager
def _opened(name: str) -> Iterator[int]:
    """A lock file that belongs to whoever came first; a lock needs no right to write, and closing ends it."""
    path = _folder() / f"splitsearch-{name}.lock"
    handle = _open_or_create(path)
    try:
        yield handle
    finally:
        os.close(handle)


def _open_or_create(path: Path) -> int:
    # Not O_CREAT on a file that is there: Linux refuses that to all but its owner in folders such as /tmp.
    while True:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            break
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444)
                os.fchmod(made, 0o444)
                os.close(made)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise MeasurementError(f"{path} is no plain file; remove it, it is for locking this machine")
    return handle


def _try(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
