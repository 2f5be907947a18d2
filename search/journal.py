"""Optuna's journal file, where a line that a killed process left half written harms nobody."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file


def open_journal(path: Path) -> JournalStorage:
    """The journal at a path, made if there is none."""
    return JournalStorage(_WholeLines(str(path)))


class _WholeLines(JournalFileBackend):
    """Takes away what stands after the last end of a line before it appends.

    Optuna would append to it, and from then on nobody could read the file.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with get_lock_file(self._lock):
            self._cut_torn_line()
        super().append_logs(logs)

    def _cut_torn_line(self) -> None:
        with open(self._file_path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            whole = end
            while whole > 0:
                start = max(0, whole - 4096)
                file.seek(start)
                at = file.read(whole - start).rfind(b"\n")
                if at >= 0:
                    whole = start + at + 1
                    break
                whole = start
            if whole < end:
                file.truncate(whole)
