"""``Section``: a mapping of a YAML file, read strictly. Study files and hardware profiles are made of these."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

from spaces.config import is_number
from spaces.errors import SpecError, nearest

_log = logging.getLogger("splitsearch")
_MISSING = object()


class Section:
    """One mapping of a YAML file. Keys are taken out one by one; what is left at the end is unknown.

    Args:
        key: dotted path of the mapping in its file, for messages; empty for the whole file.
        value: what stands there.

    Raises:
        SpecError: it is no mapping.
    """

    def __init__(self, key: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise SpecError(key or "(whole file)", value, "a mapping of keys to values is needed")
        self._key, self._left = key, dict(value)
        self._known: set[str] = set()

    def path(self, name: object) -> str:
        """Dotted path of a key in its file, for messages."""
        return f"{self._key}.{name}" if self._key else str(name)

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """A value as it stands. Raises SpecError when it is absent and there is no default."""
        self._known.add(name)
        value = self._left.pop(name, default)
        if value is _MISSING:
            raise SpecError(self.path(name), None, "this key is needed" + self._meant(name))
        return value

    def _meant(self, name: str) -> str:
        """The key that stands there and may have been meant for one that is missing, in words; or nothing."""
        near = difflib.get_close_matches(name, map(str, self._left), n=1)
        near += [key for key in map(str, self._left) if name.startswith(f"{key}_")]
        return f"; '{near[0]}' stands there" if near else ""

    def renamed(self, old: str, new: str) -> None:
        """Take a key's former name for the key, with a warning.

        Raises:
            SpecError: both names stand there.
        """
        if old not in self._left:
            return
        if new in self._left:
            raise SpecError(self.path(old), self._left[old], f"it is called '{new}' now, which stands there too")
        _log.warning("%s is called %s now; the old name will not always be read", self.path(old), self.path(new))
        self._left[new] = self._left.pop(old)

    def text(self, name: str, default: Any = _MISSING) -> Any:
        """A string."""
        value = self.take(name, default)
        if value is not default and not (isinstance(value, str) and value):
            raise SpecError(self.path(name), value, "a text is needed")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise SpecError(self.path(name), value, "true or false is needed")
        return value

    def whole(self, name: str, default: Any = _MISSING, *, minimum: int = 1) -> int:
        """A whole number from ``minimum``."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise SpecError(self.path(name), value, f"a whole number from {minimum} is needed")
        return value

    def number(
        self, name: str, default: Any = _MISSING, *, minimum: float | None = None, above: float | None = None
    ) -> float | None:
        """A number with a lower bound, or the default."""
        value = self.take(name, default)
        if value is default:
            return value
        low = is_number(value) and (minimum is None or value >= minimum) and (above is None or value > above)
        if not low:
            bound = f"from {minimum:g}" if minimum is not None else f"above {above:g}"
            raise SpecError(self.path(name), value, f"a number {bound} is needed")
        return float(value)

    def choice(self, name: str, default: str | None, allowed: Sequence[str]) -> str:
        """One of a few texts; without a default, absence is refused too."""
        value = self.take(name, default)
        if value not in allowed:
            words = f"{', '.join(allowed[:-1])} and {allowed[-1]} are" if len(allowed) > 1 else f"{allowed[0]} is"
            raise SpecError(self.path(name), value, f"{words} allowed")
        return str(value)

    def has(self, name: str) -> bool:
        """Whether a key stands there and was not taken yet."""
        return name in self._left

    def section(self, name: str, optional: bool = False) -> Section:
        """A mapping inside this one."""
        return Section(self.path(name), self.take(name, {} if optional else _MISSING))

    def rest(self) -> dict[str, Any]:
        """All that was not taken, for whoever checks it."""
        return self._left

    def finish(self) -> None:
        """Raise SpecError for a key that nobody took."""
        for name in self._left:
            raise SpecError(self.path(name), self._left[name], f"no such key; {nearest(str(name), self._known)}")
