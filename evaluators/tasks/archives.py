"""Where a data set's files are: a folder, an archive beside it, or, when asked, the public archive on the network."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from evaluators.settings import DataSettings
from evaluators.store import StoreKey, cache_folder, file_digest, shared_store, whole_folder
from evaluators.tasks.image_files import folders_in
from spaces.errors import SpecError, SplitsearchError

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
_TRIES = 5
_PAUSE_S = 2.0
_TIMEOUT_S = 60.0
_CHUNK = 1 << 20
_CONTENT = "content"

_log = logging.getLogger("splitsearch")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A public archive and the MD5 of its bytes, as its readers know it."""

    url: str
    md5: str

    @property
    def file_name(self) -> str:
        """The last part of its address."""
        return self.url.rsplit("/", 1)[-1]


def find_root(settings: DataSettings, landmark: str | None = None, public: Sequence[Archive] = ()) -> Path:
    """The folder that holds a data set.

    Args:
        settings: ``root`` is the folder, an archive, or a name to which an archive's ending can be added.
        landmark: a file that must be in it, or in an only folder inside it; without one, an only folder is gone into.
            Folders of operating systems, such as ``__MACOSX``, do not count.
        public: fetched with ``download: true`` where nothing is at ``root``, all of them into one folder.

    Raises:
        SpecError: nothing there, or not what is needed; says how to get it.
        SplitsearchError: the download failed.
    """
    root = _existing(settings.root)
    if root is None and settings.download and public:
        place = settings.root or cache_folder("data") / public[0].file_name.split(".")[0]
        root = place if place.exists() else _downloaded(place, public)
    if root is None:
        raise SpecError("data.root", settings.root and str(settings.root), _how_to_get(settings, public))
    folder = _unpacked(root) if root.is_file() else root
    inner = folders_in(folder)
    if landmark is None:
        return inner[0] if len(inner) == 1 and inner[0].name != "train" else folder
    for candidate in (folder, *inner):
        if (candidate / landmark).is_file():
            return candidate
    raise SpecError("data.root", str(root), f"there is no {landmark} in it")


def fetch(archive: Archive, target: Path) -> None:
    """Download an archive to a file, going on where an earlier attempt stopped, and check its bytes.

    Raises:
        SplitsearchError: the server cannot be reached, or what it sends is not what was expected.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    for attempt in range(1, _TRIES + 1):
        try:
            _fetch_rest(archive.url, partial)
            break
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410)
            if final or attempt == _TRIES:
                have = partial.stat().st_size if partial.exists() else 0
                raise SplitsearchError(
                    f"downloading {archive.url} failed: {error}; {have:,} bytes are kept and the next attempt goes on "
                    f"from there. Or get the file yourself and name it in data.root"
                ) from None
            time.sleep(_PAUSE_S)
    if _md5(partial) != archive.md5:
        partial.unlink()
        raise SplitsearchError(f"{archive.url} is not the file it should be (MD5 {archive.md5} expected); thrown away")
    partial.rename(target)


def _fetch_rest(url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send
            return
        raise
    with response:
        resumed = response.status == 206
        total = int(response.headers.get("Content-Length") or 0) + (have if resumed else 0)
        done, said = have if resumed else 0, -1
        with partial.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                tenth = 10 * done // total if total else 0
                if tenth != said:
                    said = tenth
                    _log.info("downloading %s: %.0f of %.0f MB", url, done / 1e6, total / 1e6)
        if total and done < total:
            raise http.client.IncompleteRead(b"", total - done)


def _downloaded(root: Path, archives: Sequence[Archive]) -> Path:
    """Fetch and unpack; the folder appears whole or not at all. A second process waits for the first."""
    folder = cache_folder("downloads")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{archives[0].file_name}.lock"):
        if not root.exists():
            _fetch_and_unpack(root, archives, [folder / archive.file_name for archive in archives])
    return root


def _fetch_and_unpack(root: Path, archives: Sequence[Archive], files: Sequence[Path]) -> None:
    for archive, file in zip(archives, files):
        if not file.exists():
            fetch(archive, file)
    with whole_folder(root) as folder:
        for file in files:
            _extract(file, folder)
    for file in files:
        file.unlink()


def _existing(root: Path | None) -> Path | None:
    """What is at a place, or the archive of that name; None where there is neither."""
    if root is None:
        return None
    return next((path for ending in ("", *ENDINGS) if os.path.exists(path := Path(f"{root}{ending}"))), None)


def _how_to_get(settings: DataSettings, public: Sequence[Archive]) -> str:
    what = "a folder or archive is needed" if settings.root is None else "no such folder or archive"
    if not public:
        return f"{what}; give the path of either"
    return f"{what}; give the path of either, or download: true fetches {', '.join(a.url for a in public)} there"


def _unpacked(archive: Path) -> Path:
    """The archive's contents in the cache, unpacked there the first time."""
    if not archive.name.endswith(ENDINGS):
        raise SpecError("data.root", str(archive), f"archives end in {', '.join(ENDINGS)}")
    key = StoreKey("archive", {"sha256": file_digest(archive)})
    return shared_store().get(key, lambda folder: _extract(archive, folder / _CONTENT), archive.name) / _CONTENT


def _extract(archive: Path, folder: Path) -> None:
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)
        else:
            with tarfile.open(archive) as packed_tar:
                packed_tar.extractall(folder, filter="data")
    except (RuntimeError, NotImplementedError) as error:  # a password, or a method that zipfile does not know
        raise SpecError("data.root", str(archive), f"cannot be unpacked here ({error}); unpack it yourself") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk or a forbidden folder, not the archive's fault
        raise SpecError("data.root", str(archive), f"a corrupt archive ({error}); get it again") from None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
