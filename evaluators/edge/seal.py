"""Keeps a bundle whole: ``files.json`` in each half, with the SHA-256 of its files and the fingerprint of the pair.

Found are damaged copies, halves of two bundles side by side, and changes by whoever cannot also change the other half:
the fingerprint is made of both halves' files, so a half that was altered and sealed anew no longer fits its other half.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

FILE = "files.json"
FORMAT = 1
SIDES = ("device", "server")
_RUNS = {".py", ".so", ".onnx"}  # what would be run although nobody listed it
_CHUNK_BYTES = 1 << 20


class SealError(ValueError):
    """A half that is not as it was exported; the message says which file and what to do."""


@dataclass(frozen=True)
class Seal:
    """What a half says of itself once its files are checked: the bundle's name, and the fingerprint of the pair."""

    name: str
    fingerprint: str


def write(bundle: Path, name: str) -> str:
    """Seal the folders ``device`` and ``server`` of a bundle as they are now.

    Args:
        bundle: the folder that holds both.
        name: of the bundle, as servers offer it to clients.

    Returns:
        The fingerprint of the pair.
    """
    files = {side: _digests(bundle / side) for side in SIDES}
    halves = {side: _digest_of(listed) for side, listed in files.items()}
    fingerprint = _fingerprint(name, halves)
    for side, listed in files.items():
        about = {"format": FORMAT, "name": name, "fingerprint": fingerprint, "halves": halves, "sha256": listed}
        (bundle / side / FILE).write_text(json.dumps(about, indent=1) + "\n")
    return fingerprint


def check(folder: Path, side: str) -> Seal:
    """Compare every file of a half with what was written down at export.

    Args:
        folder: the half.
        side: ``device`` or ``server``.

    Raises:
        SealError: a file is missing, changed, added or outside of the folder, or nothing was written down.
    """
    about = _read(folder / FILE)
    listed = about["sha256"]
    for name, digest in listed.items():
        _check_file(folder, name, digest)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _RUNS and name not in listed:
            raise SealError(f"{path}: is not part of the bundle; remove it, or copy the folder again")
    known = {**about["halves"], side: _digest_of(listed)}
    if about["fingerprint"] != _fingerprint(about["name"], known):
        raise SealError(f"{folder / FILE}: does not fit the files that it lists; copy the folder again")
    return Seal(about["name"], about["fingerprint"])


def _read(path: Path) -> dict:
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise SealError(f"{path}: format {about['format']!r} given, {FORMAT} known here; export the bundle again")
        if not (isinstance(about["sha256"], dict) and isinstance(about["halves"], dict)):
            raise TypeError("two objects are needed")
        return {key: about[key] for key in ("name", "fingerprint", "halves", "sha256")}
    except FileNotFoundError:
        raise SealError(f"{path}: not there, so this is no half of a bundle; export it with this version") from None
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SealError(f"{path}: damaged ({type(error).__name__}: {error}); copy the folder again") from None


def _check_file(folder: Path, name: str, digest: str) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise SealError(f"{folder / FILE}: {name!r} leads out of the folder; nothing was opened")
    if not path.is_file():
        raise SealError(f"{path}: missing; copy the folder again")
    if _file_digest(path) != digest:
        raise SealError(f"{path}: is not the file that was exported (SHA-256 differs); copy the folder again")


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path there."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILE]
    return {
        path.relative_to(folder).as_posix(): _file_digest(path) for path in paths if "__pycache__" not in path.parts
    }


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _fingerprint(name: str, halves: dict[str, str]) -> str:
    return _digest_of([FORMAT, name, halves])[:32]
