"""Runners: they time the stages of a device or server folder where it is to run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from evaluators.edge.circumstances import machine
from evaluators.result import Timing
from spaces.errors import MeasurementError

TIMEOUT_S = 300.0
WAIT_S = 1800.0  # for other processes' measurements


class Runner(Protocol):
    """Runs ``measure`` in a device or server folder (see ``evaluators/edge/measure.py``)."""

    def measure(self, folder: Path, stages: Sequence[str]) -> dict[str, Timing]:
        """A timing of each stage. Raises MeasurementError when there is no usable answer."""
        ...

    def run(self, folder: Path, arguments: Sequence[str]) -> str:
        """What the folder's program prints. Raises MeasurementError with the program's own last words if it fails."""
        ...

    def machine(self) -> dict[str, Any]:
        """The machine that measures, as ``evaluators/edge/circumstances.py`` describes one; empty if it is not known
        yet.
        """
        ...


class LocalRunner:
    """This machine: the folder runs as a process of its own, as it would on a device.

    One measurement at a time, whichever process asks: the others wait.

    Args:
        program: what comes before the folder on the process's command line, after Python itself.
    """

    def __init__(self, program: Sequence[str] = ()) -> None:
        self._program = tuple(program)

    def machine(self) -> dict[str, Any]:
        """See :class:`Runner`."""
        return machine()

    def measure(self, folder: Path, stages: Sequence[str]) -> dict[str, Timing]:
        """See :class:`Runner`."""
        return read_timings(self.run(folder, ["measure", "--json", "--stages", ",".join(stages)]), stages)

    def run(self, folder: Path, arguments: Sequence[str]) -> str:
        """See :class:`Runner`."""
        lock = FileLock(Path(tempfile.gettempdir()) / "splitsearch-measuring.lock", timeout=WAIT_S)
        try:
            with lock:
                return self._run(folder, arguments)
        except Timeout:
            raise MeasurementError(
                f"other measurements have kept this machine busy for {WAIT_S:g} s; try again when they are done"
            ) from None

    def _run(self, folder: Path, arguments: Sequence[str]) -> str:
        command = [sys.executable, *self._program, str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise MeasurementError(
                f"measuring {folder} took over {TIMEOUT_S:g} s; is the machine overloaded?"
            ) from None
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines() or ["no message"]
            raise MeasurementError(f"measuring {folder} failed: {reason[-1]}")
        return done.stdout


def read_timings(text: str, stages: Sequence[str]) -> dict[str, Timing]:
    """Timings from what ``measure --json`` printed; a stage the folder does not have is left out.

    Raises:
        MeasurementError: the text is not such an answer.
    """
    try:
        answer = json.loads(text)
        throttling = tuple(answer["throttling"])
        return {
            stage: Timing(
                p50_ms=float(row["p50_ms"]),
                p90_ms=float(row["p90_ms"]),
                spread=float(row["spread"]),
                repeats=int(row["repeats"]),
                throttling=throttling,
            )
            for stage, row in answer["stages"].items()
            if stage in stages
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeasurementError(f"the measurement is not readable ({error!r}): {text[:80]!r}") from None
