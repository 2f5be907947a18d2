"""The one exception tree.

SplitsearchError            anything a user can act on; exit code 1
|- SpecError                a study file, profile or argument that cannot be right; exit code 2
|- InfeasibleSplit          a configuration that cannot run; becomes a violated constraint, not a failure
|- MeasurementError         a device that gave no usable timing
`- NotFinished              asked for results that are not there yet
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SplitsearchError(Exception):
    """Something a user can act on. The message is one line: what was given, what is allowed, what to do next."""

    exit_code = 1


class SpecError(SplitsearchError):
    """Bad input, found before any work was done.

    Args:
        key: dotted path of the offending key, ``space.bits``.
        given: what stands there.
        allowed: what may stand there, in words; may go on with what to do.
    """

    exit_code = 2

    def __init__(self, key: str, given: object, allowed: str) -> None:
        super().__init__(key, given, allowed)
        self.key, self.given, self.allowed, self.file = key, given, allowed, ""

    def __str__(self) -> str:
        place = f"{self.file}: " if self.file else ""
        return f"{place}{self.key}: {shown(self.given)} given; {self.allowed}"

    def inside(self, section: str) -> SpecError:
        """The same error, its key one level further down."""
        self.key = f"{section}.{self.key}" if self.key else section
        return self


class InfeasibleSplit(SplitsearchError):
    """A configuration that cannot run; the message is the reason."""


class MeasurementError(SplitsearchError):
    """A device that could not be measured."""


class NotFinished(SplitsearchError):
    """Results that do not exist yet; the message says which command makes them."""


def shown(value: object) -> str:
    """A value as a user would have typed it."""
    if value is None:
        return "nothing"
    return f"'{value}'" if isinstance(value, str) else str(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? known: x, y, z`` for a name that does not exist; of many names, those that are near."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=6)
    if close and len(names) > 20:
        return f"did you mean '{close[0]}'? near it: {', '.join(close[1:])}; {len(names)} are known"
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return (f"did you mean '{close[0]}'? " if close else "") + f"known: {listed}"
