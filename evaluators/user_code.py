"""What a study names as ``python:...``: a function of the user's own, from a module or a file.

User code imports what lies beside it, while it is loaded, while its functions run, and later on. Two folders may hold
modules of the same name, and a file may change between two loads in one process. So each folder has modules of its own:
they are those in ``sys.modules`` while code from that folder is loaded or called, and afterwards too where no other
module had the name before.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from spaces.errors import SpecError

PREFIX = "python:"
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()


def without_folder(name: str) -> str:
    """``python:mine.py:net`` for ``python:/home/ann/mine.py:net``; any other name as it is."""
    file, _, function = name.removeprefix(PREFIX).rpartition(":")
    return f"{PREFIX}{Path(file).name}:{function}" if name.startswith(PREFIX) and file.endswith(".py") else name


def load_factory(name: str, key: str) -> Callable[..., Any]:
    """The function behind ``python:package.module:function`` or ``python:path/to/file.py:function``.

    Its source is read anew each time, with what it imports from beside it if any of that has changed.

    Args:
        name: as the study has it.
        key: the study's key, for messages.

    Raises:
        SpecError: there is no such thing, or importing it fails.
    """
    place, function = _parts(name)
    if not place or not function:
        raise SpecError(key, name, "python:package.module:function or python:path/to/file.py:function is needed")
    if place.endswith(".py") and not Path(place).is_file():
        raise SpecError(key, name, f"there is no file {place}")
    try:
        with _environment(place):
            module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # the user's own code, which may raise anything
        raise SpecError(key, name, f"importing it fails: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        known = ", ".join(each for each in vars(module) if callable(getattr(module, each)) and not each.startswith("_"))
        raise SpecError(key, name, f"there is no function {function} in it; it has: {known or 'none'}")
    return _in_environment(found, place)


def call(factory: Callable[..., Any], **offered: Any) -> Any:
    """Call a factory with those of the offered arguments that it takes."""
    try:
        taken = inspect.signature(factory).parameters
    except ValueError as error:  # a partial function with arguments that the function does not take
        raise TypeError(f"{error}") from None
    anything = any(each.kind is each.VAR_KEYWORD for each in taken.values())
    return factory(**{name: value for name, value in offered.items() if anything or name in taken})


def source_digest(name: str) -> str:
    """SHA-256 of the code behind a ``python:`` name and of all that it imports from beside it, wherever that lies.

    Imports are read from the source, those inside functions too. Of an installed package all files count; code that
    is not there counts by its name.
    """
    place, _ = _parts(name)
    folder = _folder(place)
    digest = hashlib.sha256()
    for path in _sources(place, folder) or [Path(place)]:
        content = path.read_bytes() if path.is_file() else b""
        named = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        digest.update(f"{named} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _parts(name: str) -> tuple[str, str]:
    """The file or module, and the function."""
    place, _, function = name.removeprefix(PREFIX).rpartition(":")
    return place, function


def _folder(place: str) -> Path:
    """Where imports of a file or module are looked for first: beside the file, or where the package lies."""
    if place.endswith(".py"):
        return Path(place).resolve().parent
    top = Path.cwd() / place.partition(".")[0]
    if not (top.is_dir() or top.with_suffix(".py").is_file()) and (found := _found_elsewhere(top.name)):
        return found
    return Path.cwd()


def _found_elsewhere(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [])
    if places:
        return Path(places[0]).resolve().parent
    return Path(spec.origin).resolve().parent if spec.has_location and spec.origin else None


# -- running it --------------------------------------------------------------------------------------------------------

_loaded: dict[Path, dict[str, tuple[ModuleType, bytes]]] = {}  # by folder and name, with the source that was loaded


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    # Files of one name in two folders are two modules.
    module = ModuleType(f"_study_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}")
    module.__file__ = str(path)
    code = compile(path.read_bytes(), str(path), "exec")  # not by a loader, which may take bytecode of an older source
    # Before it runs: dataclasses and pickles look their module up.
    sys.modules[module.__name__] = module
    exec(code, module.__dict__)
    return module


def _in_environment(function: Callable[..., Any], place: str) -> Callable[..., Any]:
    """The function, finding the modules beside it when it is called."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with _environment(place):
            return function(*args, **kwargs)

    return called


@contextmanager
def _environment(place: str) -> Iterator[None]:
    """Run user code as Python itself would run a script that lies there, without arguments."""
    kept = sys.argv, sys.dont_write_bytecode
    sys.argv, sys.dont_write_bytecode = [place], True
    importlib.invalidate_caches()
    folder = _folder(place)
    try:
        with contextlib.nullcontext() if _is_installed(folder) else _modules_of(folder, place):
            yield
    except SystemExit as error:  # not an Exception, which callers turn into a message
        raise RuntimeError(
            f"it ends the program (exit code {error.code}), as argparse does where it misses arguments; put what is "
            "for the command line below if __name__ == '__main__':"
        ) from error
    finally:
        sys.argv, sys.dont_write_bytecode = kept


@contextmanager
def _modules_of(folder: Path, place: str) -> Iterator[None]:
    """Put a folder's own modules in place of others of the same names; those return afterwards."""
    own = _loaded.setdefault(folder, {})
    if any(_source(module) != source for module, source in own.values()):
        for name, (module, _) in own.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        own.clear()
    beside = {path.relative_to(folder).parts[0].removesuffix(".py") for path in _sources(place, folder)}
    names = (beside | {_top(name) for name in own}) - sys.stdlib_module_names
    hidden = {name: module for name, module in sys.modules.items() if _top(name) in names and not _in(module, folder)}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update({name: module for name, (module, _) in own.items()})
    others = {_top(name) for name in sys.modules} - {_top(name) for name in own}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # for imports inside methods that run later; last, so that it hides nothing
        for name, module in list(sys.modules.items()):
            if _top(name) not in others and _in(module, folder):
                own[name] = module, _source(module)
        for name in [name for name in own if _top(name) in {_top(each) for each in hidden}]:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _in(module: ModuleType, folder: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]  # of a folder of modules the latter
    place = next((Path(each) for each in places if isinstance(each, str)), None)
    return place is not None and place.is_relative_to(folder) and not _is_installed(place)


def _is_installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(_STANDARD_LIBRARY)


def _source(module: ModuleType) -> bytes:
    try:
        return Path(str(module.__file__)).read_bytes()
    except OSError:
        return b""


# -- what belongs to it ------------------------------------------------------------------------------------------------


def _sources(place: str, folder: Path) -> list[Path]:
    """The files of user code, without running it, in a fixed order."""
    if _is_installed(folder):
        top = folder / place.partition(".")[0]
        return sorted(top.rglob("*.py")) if top.is_dir() else [top.with_suffix(".py")]
    waiting = [Path(place).resolve()] if place.endswith(".py") else _files_of(folder, place)
    found: dict[Path, None] = {}
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found[path] = None
            waiting += [file for name in _imports(path, folder) for file in _files_of(folder, name)]
    return sorted(found)


def _files_of(folder: Path, name: str) -> list[Path]:
    """The files of a module below a folder and of the packages that it lies in; none if it lies elsewhere."""
    files, place = [], folder
    for part in filter(None, name.split(".")):
        place = place / part
        files += [file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()]
    return files


def _imports(path: Path, folder: Path) -> Iterator[str]:
    """Dotted names of all that a file imports and that may be modules."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = path.relative_to(folder).parent.parts if path.is_relative_to(folder) else ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_call(node):
            yield ast.literal_eval(node.args[0])


def _is_import_call(node: ast.Call) -> bool:
    """Whether this is ``importlib.import_module("name")`` or ``__import__("name")``."""
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    named = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return named and function in ("import_module", "__import__")
