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
from evaluators.result import Source, StageKey, Timing, stage_kind
from spaces.errors import SpecError

Timings = dict[str, Timing]  # by stage


class Machine(Protocol):
    """A device or a server as the composition sees it."""

    @property
    def profile(self) -> MachineProfile:
        """What the study names."""
        ...

    def timings(self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path]) -> Timings:
        """How long stages take.

        Args:
            stage_keys: what each depends on.
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

    def timings(self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path]) -> Timings:
        """See :class:`Machine`."""
        kinds = {stage: stage_kind(stage) for stage in stage_keys}
        keys = {stage: f"{self.place}: {kinds[stage]} of {stage_key.key}" for stage, stage_key in stage_keys.items()}
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

    def timings(self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path]) -> Timings:
        """See :class:`Machine`."""
        if not stage_keys:
            return {}
        return {stage: timing.scaled(self.factor) for stage, timing in self.here.timings(stage_keys, folder).items()}

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
        networks: answers for networks that the recording lacks, encoders and decoders.
        rest: answers for what is no network.
    """

    profile: MachineProfile
    recording: Recording
    networks: Machine | None
    rest: Machine | None

    def timings(self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path]) -> Timings:
        """See :class:`Machine`."""
        known: Timings = {}
        missing: dict[bool, dict[str, StageKey]] = {True: {}, False: {}}  # networks, and what is none
        for stage, stage_key in stage_keys.items():
            recorded = self.recording.timings.get(stage_kind(stage), {})
            if stage_key.key in recorded:
                known[stage] = recorded[stage_key.key]
            else:
                missing[stage_key.work is not None][stage] = stage_key
        for is_network, machine in ((True, self.networks), (False, self.rest)):
            for stage, stage_key in missing[is_network].items():
                if stage in ("head", "tail") or machine is None:
                    raise self._unknown(stage_kind(stage), stage_key)
            if machine is not None and missing[is_network]:
                known |= machine.timings(missing[is_network], folder)
        return known

    def _unknown(self, stage: str, stage_key: StageKey) -> NotRecorded:
        points = ", ".join(self.recording.timings.get(stage, {})) or "none"
        place = "server" if stage in ("tail", "decode", "unpack", "decompress") else "device"
        return NotRecorded(
            place,
            self.profile.name,
            f"it has no {stage} of '{stage_key.key}'; it knows these: {points}. Name such points",
        )

    def describe(self) -> dict[str, Any]:
        """See :class:`Machine`."""
        found = self.recording
        circumstances = f"{found.runtime}, threads {found.threads}, {found.precision}"
        return {
            "name": self.profile.name,
            "source": str(Source.RECORDED),
            "how": f"recorded {found.date}: {circumstances}; the rest modelled",
            "recording": {"model": found.model, "image_size": found.image_size, "source": found.source},
            "networks": _described(self.networks),
            "rest": _described(self.rest),
        }


def _described(machine: Machine | None) -> dict[str, Any] | None:
    """Of a machine that stands in, if it was asked for anything."""
    return machine.describe() if isinstance(machine, Scaled) and "factor" in vars(machine) else None


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

    def timings(self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path]) -> Timings:
        """See :class:`Machine`."""
        fit = self.fitting.fit
        networks = {
            stage: Timing.single(fit.predict_ms(stage_key.work), Source.MODELLED)
            for stage, stage_key in stage_keys.items()
            if stage_key.work is not None
        }
        others = {stage: stage_key for stage, stage_key in stage_keys.items() if stage not in networks}
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
            "rest": _described(self.rest),
        }
