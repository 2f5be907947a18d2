"""Machines: each answers what stages take, by one of the ways that profiles know."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evaluators.latency.fit import LatencyFit
from evaluators.latency.profiles import Fitting, MachineProfile, Recording
from evaluators.latency.runners import Runner
from evaluators.latency.table import Measure, StageTable
from evaluators.result import Source, StageKey, Timing, stage_kind
from spaces.errors import SpecError

Timings = dict[str, Timing]  # by stage


class Machine(Protocol):
    """A device or a server as the composition sees it."""

    @property
    def profile(self) -> MachineProfile:
        """What the study names."""
        ...

    def timings(
        self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path], *, again: bool = False
    ) -> Timings:
        """How long stages take.

        Args:
            stage_keys: what each depends on.
            folder: makes the folder to measure, see ``evaluators/folders.py``; only called when something has to be
                measured that never was before.
            again: measure a second time what is measured at all, and know the better timing from then on.

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
        place: tells the rows of this machine from those of others in the table, JSON-ready.
        words: the place for people.
    """

    profile: MachineProfile
    runner: Runner
    table: StageTable
    place: Mapping[str, Any]
    words: str

    def timings(
        self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path], *, again: bool = False
    ) -> Timings:
        keys = {stage: stage_key.key for stage, stage_key in stage_keys.items()}
        ask = self.table.again if again else self.table.get
        return ask(self.place, keys, self._measurement(folder))

    def _measurement(self, folder: Callable[[], Path]) -> Measure:
        made = functools.cache(folder)  # written once, however often it is measured
        return lambda stages: self.runner.measure(made(), stages)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.profile.name,
            "source": str(Source.MEASURED),
            "how": f"measured, {self.words}",
            "threads": self.profile.threads,
            "machine": self.runner.machine(),
        }


@dataclass(frozen=True, kw_only=True)
class Factor:
    """How many times as long a machine takes as this one, from what was published of it.

    Attributes:
        there_ms: what some networks or programs take there.
        time_here: what the same ones take here, timed when it is needed for the first time.
        words: what they are.
    """

    there_ms: Sequence[float]
    time_here: Callable[[], Sequence[Timing]]
    words: str

    @functools.cached_property
    def here(self) -> Sequence[Timing]:
        """What they take here."""
        return self.time_here()

    @property
    def single(self) -> list[float]:
        """The factor by each of them."""
        return [there / here.p50_ms for there, here in zip(self.there_ms, self.here, strict=True)]

    @property
    def value(self) -> float:
        """Their geometric mean."""
        return math.prod(self.single) ** (1 / len(self.single))

    @property
    def is_known(self) -> bool:
        """Whether it was needed so far."""
        return "here" in vars(self)

    @property
    def warning(self) -> str:
        """Why not to trust it beyond what it is a figure of: how its own timings came out."""
        said = dict.fromkeys(timing.warning for timing in self.here if timing.warning)
        return f"the timing of its factor: {', '.join(said)}" if said else ""

    def __str__(self) -> str:
        if len(self.single) == 1:
            return f"{self.value:.2f} by {self.words}"
        return f"{self.value:.2f} by {self.words}, which range from {min(self.single):.2f} to {max(self.single):.2f}"


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A machine known by few published figures: what is measured here, times a factor.

    Attributes:
        here: this machine.
        networks: the factor of networks; None for a machine that is not asked for any.
        rest: the factor of what is no network: packing, compressing, picture codecs.
        caveat: of what ``rest`` prices.
    """

    profile: MachineProfile
    here: Measuring
    networks: Factor | None
    rest: Factor
    caveat: str

    def timings(
        self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path], *, again: bool = False
    ) -> Timings:
        if not stage_keys:
            return {}
        here = self.here.timings(stage_keys, folder, again=again)
        return {stage: self._there(timing, stage_keys[stage]) for stage, timing in here.items()}

    def _there(self, timing: Timing, stage_key: StageKey) -> Timing:
        factor, caveat = (self.rest, self.caveat) if stage_key.work is None else (self.networks, "")
        assert factor is not None, "nobody asks for networks here"
        return timing.scaled(factor.value, "; ".join(filter(None, [caveat, factor.warning])))

    def describe(self) -> dict[str, Any]:
        networks = f"measured here x {self.networks}; " if self.networks else ""
        reference = getattr(self.profile.how, "reference", None)
        return {
            "name": self.profile.name,
            "source": str(Source.MODELLED),
            "how": f"modelled: {networks}what is no network {self.rest_in_words}",
            "factors": self.factors,
            "reference": vars(reference) if reference else None,
        }

    @property
    def factors(self) -> dict[str, list[float]]:
        """The factors that were needed so far, by each of their figures."""
        factors = [factor for factor in (self.networks, self.rest) if factor is not None and factor.is_known]
        return {factor.words: factor.single for factor in factors}

    @property
    def rest_in_words(self) -> str:
        """How what is no network is priced."""
        return f"by {self.rest.words}, error unknown"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A machine by what somebody timed on it; what was not timed there is modelled.

    Attributes:
        recording: the timings.
        rest: answers for what the recording lacks: encoders, decoders, and what is no network.
    """

    profile: MachineProfile
    recording: Recording
    rest: Scaled | None

    def timings(
        self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path], *, again: bool = False
    ) -> Timings:
        known = {
            stage: self.recording.timings[stage_kind(stage)][stage_key.key]
            for stage, stage_key in stage_keys.items()
            if stage_key.key in self.recording.timings.get(stage_kind(stage), {})
        }
        lacking = {stage: stage_key for stage, stage_key in stage_keys.items() if stage not in known}
        for stage, stage_key in lacking.items():
            own = stage in ("head", "tail") and "/" not in stage_key.key  # not a distilled head, see DistilledHead.key
            if own or not self._models(stage_key):
                raise self._unknown(stage_kind(stage), stage_key)
        return known | self.rest.timings(lacking, folder, again=again) if self.rest else known

    def _models(self, stage_key: StageKey) -> bool:
        return self.rest is not None and (stage_key.work is None or self.rest.networks is not None)

    def _unknown(self, stage: str, stage_key: StageKey) -> NotRecorded:
        points = ", ".join(self.recording.timings.get(stage, {})) or "none"
        place = "server" if stage in ("tail", "decode", "unpack", "decompress") else "device"
        return NotRecorded(
            place,
            self.profile.name,
            f"it has no {stage} of '{stage_key.key}'; it knows these: {points}",
        )

    def describe(self) -> dict[str, Any]:
        found = self.recording
        circumstances = f"{found.runtime}, threads {found.threads}, {found.precision}"
        rest = f"; what is no network {self.rest.rest_in_words}" if self.rest else ""
        return {
            "name": self.profile.name,
            "source": str(Source.RECORDED),
            "how": f"recorded {found.date}: {circumstances}; the rest modelled{rest}",
            "recording": {"model": found.model, "image_size": found.image_size, "source": found.source},
            "factors": self.rest.factors if self.rest else {},
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
    rest: Scaled

    def timings(
        self, stage_keys: Mapping[str, StageKey], folder: Callable[[], Path], *, again: bool = False
    ) -> Timings:
        fit = self.fitting.fit
        networks = {
            stage: Timing.single(fit.predict_ms(stage_key.work), Source.MODELLED)
            for stage, stage_key in stage_keys.items()
            if stage_key.work is not None
        }
        others = {stage: stage_key for stage, stage_key in stage_keys.items() if stage not in networks}
        return networks | self.rest.timings(others, folder, again=again)

    def describe(self) -> dict[str, Any]:
        fit = self.fitting.fit
        return {
            "name": self.profile.name,
            "source": str(Source.MODELLED),
            "how": f"modelled for {fit.runtime}, {fit.threads} threads: {_trust(fit)}; "
            f"what is no network {self.rest.rest_in_words}",
            "fit": fit.to_dict(),
            "reference": vars(self.fitting.reference),
            "factors": self.rest.factors,
        }
