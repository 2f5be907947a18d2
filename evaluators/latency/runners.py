"""Runners: they time the stages of a device or server folder where it is to run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from evaluators import machine_lock
from evaluators.edge.circumstances import machine
from evaluators.result import MOST_OTHERS, MOST_SPREAD, Timing
from spaces.errors import MeasurementError

TIMEOUT_S = 300.0
MOST_ATTEMPTS = 3  # at a timing that does not come out calm


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

    It has the machine alone meanwhile: other measurements and training wait, whoever's they are.

    Args:
        program: what comes before the folder on the process's command line, after Python itself.
    """

    def __init__(self, program: Sequence[str] = ()) -> None:
        self._program = tuple(program)

    def machine(self) -> dict[str, Any]:
        return machine()

    def measure(self, folder: Path, stages: Sequence[str]) -> dict[str, Timing]:
        return read_timings(self.run(folder, ["measure", "--json", "--stages", ",".join(stages)]), stages)

    def run(self, folder: Path, arguments: Sequence[str]) -> str:
        with machine_lock.measuring():
            return self._run(folder, arguments)

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


def timed_calmly(
    measure: Callable[[Sequence[str]], dict[str, Timing]], stages: Sequence[str]
) -> dict[str, list[Timing]]:
    """Time stages, and those again that did not come out calm, up to :data:`MOST_ATTEMPTS` times in all.

    Where nothing but spread speaks against a stage and its last two medians agree, a third would say the same.

    Args:
        measure: times the stages it is given, a :class:`Runner`'s way; one that there is not is left out.
        stages: to be timed.

    Returns:
        Stage to its timings in order; :func:`calmest` chooses among them.
    """
    found: dict[str, list[Timing]] = {}
    for _ in range(MOST_ATTEMPTS):
        for stage, timing in measure(stages).items():
            found.setdefault(stage, []).append(timing)
        stages = [stage for stage in stages if stage in found and _deserves_another(found[stage])]
        if not stages:
            break
    return found


def _deserves_another(timings: Sequence[Timing]) -> bool:
    """Whether something speaks against a stage's timings that another attempt may do without."""
    best = calmest(timings)
    if best.is_calm:
        return False
    return bool(best.throttling) or best.others > MOST_OTHERS or not _agree(timings[-2:])


def _agree(timings: Sequence[Timing]) -> bool:
    medians = [timing.p50_ms for timing in timings]
    return len(medians) > 1 and max(medians) - min(medians) <= MOST_SPREAD * min(medians)


def calmest(timings: Sequence[Timing]) -> Timing:
    """The one that least speaks against: not slowed down, then little other work, then little spread."""
    return min(timings, key=lambda timing: (not timing.is_calm, bool(timing.throttling), timing.others, timing.spread))


def read_timings(text: str, stages: Sequence[str]) -> dict[str, Timing]:
    """Timings from what ``measure --json`` printed; a stage the folder does not have is left out.

    Raises:
        MeasurementError: the text is not such an answer.
    """
    try:
        answer = json.loads(text)
        throttling, others = tuple(answer["throttling"]), float(answer.get("others") or 0.0)
        return {
            stage: Timing(
                p50_ms=float(row["p50_ms"]),
                p90_ms=float(row["p90_ms"]),
                spread=float(row["spread"]),
                repeats=int(row["repeats"]),
                throttling=throttling,
                others=others,
                runs_ms=tuple(float(ms) for ms in row.get("runs_ms", ())),
            )
            for stage, row in answer["stages"].items()
            if stage in stages
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MeasurementError(f"the measurement is not readable ({error!r}): {text[:80]!r}") from None
