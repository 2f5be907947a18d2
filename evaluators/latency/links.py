"""Links: how long a payload is on its way. Knows bytes and milliseconds, nothing of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evaluators.latency.profile_files import read_profile
from evaluators.result import Source
from spaces.config import is_number
from spaces.errors import MeasurementError, SpecError
from spaces.section import Section

PROBE_FORMAT = 1  # of what evaluators/edge/probe.py returns
_LEAST_MB_PER_S = 1e-6  # a byte a second; of much less, a latency would be no number any more
_NUMBERS = ("rate_mb_per_s", "rtt_ms", "jitter_ms")
_KINDS = (Source.MODELLED, Source.RECORDED)
_P90_DEVIATIONS = 1.2816  # of a normal distribution lie below its 90th percentile


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """A link from the device to the server and back.

    Attributes:
        rate_mb_per_s: bytes of payload a second from device to server, in 10^6; lower layers' headers do not count.
        rtt_ms: a few bytes there and a few bytes back, the median.
        jitter_ms: standard deviation, from one payload to the next, of the whole way: payload there, answer back. A
            payload's own time at the link's rate counts as constant, so this is the deviation of the round trip.
        name: of the profile, if it has one.
        source: where the numbers come from, in words.
        origin: what kind of numbers they are: given or nominal (modelled), measured once and kept (recorded), or
            measured for this use (measured).
    """

    rate_mb_per_s: float
    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    name: str = ""
    source: str = ""
    origin: Source = Source.MODELLED

    def __post_init__(self) -> None:
        if not (is_number(self.rate_mb_per_s) and self.rate_mb_per_s > 0):
            raise SpecError("rate_mb_per_s", self.rate_mb_per_s, "a number above 0 is needed (10^6 bytes a second)")
        if self.rate_mb_per_s < _LEAST_MB_PER_S:
            needed = f"a number of at least {_LEAST_MB_PER_S:g} is needed (a byte a second)"
            raise SpecError("rate_mb_per_s", self.rate_mb_per_s, needed)
        for key in ("rtt_ms", "jitter_ms"):
            value = getattr(self, key)
            if not (is_number(value) and value >= 0):
                raise SpecError(key, value, "a number from 0 is needed (milliseconds)")

    def latency_ms(self, payload_bytes: float) -> float:
        """One round trip plus the time the payload takes at the link's rate; the answer's few bytes count as none.

        A median: jitter does not change it.
        """
        return self.rtt_ms + self.busy_ms(payload_bytes)

    def p90_ms(self, payload_bytes: float) -> float:
        """What nine payloads of ten do not exceed, if the jitter is normally distributed."""
        return self.latency_ms(payload_bytes) + _P90_DEVIATIONS * self.jitter_ms

    def busy_ms(self, payload_bytes: float) -> float:
        """How long the payload occupies the link."""
        return payload_bytes / (self.rate_mb_per_s * 1000.0)

    def at_rate(self, rate_mb_per_s: float) -> LinkProfile:
        """The same link at another rate: round trip and jitter stay, and where they come from; the rate is given.

        Raises:
            SpecError: no rate above 0.
        """
        of = self.source or self.label
        return replace(
            self,
            rate_mb_per_s=rate_mb_per_s,
            name=f"{self.name} at {rate_mb_per_s:g} MB/s" if self.name else "",
            source=f"the rate is given; round trip and jitter ({self.origin}): {of}",
            origin=Source.MODELLED,
        )

    @property
    def label(self) -> str:
        """For people: ``2 MB/s, 2 ms round trip``, and ``+-0.5 ms`` where there is jitter."""
        jitter = f" +-{self.jitter_ms:.3g} ms" if self.jitter_ms else ""
        return f"{self.rate_mb_per_s:.4g} MB/s, {self.rtt_ms:.4g} ms round trip{jitter}"

    def describe(self) -> dict[str, Any]:
        """As a study's environment keeps it. JSON-ready; ``source`` is the kind of numbers, as it is for a machine."""
        return {
            "name": self.name or self.label,
            "source": str(self.origin),
            "how": f"{self.origin}, {self.label}" if self.name else str(self.origin),
            "rate_mb_per_s": self.rate_mb_per_s,
            "rtt_ms": self.rtt_ms,
            "jitter_ms": self.jitter_ms,
            "reference": self.source or None,
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {**asdict(self), "origin": str(self.origin)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LinkProfile:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**data, "origin": Source(data["origin"])})


def described_link(data: Mapping[str, Any]) -> LinkProfile:
    """The link of a study's environment, see :meth:`LinkProfile.describe`; of earlier versions too."""
    numbers = {key: data[key] for key in _NUMBERS if key in data}
    link = LinkProfile(**numbers, source=data.get("reference") or "", origin=Source(data.get("source", "modelled")))
    name = data.get("name") or ""
    return link if name == link.label else replace(link, name=name)


def load_link(value: Any) -> LinkProfile:
    """A link from a study file: the name of a profile, a path, or ``{rate_mb_per_s, rtt_ms, jitter_ms, name}``.

    Raises:
        SpecError: no such profile, or one that cannot be right.
    """
    if isinstance(value, str):
        return _from_file(value)
    if isinstance(value, dict):
        section = Section("link", value)
        return _built(section, name=section.text("name", ""))
    raise SpecError("link", value, "the name of a profile or {rate_mb_per_s: ..., rtt_ms: ...} is needed")


def measured_link(probe_result: Mapping[str, Any], name: str) -> LinkProfile:
    """The link that ``evaluators/edge/probe.py`` measured.

    Raises:
        MeasurementError: this is not what a probe returns.
    """
    if not isinstance(probe_result, Mapping) or probe_result.get("format") != PROBE_FORMAT:
        raise MeasurementError(f"this is no measurement of a link with format {PROBE_FORMAT}: {probe_result!r:.120}")
    try:
        numbers = {key: probe_result[key] for key in _NUMBERS}
        source = f"a transfer of {probe_result['bytes']:,} bytes"
        return LinkProfile(**numbers, name=name, source=source, origin=Source.MEASURED)
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise MeasurementError(f"this measurement of a link is not readable ({error}): {probe_result!r:.120}") from None


def _from_file(name: str) -> LinkProfile:
    section = read_profile(name, "links", "link")
    source = section.take("source", None)
    if not (isinstance(source, str) and source.strip()):
        raise SpecError(section.path("source"), source, "words are needed: where do the numbers come from?")
    origin = Source(section.choice("kind", None, _KINDS))
    return _built(section, name=section.text("name", Path(name).stem), source=source.strip(), origin=origin)


def _built(section: Section, **words: Any) -> LinkProfile:
    rate, rtt_ms, jitter_ms = section.take("rate_mb_per_s"), section.take("rtt_ms", 0.0), section.take("jitter_ms", 0.0)
    section.finish()
    try:
        return LinkProfile(rate_mb_per_s=rate, rtt_ms=rtt_ms, jitter_ms=jitter_ms, **words)
    except SpecError as error:
        raise error.inside("link") from None
