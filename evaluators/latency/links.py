"""Links: how long a payload is on its way. Knows bytes and milliseconds, nothing of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evaluators.latency.profile_files import read_profile, refuse_unknown
from spaces.config import is_number
from spaces.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """A link: rate in 10^6 bytes a second, round trip in milliseconds."""

    rate_mb_per_s: float
    rtt_ms: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        if not (is_number(self.rate_mb_per_s) and self.rate_mb_per_s > 0):
            raise SpecError("rate_mb_per_s", self.rate_mb_per_s, "a number above 0 is needed (10^6 bytes a second)")
        if not (is_number(self.rtt_ms) and self.rtt_ms >= 0):
            raise SpecError("rtt_ms", self.rtt_ms, "a number from 0 is needed (milliseconds)")

    def latency_ms(self, payload_bytes: float) -> float:
        """One round trip plus the time the payload takes at the link's rate; the answer's few bytes count as none."""
        return self.rtt_ms + self.busy_ms(payload_bytes)

    def busy_ms(self, payload_bytes: float) -> float:
        """How long the payload occupies the link."""
        return payload_bytes / (self.rate_mb_per_s * 1000.0)

    @property
    def label(self) -> str:
        """For people: ``2 MB/s, 2 ms round trip``."""
        return f"{self.rate_mb_per_s:g} MB/s, {self.rtt_ms:g} ms round trip"


def load_link(value: Any) -> LinkProfile:
    """A link from a study file: the name of a profile, a path, or ``{rate_mb_per_s, rtt_ms}``.

    Raises:
        SpecError: no such profile, or one that cannot be right.
    """
    if isinstance(value, str):
        data = read_profile(value, "links", "link")
        value = {key: data[key] for key in ("rate_mb_per_s", "rtt_ms", "name") if key in data}
    if not isinstance(value, dict):
        raise SpecError("link", value, "the name of a profile or {rate_mb_per_s: ..., rtt_ms: ...} is needed")
    refuse_unknown(value, {"rate_mb_per_s", "rtt_ms", "name"}, "link")
    if "rate_mb_per_s" not in value:
        raise SpecError("link.rate_mb_per_s", None, "a number above 0 is needed (10^6 bytes a second)")
    try:
        return LinkProfile(**value)
    except SpecError as error:
        raise error.inside("link") from None
