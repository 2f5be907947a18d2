"""A table of measured stages on disk, so that nothing is timed twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluators.result import Timing

FORMAT = 2  # 1 held medians alone


class StageTable:
    """Timings by machine, folder and stage. Head latency, say, is the same for every trial cut at that point."""

    def __init__(self, path: Path) -> None:
        self._path = path
        stored = json.loads(path.read_text()) if path.exists() else {}
        rows = stored["timings"] if stored.get("format") == FORMAT else {}
        self._rows: dict[str, Timing] = {key: Timing.from_dict(row) for key, row in rows.items()}

    def get(self, keys: dict[str, str], measure: Callable[[Sequence[str]], dict[str, Timing]]) -> dict[str, Timing]:
        """Look stages up, measuring those that are missing in one go.

        Args:
            keys: stage to the key it is kept under; equal keys mean equal latency.
            measure: times the stages it is given.

        Returns:
            Stage to timing; a stage that the folder does not have is absent.
        """
        missing = [stage for stage, key in keys.items() if key not in self._rows]
        if missing:
            for stage, timing in measure(missing).items():
                self._rows[keys[stage]] = timing
            self._save()
        return {stage: self._rows[key] for stage, key in keys.items() if key in self._rows}

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".part")
        rows = {key: timing.to_dict() for key, timing in self._rows.items()}
        partial.write_text(json.dumps({"format": FORMAT, "timings": rows}, indent=0))
        os.replace(partial, self._path)
