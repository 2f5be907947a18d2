"""``cache``: what the store holds for all studies, and room made in it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from evaluators.store import Entry, Store, shared_store
from spaces.errors import SpecError

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power}
_DAY_S = 86400.0


def parse_size(text: str) -> int:
    """Bytes of ``5GB``, ``500 MB``, ``1.5gb`` or ``0``; units are powers of ten.

    Raises:
        SpecError: no such size.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([A-Z]*)", text.strip().upper())
    if found is None or found[2] not in _UNITS:
        raise SpecError("--prune", text, "a size is needed: 5GB, 500MB, or 0 to remove everything")
    return int(float(found[1]) * _UNITS[found[2]])


def size_text(size_bytes: float) -> str:
    """``1.5 GB``."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def shown() -> Iterator[RenderableType]:
    """What there is, kind by kind."""
    store = shared_store()
    entries = store.entries()
    if entries:
        yield _table(entries)
    yield _summary(store, entries)


def pruned(limit_bytes: int) -> Iterator[RenderableType]:
    """Make room, then say what went and what is left."""
    store = shared_store()
    gone = store.prune(limit_bytes)
    if gone:
        yield _table(gone)
    freed = size_text(sum(entry.size_bytes for entry in gone))
    yield f"removed {len(gone)} {'entry' if len(gone) == 1 else 'entries'}, {freed}"
    yield _summary(store, store.entries())


def _table(entries: Sequence[Entry]) -> Table:
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    table.add_column("kind", no_wrap=True)
    for heading in ("number", "size", "last used"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in sorted({entry.kind for entry in entries}):
        of_kind = [entry for entry in entries if entry.kind == kind]
        size = size_text(sum(entry.size_bytes for entry in of_kind))
        table.add_row(kind, str(len(of_kind)), size, _ago(max(entry.used_s for entry in of_kind)))
    return table


def _ago(then_s: float) -> str:
    days = int((time.time() - then_s) / _DAY_S)
    return "today" if days < 1 else "yesterday" if days == 1 else f"{days} days ago"


def _summary(store: Store, entries: Sequence[Entry]) -> str:
    total = size_text(sum(entry.size_bytes for entry in entries))
    limit = "no limit" if store.limit_bytes is None else f"at most {size_text(store.limit_bytes)}"
    return f"{total} in {store.root} ({limit}; $SPLITSEARCH_CACHE_GB sets that, $SPLITSEARCH_CACHE the place)"
