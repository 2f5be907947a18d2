"""A storage that does not answer is waited for: a database server restarts, a disk is full, a network is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from search.backends import Backend
from search.places import in_words, is_unreachable
from spaces.errors import SplitsearchError

LIMIT_S = 600.0  # of waiting without an answer
_FIRST_S, _LONGEST_S = 0.5, 15.0  # of one wait; each is twice the one before

_log = logging.getLogger("splitsearch")
_T = TypeVar("_T")


class StorageGone(SplitsearchError):
    """A storage has not answered for too long."""


class Patience:
    """Does things on a storage, again and again until it answers.

    What is done must be harmless when the storage had done it and only the answer was lost.

    Args:
        backend: is told of every time that it did not answer.
        limit_s: of waiting, before :class:`StorageGone` is raised.
        sleep, clock: in seconds.
    """

    def __init__(
        self,
        backend: Backend,
        limit_s: float = LIMIT_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend, self._limit_s, self._sleep, self._clock = backend, limit_s, sleep, clock

    def __call__(self, action: Callable[[], _T]) -> _T:
        """What the action returns, at last.

        Raises:
            StorageGone: the storage has not answered for ``limit_s`` seconds; says what to do.
        """
        wait_s, since = _FIRST_S, None
        while True:
            try:
                found = action()
            except Exception as error:
                if not is_unreachable(error):
                    raise
                since = self._clock() if since is None else since
                self._missed(error, self._clock() - since, first=wait_s == _FIRST_S)
                self._sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_S)
                continue
            if since is not None:
                _log.warning("the storage answers again after %.0f s", self._clock() - since)
            return found

    def _missed(self, error: Exception, gone_s: float, *, first: bool) -> None:
        self._backend.was_cut_off()
        if gone_s >= self._limit_s:
            raise StorageGone(
                f"the storage has not answered for {gone_s:.0f} s ({in_words(error)}). Trials that had ended are kept "
                "there, and trainings in the store; see that it runs, then give the same command again, which goes on"
            ) from error
        if first:
            _log.warning("the storage does not answer (%s); waiting for it", in_words(error))
