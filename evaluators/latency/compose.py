"""One picture's latency out of its stages and the link. No torch here: a finished study is composed anew with this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluators.latency.links import LinkProfile
from evaluators.latency.machines import Machine
from evaluators.result import DEVICE_PARTS, SERVER_PARTS, LatencyParts, Source, Sources, Timing


def compose(timings: Mapping[str, Timing], link: LinkProfile, payload_bytes: float) -> LatencyParts:
    """Medians of the stages, and the link for payloads of this mean length; no link where nothing is sent."""
    link_ms = link.latency_ms(payload_bytes) if payload_bytes else 0.0
    return LatencyParts(link_ms=link_ms, **{f"{stage}_ms": timing.p50_ms for stage, timing in timings.items()})


def sources_of(timings: Mapping[str, Timing], device: Source, server: Source, link: Source) -> Sources:
    """Of device and server the weakest among their stages.

    Args:
        timings: by stage.
        device, server: what counts for a place without a stage.
        link: that of the link.
    """

    def weakest(parts: tuple[str, ...], otherwise: Source) -> Source:
        found = [timings[stage].source for part in parts if (stage := part.removesuffix("_ms")) in timings]
        return Source.weakest(found) if found else otherwise

    return Sources(device=weakest(DEVICE_PARTS, device), server=weakest(SERVER_PARTS, server), link=link)


def latency_fields(
    timings: Mapping[str, Timing], payload_bytes: float, device: Machine, server: Machine, link: LinkProfile
) -> dict[str, Any]:
    """All fields of an :class:`Evaluation` that follow from stages and link."""
    return {
        "latency": compose(timings, link, payload_bytes),
        "sources": sources_of(timings, device.profile.source, server.profile.source, link.origin),
        "link_busy_ms": link.busy_ms(payload_bytes),
        "link_p90_ms": link.p90_ms(payload_bytes) if payload_bytes else 0.0,
        "timings": timings,
    }
