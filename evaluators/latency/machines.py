"""Machines: each answers what stages take, by one of the ways that profiles know."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evaluators.latency.fit import LatencyFit
from evaluators.latency.profiles import Fitting, MachineProfile, Recording
from evaluators.latency.runners import Runner
from evaluators.latency.table import StageTable
from evaluators.result import Job, Source, Timing
from spaces.errors import SpecError

Timings = dict[str, Timing]  # by stage


class Machine(Protocol):
    """A device or a server as the composition sees it."""

    @property
    def profile(self) -> MachineProfile:
        """What the study names."""
        ...

    def timings(self, jobs: Mapping[str, Job], folder: Callable[[], Path]) -> Timings:
        """How long stages take.

        Args:
            jobs: what each depends on.
            folder: makes the folder to measure, see ``evaluators/folders.py``; only called when something has to be
                measured that never was before.

        Returns:
            Stage to timing; a stage that the folder does not have is absent.

        Raises:
            NotRecorded: a profile does not know a head or a tail.
            MeasurementError: the machine did not answer.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """``name``, ``source``, ``how`` in words, and what else there is to know. JSON-ready."""
        ...


class NotRecorded(SpecError):
    """A profile that lacks a head or a tail which the study asks for."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """A machine at hand, here or over SSH: stages are timed once and remembered.

    Attributes:
        runner: takes the timings.
        table: remembers them.
        place: tells the rows of this machine from those of others in the table.
    """

    profile: MachineProfile
    runner: Runner
    table: StageTable
    place: str

    def timings(self, jobs: Mapping[str, Job], folder: Callable[[], Path]) -> Timings:
        """See :class:`Machine`."""
        keys = {stage: f"{self.place}: {stage} of {job.key}" for stage, job in jobs.items()}
        return self.table.get(keys, lambda missing: self.runner.measure(folder(), missing))

    def describe(self) -> dict[str, Any]:
        """See :class:`Machine`."""
        return {
            "name": self.profile.name,
            "source": str(Source.MEASURED),
            "how": f"measured, {self.place}",
            "threads": self.profile.threads,
            "machine": self.runner.machine(),
        }


@dataclass(frozen=True)
class Scaled:
    """A machine known by one published latency: what is measured here, times one factor.

    Attributes:
        here: this machine.
        reference_ms: of a network on the machine that is meant.
        time_reference: the latency of the same network here, timed when it is needed for the first time.
    """

    profile: MachineProfile
    here: Measuring
    reference_ms: float
    time_reference: Callable[[], float]

    @functools.cached_property
    def factor(self) -> float:
        """How many times as long everything takes there."""
        return self.reference_ms / self.time_reference()

    def timings(self, jobs: Mapping[str, Job], folder: Callable[[], Path]) -> Timings:
        """See :class:`Machine`."""
        if not jobs:
            return {}
        return {stage: timing.scaled(self.factor) for stage, timing in self.here.timings(jobs, folder).items()}

    def describe(self) -> dict[str, Any]:
        """See :class:`Machine`."""
        how = self.profile.how
        reference = getattr(how, "reference", None)
        return {
            "name": self.profile.name,
            "source": str(Source.MODELLED),
            "how": f"modelled: measured here x {self.factor:.2f}",
            "factor": self.factor,
            "reference": vars(reference) if reference else None,
        }


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A machine by what somebody timed on it; what was not timed there is modelled.

    Attributes:
        recording: the timings.
        rest: answers for stages that the recording lacks, other than heads and tails.
    """

    profile: MachineProfile
    recording: Recording
    rest: Machine | None

    def timings(self, jobs: Mapping[str, Job], folder: Callable[[], Path]) -> Timings:
        """See :class:`Machine`."""
        known = {
            stage: self.recording.timings[stage][job.key]
            for stage, job in jobs.items()
            if job.key in self.recording.timings.get(stage, {})
        }
        missing = {stage: job for stage, job in jobs.items() if stage not in known}
        for stage in missing:
            if stage in ("head", "tail") or self.rest is None:
                raise self._unknown(stage, missing[stage])
        return known | (self.rest.timings(missing, folder) if missing and self.rest else {})

    def _unknown(self, stage: str, job: Job) -> NotRecorded:
        points = ", ".join(self.recording.timings.get(stage, {})) or "none"
        place = "server" if stage in ("tail", "decode", "unpack", "decompress") else "device"
        return NotRecorded(
            place, self.profile.name, f"it has no {stage} of '{job.key}'; it knows these: {points}. Name such points"
        )

    def describe(self) -> dict[str, Any]:
        """See :class:`Machine`."""
        found = self.recording
        return {
            "name": self.profile.name,
            "source": str(Source.RECORDED),
            "how": f"recorded {found.date}: {found.runtime}, threads {found.threads}, {found.precision}",
            "recording": {"model": found.model, "image_size": found.image_size, "source": found.source},
            "rest": self.rest.describe() if isinstance(self.rest, Scaled) and "factor" in vars(self.rest) else None,
        }


def _trust(fit: LatencyFit) -> str:
    return (
        f"median error {fit.median_error:.0%}, worst {fit.worst_error:.0%}, {fit.networks} networks left out in turn; "
        f"median {fit.family_error:.0%} for other families"
    )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A machine by a fit to published latencies; what is no network is modelled by scaling.

    Attributes:
        fitting: the fit.
        rest: answers for stages without a network.
    """

    profile: MachineProfile
    fitting: Fitting
    rest: Machine

    def timings(self, jobs: Mapping[str, Job], folder: Callable[[], Path]) -> Timings:
        """See :class:`Machine`."""
        fit = self.fitting.fit
        networks = {
            stage: Timing.single(fit.predict_ms(job.work), Source.MODELLED)
            for stage, job in jobs.items()
            if job.work is not None
        }
        others = {stage: job for stage, job in jobs.items() if stage not in networks}
        return networks | self.rest.timings(others, folder)

    def describe(self) -> dict[str, Any]:
        """See :class:`Machine`."""
        fit = self.fitting.fit
        return {
            "name": self.profile.name,
            "source": str(Source.MODELLED),
            "how": f"modelled for {fit.runtime}, {fit.threads} threads: {_trust(fit)}",
            "fit": fit.to_dict(),
            "reference": vars(self.fitting.reference),
            "rest": self.rest.describe() if isinstance(self.rest, Scaled) and "factor" in vars(self.rest) else None,
        }
