"""What the report's page needs to say which point wins at another link rate: every point, taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluators.latency.links import described_link
from search.front import Point
from search.plots import PART_COLOURS
from search.spec import Constraints
from search.verdict import MOST_GIVEN_AWAY, fixed_ms

_LATENCY = "max_latency_ms"  # the one limit that another rate may keep or break


def rate_table(
    trials: Sequence[Point], baselines: Sequence[Point], limits: Constraints, link: dict[str, Any]
) -> dict[str, Any]:
    """The points that keep every limit but that on latency, which the page judges at each rate. JSON-ready.

    Args:
        trials, baselines: all of a study's.
        limits: of the study.
        link: as the study's environment describes it.
    """
    profile = described_link(link)
    usable = [point for point in [*trials, *baselines] if _keeps_the_rest(point, limits)]
    return {
        "rate_mb_per_s": profile.rate_mb_per_s,
        "link": profile.label,
        "max_latency_ms": limits.max_latency_ms,
        "given_away_pp": 100 * MOST_GIVEN_AWAY,
        "colours": {name.removesuffix("_ms"): colour for name, colour in PART_COLOURS.items()},
        "points": [_taken_apart(point) for point in usable],
    }


def _keeps_the_rest(point: Point, limits: Constraints) -> bool:
    return all(by <= 0 for name, by in limits.excess(point.evaluation).items() if name != _LATENCY)


def _taken_apart(point: Point) -> dict[str, Any]:
    """All that the rate does not change; the page adds the time of the payload's bytes."""
    found = point.evaluation
    parts = found.latency.to_dict() | {"link_ms": found.latency.link_ms - found.link_busy_ms}
    return {
        "title": point.title,
        "accuracy": point.accuracy,
        "drop_pp": found.accuracy_drop_pp,
        "payload_bytes": found.payload_bytes,
        "latency_ms": point.latency_ms,
        "fixed_ms": fixed_ms(point),
        "fixed_p90_ms": found.latency_p90_ms - found.link_busy_ms,
        "device_ms": found.latency.device_ms,
        "server_ms": found.latency.server_ms,
        "parts": {
            name.removesuffix("_ms"): [ms, str(found.source_of(name))]
            for name, ms in parts.items()
            if found.latency.to_dict()[name]
        },
    }
