"""``Store``: what was made once, kept by content and found again by whoever needs the same.

A key is the SHA-256 of everything a result depends on, so nothing is ever overwritten and nothing goes stale: other
weights, other images or another recipe make another key. An entry is whole or absent, also after ``kill -9``: it is
made in a folder of its own and appears by one rename. Whoever needs an entry that somebody is making waits for it.

On a folder that several machines share, they wait for each other as far as its locks go (flock: NFS 4, CephFS, Lustre
mounted with it). Where locks do nothing, two may make the same at once; the second then finds the first's and throws
its own away, so an entry is whole or absent there too.

    <root>/<kind>/<key>/        an entry; ``entry.json`` in it lists its files with sizes and checksums
    <root>/.making/             entries that are being made; what a killed process left there goes with the next one
    <root>/.unfinished/         checkpoints of long makings, by kind and key; those of a month ago go
    <root>/.locks/              one lock file for each key; a lock ends with the process that holds it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evaluators import machine_lock
from spaces.errors import SpecError

FORMAT = 1
ENTRY = "entry.json"
VALUE = "value.json"
DEFAULT_LIMIT_BYTES = 20_000_000_000
_CHECKSUMMED_FILES = 64  # entries of more files, unpacked archives, are checked by size alone
_SAY_AFTER_S = 2.0
_LEFT_OVER_S = 24 * 3600.0
_GIVEN_UP_S = 30 * 24 * 3600.0  # a long making that nobody has gone on with

_log = logging.getLogger("splitsearch")


def cache_folder(kind: str) -> Path:
    """``$SPLITSEARCH_CACHE/<kind>``, else ``$XDG_CACHE_HOME/splitsearch/<kind>``, else under ``~/.cache``."""
    own = os.environ.get("SPLITSEARCH_CACHE")
    if own:
        return Path(own) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitsearch" / kind


def shared_store() -> Store:
    """The store of this user, shared by all studies.

    Its limit is 20 GB, or ``$SPLITSEARCH_CACHE_GB``.

    Raises:
        SpecError: that is no number of gigabytes.
    """
    given = os.environ.get("SPLITSEARCH_CACHE_GB", "")
    try:
        limit = int(float(given) * 1e9) if given else DEFAULT_LIMIT_BYTES
    except (ValueError, OverflowError):
        raise SpecError("$SPLITSEARCH_CACHE_GB", given, "a number of gigabytes is needed, 20 or 0.5") from None
    return Store(cache_folder("store"), limit_bytes=limit)


@dataclass(frozen=True)
class StoreKey:
    """What a result depends on.

    Attributes:
        kind: what sort of thing it is, ``candidate``; names a folder.
        depends_on: everything that shapes it, JSON-ready: contents as digests, resolved settings, the recipe's version,
            the seed, digests of the keys of other results it was made from.
    """

    kind: str
    depends_on: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of kind and dependencies, hexadecimal."""
        return digest_of([self.kind, self.depends_on])


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One kept result, for people who make room.

    Attributes:
        path: its folder.
        kind: of its key.
        size_bytes: of all its files.
        used_s: when it was last used, in seconds since 1970.
        about: a few words on what it is.
    """

    path: Path
    kind: str
    size_bytes: int
    used_s: float
    about: str


class Store:
    """A folder of results, each under the digest of what it depends on.

    Args:
        root: made when something is kept.
        limit_bytes: the least recently used entries go when there is more than this; None is no limit.
    """

    def __init__(self, root: Path, limit_bytes: int | None = None) -> None:
        self.root, self.limit_bytes = root, limit_bytes
        self._checked: set[Path] = set()

    def get(self, key: StoreKey, make: Callable[[Path], None], about: str = "") -> Path:
        """The folder of an entry, made first if there is none or if it is damaged.

        Args:
            key: what it depends on.
            make: fills an empty folder. Called under the key's lock, so that nobody else makes the same meanwhile; what
                it raises is passed on and leaves nothing behind.
            about: a few words for people, ``layer2.3, AE 0.25, 1 bit``.
        """
        place = self.path(key)
        if self._is_whole(place):
            return self._used(place)
        with self._lock(key):
            if not self._is_whole(place):
                self._discard_damaged(place)
                self._make(place, key, make, about)
        if self.limit_bytes is not None:
            self.prune(self.limit_bytes)
        return self._used(place)

    def value(self, key: StoreKey, make: Callable[[], Any], about: str = "") -> Any:
        """A JSON value, made first if it is not there; see :meth:`get`."""

        def write(folder: Path) -> None:
            (folder / VALUE).write_text(json.dumps(make()))

        return json.loads((self.get(key, write, about) / VALUE).read_text())

    def known_value(self, key: StoreKey) -> Any:
        """A JSON value that is there already, see :meth:`value`; None otherwise."""
        place = self.find(key)
        return None if place is None else json.loads((place / VALUE).read_text())

    def find(self, key: StoreKey) -> Path | None:
        """The folder of an entry that is there and whole; None otherwise. Makes nothing."""
        place = self.path(key)
        return self._used(place) if self._is_whole(place) else None

    def path(self, key: StoreKey) -> Path:
        """Where an entry is, or would be."""
        return self.root / key.kind / key.digest[:40]

    def unfinished(self, key: StoreKey) -> Path:
        """Where a long making may keep what it needs to go on after a stop. Whoever made the entry removes it."""
        place = self.root / ".unfinished" / f"{key.kind}-{key.digest[:40]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def entries(self) -> list[Entry]:
        """All whole entries, the least recently used first."""
        found = []
        for record in self.root.glob(f"[!.]*/*/{ENTRY}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.append(_entry(record))
        return sorted(found, key=lambda entry: entry.used_s)

    def prune(self, limit_bytes: int) -> list[Entry]:
        """Remove the least recently used entries until no more than ``limit_bytes`` are kept.

        Entries that somebody is making, or that this process has used, stay.

        Returns:
            What was removed.
        """
        self._remove_left_overs()
        entries = self.entries()
        total = sum(entry.size_bytes for entry in entries)
        removed = []
        for entry in entries:
            if total <= limit_bytes:
                break
            if entry.path not in self._checked and self._remove(entry):
                total -= entry.size_bytes
                removed.append(entry)
        return removed

    def _make(self, place: Path, key: StoreKey, make: Callable[[Path], None], about: str) -> None:
        with whole_folder(place, self.root / ".making") as folder:
            make(folder)
            record = {"format": FORMAT, "kind": key.kind, "about": about, "made": time.time()}
            record |= {"depends_on": key.depends_on, "files": _listing(folder)}
            (folder / ENTRY).write_text(json.dumps(record, default=str))
        self._checked.add(place)

    def _is_whole(self, place: Path) -> bool:
        return (place in self._checked and place.is_dir()) or _damage(place) == ""

    def _used(self, place: Path) -> Path:
        with contextlib.suppress(OSError):  # a store that may only be read
            os.utime(place / ENTRY)
        self._checked.add(place)
        return place

    def _discard_damaged(self, place: Path) -> None:
        self._checked.discard(place)
        if place.exists():
            _log.warning("%s is damaged (%s) and is made anew", place, _damage(place))
            _remove_folder(place, self.root / ".making")

    def _remove(self, entry: Entry) -> bool:
        lock = FileLock(self._lock_file(entry.kind, entry.path.name))
        try:
            with lock.acquire(timeout=0):
                _remove_folder(entry.path, self.root / ".making")
                return True
        except Timeout:
            return False

    def _remove_left_overs(self) -> None:
        """Folders that killed processes were filling, and checkpoints that nobody goes on with; only old ones, since
        others may be at work.
        """
        for path in (self.root / ".making").glob("*"):
            with contextlib.suppress(OSError):
                name = path.name[1:].partition("-")[0]
                if time.time() - path.stat().st_mtime > _LEFT_OVER_S and not self._is_being_made(name):
                    shutil.rmtree(path, ignore_errors=True)
        for path in (self.root / ".unfinished").glob("*"):
            with contextlib.suppress(OSError):
                newest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
                name = path.name.rpartition("-")[2]
                if time.time() - newest > _GIVEN_UP_S and not self._is_being_made(name):
                    discard(path)

    def _is_being_made(self, name: str) -> bool:
        """Whether somebody holds the lock of an entry, for days maybe."""
        for file in (self.root / ".locks").glob(f"*-{name}.lock"):
            try:
                with FileLock(file).acquire(timeout=0):
                    pass
            except Timeout:
                return True
        return False

    def _lock_file(self, kind: str, name: str) -> Path:
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{kind}-{name}.lock"

    @contextmanager
    def _lock(self, key: StoreKey) -> Iterator[None]:
        lock = FileLock(self._lock_file(key.kind, key.digest[:40]))
        try:
            lock.acquire(timeout=_SAY_AFTER_S)
        except Timeout:
            _log.info("waiting for another process that makes the same (%s)", self.path(key))
            with machine_lock.standing_back():
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-ready value, hexadecimal; the order of keys does not count.

    Raises:
        TypeError: something in it is not JSON.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_folder(target: Path, scratch: Path | None = None) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well and vanishes when it does not.

    Whoever comes second finds the target there and throws its own copy away.

    Args:
        target: its final place.
        scratch: where it is filled, on the same file system; beside the target unless given.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch or target.parent
    scratch.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=scratch))
    try:
        yield partial
        partial.chmod(0o755)
        _flush(partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_whole(target: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; text as UTF-8. A file that is there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _entry(record: Path) -> Entry:
    said = json.loads(record.read_text())
    size = sum(row["bytes"] for row in said["files"].values())
    used = record.stat().st_mtime
    return Entry(path=record.parent, kind=said["kind"], size_bytes=size, used_s=used, about=said["about"])


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Files of an entry with their sizes and, where they are few, their SHA-256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    few = len(files) <= _CHECKSUMMED_FILES
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            **({"sha256": file_digest(path)} if few else {}),
        }
        for path in files
    }


def _damage(place: Path) -> str:
    """What is wrong with an entry, in words; empty for a whole one."""
    try:
        said = json.loads((place / ENTRY).read_text())
        files = said["files"]
        if said["format"] != FORMAT:
            return f"format {said['format']}, {FORMAT} is known here"
        for name, row in files.items():
            path = place / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != row["bytes"]:
                return f"{name} has {path.stat().st_size} bytes of {row['bytes']}"
            if "sha256" in row and file_digest(path) != row["sha256"]:
                return f"{name} has other content than was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{ENTRY} is missing or not readable"
    return ""


def _flush(folder: Path) -> None:
    """Have the contents on disk before the name: else a power cut may leave the name without them."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    if len(files) > _CHECKSUMMED_FILES:
        os.sync()
        return
    for path in files:
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())


def _remove_folder(place: Path, scratch: Path) -> None:
    """Out of sight by one rename, so that nobody ever sees half an entry; then gone."""
    scratch.mkdir(parents=True, exist_ok=True)
    grave = Path(tempfile.mkdtemp(prefix=".removed-", dir=scratch))
    with contextlib.suppress(FileNotFoundError):
        place.rename(grave / place.name)
    shutil.rmtree(grave, ignore_errors=True)
