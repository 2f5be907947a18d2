"""What a study is: values that shape its results, as dotted keys, and in words what differs between two of them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.store import digest_of

_MOST_LEAVES = 60  # of a table that is kept value by value; of a longer one the digest says whether it is the same
_MOST_SHOWN = 8
_DIGEST = "sha256:"

# What an evaluator calls its digests, in words for people.
_CONTENTS = {
    "weights": "the model's weights",
    "network": "the network",
    "images": "the images",
    "code": "the code that the study names",
    "rungs": "the pictures that cheap rungs are scored on",
    "recipe": "the way of training in this version of splitsearch",
    "heads": "the way that this version trains distilled heads",
    "references": "the way that this version fine-tunes the networks of baselines",
}


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """A value as dotted keys and JSON values: dataclasses and mappings taken apart, of a path the name alone.

    A mapping of very many values, such as a recorded profile's timings, becomes one digest.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, Mapping):
        return {key: _plain(value)}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{key}.{name}" if key else str(name))
    return found if len(found) <= _MOST_LEAVES or not key else {key: _DIGEST + digest_of(found)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def differing_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``link.rate_mb_per_s (was 1.0, is 5.0)`` for each key whose values differ."""
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return [f"{key} (was {_shown(then.get(key))}, is {_shown(now.get(key))})" for key in keys]


def differing_contents(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``the images differ (were 1f0c33a2, are 77b1e0d4)`` for each digest of an evaluator's identity that differs."""
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return [
        f"{_CONTENTS.get(key, key)} differ{'' if key in ('weights', 'images', 'rungs') else 's'} "
        f"(before {_shown(then.get(key))}, now {_shown(now.get(key))})"
        for key in keys
    ]


def listed(differences: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(differences) - _MOST_SHOWN
    return ", ".join(differences[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    if isinstance(value, str) and (value.startswith(_DIGEST) or len(value) == 64):
        return value.removeprefix(_DIGEST)[:8]
    return "nothing" if value is None else repr(value)
