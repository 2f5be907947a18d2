"""Picture files in folders: which ones count, reading them, and a digest of their content. No torch here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from evaluators.edge.picture import PictureError, PictureFormat, open_picture
from spaces.errors import SpecError

# What Pillow reads by itself. Of an animation the first frame counts.
PICTURE_ENDINGS = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
# What macOS, Windows, Synology and file systems leave in folders and archives, beside names that begin with a dot.
_CLUTTER = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini"}
_READERS = 4  # files on a disk or network drive are waited for, not computed
_BATCH = 64  # files a task; one each would cost more than reading them


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is an operating system's, not a part of a data set."""
    return name.startswith(".") or name.lower() in _CLUTTER


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that may belong to a data set, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_clutter(path.name))


def pictures_below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All picture files in a folder and those inside it, by path; and how often each other ending occurs there."""
    files = sorted(path for path in folder.glob("**/*") if not _is_clutter_below(folder, path) and not path.is_dir())
    found = [path for path in files if path.suffix.lower() in PICTURE_ENDINGS]
    others = Counter(path.suffix.lower() or "no ending" for path in files)
    return found, Counter({ending: count for ending, count in others.items() if ending not in PICTURE_ENDINGS})


def _is_clutter_below(folder: Path, path: Path) -> bool:
    return any(map(is_clutter, path.relative_to(folder).parts))


def read_picture(path: Path, picture: PictureFormat) -> np.ndarray:
    """As ``open_picture``, for data sets: a picture that cannot be read is a SpecError that names its file."""
    try:
        return open_picture(path, picture)
    except PictureError as error:
        raise SpecError("data.root", str(path), str(error).removeprefix(f"{path}: ")) from None


def content_digest(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over names and bytes of files, in the order given. The names tell them apart, wherever they lie."""
    rows = list(files)
    batches = [[path for _, path in rows[start : start + _BATCH]] for start in range(0, len(rows), _BATCH)]
    with ThreadPoolExecutor(_READERS) as pool:
        each = [digest for digests in pool.map(_digests, batches) for digest in digests]
    whole = hashlib.sha256()
    for (name, _), digest in zip(rows, each, strict=True):
        whole.update(f"{len(name)} {name}".encode(errors="surrogateescape") + digest)
    return whole.hexdigest()


def _digests(paths: Sequence[Path]) -> list[bytes]:
    return [_digest(path) for path in paths]


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise SpecError("data.root", str(path), f"cannot be read: {error.strerror}") from None
