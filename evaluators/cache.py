"""Where splitsearch keeps what it made once: unpacked archives and trained baselines."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """``$SPLITSEARCH_CACHE/<kind>``, else ``$XDG_CACHE_HOME/splitsearch/<kind>``, else under ``~/.cache``."""
    own = os.environ.get("SPLITSEARCH_CACHE")
    if own:
        return Path(own) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitsearch" / kind


def file_digest(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well and vanishes when it does not.

    Whoever comes second finds the target there and throws its own copy away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield partial
        try:
            partial.chmod(0o755)
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
