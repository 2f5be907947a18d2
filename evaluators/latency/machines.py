"""Machines that time the stages of a folder: this one, or one that is known through a published latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evaluators.latency.profiles import MachineProfile
from evaluators.latency.runners import Runner
from evaluators.latency.table import StageTable
from evaluators.result import Source, Timing


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device or server as the composition sees it.

    Attributes:
        profile: what the study names.
        runner: takes the timings.
        table: remembers them.
        factor: what a timing is multiplied with; 1 when it is taken on the machine itself.
    """

    profile: MachineProfile
    runner: Runner
    table: StageTable
    factor: float = 1.0

    @property
    def source(self) -> Source:
        """Measured, or modelled when a factor stands between the timing and the machine."""
        return Source.MODELLED if self.profile.reference else Source.MEASURED

    def timings(self, keys: Mapping[str, str], folder: Callable[[], Path]) -> dict[str, Timing]:
        """Timings of stages on this machine, measuring those never measured before.

        Args:
            keys: stage to what its latency depends on, ``layer1.0/r0.25``.
            folder: makes the folder to measure; only called when something is missing.
        """
        own = {stage: f"{self.profile.threads} threads: {stage} of {key}" for stage, key in keys.items()}
        raw = self.table.get(own, lambda missing: self.runner.measure(folder(), missing))
        return {stage: timing.scaled(self.factor) for stage, timing in raw.items()}

    def describe(self) -> dict[str, object]:
        """Name, source, factor and the reference behind it. JSON-ready."""
        reference = self.profile.reference
        return {
            "name": self.profile.name,
            "source": str(self.source),
            "threads": self.profile.threads,
            "factor": self.factor,
            "reference": vars(reference) if reference else None,
        }
