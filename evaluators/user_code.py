"""What a study names as ``python:...``: a function of the user's own, from a module or a file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spaces.errors import SpecError

PREFIX = "python:"


def load_factory(name: str, key: str) -> Callable[..., Any]:
    """The function behind ``python:package.module:function`` or ``python:path/to/file.py:function``.

    Args:
        name: as the study has it.
        key: the study's key, for messages.

    Raises:
        SpecError: there is no such thing, or importing it fails.
    """
    place, _, function = name.removeprefix(PREFIX).rpartition(":")
    if not place or not function:
        raise SpecError(key, name, "python:package.module:function or python:path/to/file.py:function is needed")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    except FileNotFoundError:
        raise SpecError(key, name, f"there is no file {place}") from None
    except Exception as error:  # the user's own code, which may raise anything
        raise SpecError(key, name, f"importing it fails: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        known = ", ".join(each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_"))
        raise SpecError(key, name, f"there is no function {function} in it; it has: {known or 'none'}")
    return found  # type: ignore[no-any-return]


def call(factory: Callable[..., Any], **offered: Any) -> Any:
    """Call a factory with those of the offered arguments that it takes."""
    try:
        taken = inspect.signature(factory).parameters
    except ValueError as error:  # a partial function with arguments that the function does not take
        raise TypeError(f"{error}") from None
    anything = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    return factory(**{name: value for name, value in offered.items() if anything or name in taken})


def source_digest(name: str) -> str:
    """SHA-256 of the file behind a ``python:`` name, or of the name where it is a module."""
    place, _, _ = name.removeprefix(PREFIX).rpartition(":")
    content = Path(place).read_bytes() if place.endswith(".py") and Path(place).is_file() else name.encode()
    return hashlib.sha256(content).hexdigest()


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(f"_study_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    with _found_first(path.resolve().parent):
        # Before it runs: dataclasses and pickles look their module up.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return module


def _from_package(name: str) -> Any:
    with _found_first(Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _found_first(folder: Path) -> Iterator[None]:
    """Import from a folder, as Python itself does for a script that lies there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
