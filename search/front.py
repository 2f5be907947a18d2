"""The front, and how one point is picked from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.result import Evaluation
from spaces.errors import SplitsearchError

FORMAT = 1
OBJECTIVES = ("accuracy", "latency_ms")
PICKS = ("knee", "fastest", "most-accurate")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A finished trial or a baseline as front, report and export see it.

    ``trial`` is None for a baseline; ``feasible`` says whether it keeps the study's constraints.
    """

    trial: int | None
    evaluation: Evaluation
    feasible: bool = True

    @property
    def accuracy(self) -> float:
        """In 0..1, to be maximised."""
        return self.evaluation.accuracy

    @property
    def latency_ms(self) -> float:
        """To be minimised."""
        return self.evaluation.latency_ms

    @property
    def name(self) -> str:
        """For people."""
        return self.evaluation.name

    def beats(self, other: Point) -> bool:
        """At least as good on both objectives and better on one."""
        no_worse = self.accuracy >= other.accuracy and self.latency_ms <= other.latency_ms
        return no_worse and (self.accuracy > other.accuracy or self.latency_ms < other.latency_ms)

    def to_dict(self) -> dict[str, Any]:
        """The point of ``front --json``."""
        found = self.evaluation
        return {
            "trial": self.trial,
            "name": found.name,
            "accuracy": found.accuracy,
            "latency_ms": found.latency_ms,
            "payload_bytes": found.payload_bytes,
            "feasible": self.feasible,
            "config": found.config.to_dict() if found.config else None,
            "latency": found.latency.to_dict(),
            "sources": found.sources.to_dict(),
        }


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Feasible points that no feasible point beats, fastest first; of equals the first."""
    feasible = sorted((p for p in points if p.feasible), key=lambda p: (p.latency_ms, -p.accuracy, p.trial or 0))
    front: list[Point] = []
    for point in feasible:
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def knee(front: Sequence[Point]) -> Point:
    """The point farthest from the line between the front's ends, both objectives scaled to 0..1.

    With fewer than three points, or a front without a bulge, the most accurate one: nothing says that a fraction of
    the accuracy is worth giving up. Raises ValueError for an empty front.
    """
    if not front:
        raise ValueError("an empty front has no knee")
    ends = sorted(front, key=lambda p: p.latency_ms)
    fastest, best = ends[0], ends[-1]
    width, height = best.latency_ms - fastest.latency_ms, best.accuracy - fastest.accuracy
    if len(front) < 3 or width <= 0 or height <= 0:
        return best

    def bulge(point: Point) -> float:
        return (point.accuracy - fastest.accuracy) / height - (point.latency_ms - fastest.latency_ms) / width

    chosen = max(ends[1:-1], key=bulge)
    return chosen if bulge(chosen) > 0 else best


def pick_point(
    front: Sequence[Point], how: str, max_drop_pp: float | None = None, max_latency_ms: float | None = None
) -> Point:
    """One point of the front within limits.

    Args:
        front: candidates.
        how: ``knee``, ``fastest`` or ``most-accurate``.
        max_drop_pp: highest accuracy drop against the uncut model, in percentage points.
        max_latency_ms: highest latency.

    Raises:
        SplitsearchError: no point keeps the limits; says how near the front comes.
    """
    assert how in PICKS, how
    if not front:
        raise SplitsearchError("the front is empty: no trial kept the constraints; run more trials or loosen them")
    within = [
        point
        for point in front
        if (max_drop_pp is None or point.evaluation.accuracy_drop_pp <= max_drop_pp)
        and (max_latency_ms is None or point.latency_ms <= max_latency_ms)
    ]
    if not within:
        drop = min(point.evaluation.accuracy_drop_pp for point in front)
        fastest = min(point.latency_ms for point in front)
        raise SplitsearchError(
            f"no point of the front keeps these limits; its smallest drop is {drop:.2f} pp, "
            f"its lowest latency {fastest:.2f} ms"
        )
    if how == "fastest":
        return min(within, key=lambda point: point.latency_ms)
    if how == "most-accurate":
        return max(within, key=lambda point: point.accuracy)
    return knee(within)


def find_trial(points: Sequence[Point], number: int) -> Point:
    """The point of a trial by its number. Raises SplitsearchError when there is none."""
    for point in points:
        if point.trial == number:
            return point
    known = ", ".join(str(point.trial) for point in points[-20:])
    raise SplitsearchError(f"trial {number} has no result; the last trials with one: {known or 'none'}")


def front_json(study: str, front: Sequence[Point], baselines: Sequence[Point]) -> dict[str, Any]:
    """As ``front --json`` prints it."""
    return {
        "format": FORMAT,
        "study": study,
        "objectives": list(OBJECTIVES),
        "front": [point.to_dict() for point in front],
        "baselines": [point.to_dict() for point in baselines],
    }


def verdicts(front: Sequence[Point], baselines: Sequence[Point]) -> list[str]:
    """What the baselines say about the front, in sentences. If a baseline wins, this is where it is said."""
    if not front:
        return ["No trial kept the constraints, so there is no front."]
    lines = []
    for baseline in baselines:
        beaten = [point for point in front if baseline.beats(point)]
        if beaten:
            count = "every point" if len(beaten) == len(front) else f"{len(beaten)} of {len(front)} points"
            lines.append(
                f"{baseline.name} ({baseline.accuracy:.1%}, {baseline.latency_ms:.2f} ms) is at least as accurate and "
                f"as fast as {count} of the front."
            )
    fastest = min(front, key=lambda p: p.latency_ms)
    quicker = [baseline for baseline in baselines if baseline.latency_ms < fastest.latency_ms]
    if quicker and not any(baseline.beats(fastest) for baseline in quicker):
        best = max(quicker, key=lambda p: p.accuracy)
        lines.append(
            f"{best.name} is faster than every point of the front ({best.latency_ms:.2f} ms against "
            f"{fastest.latency_ms:.2f} ms) and {100 * (fastest.accuracy - best.accuracy):.1f} pp less accurate "
            f"than the fastest of them."
        )
    outside = [p for p in front if not any(baseline.beats(p) for baseline in baselines)]
    if outside:
        best = max(outside, key=lambda p: p.accuracy)
        lines.append(
            f"{len(outside)} of {len(front)} front points are beaten by no baseline; the most accurate of them is "
            f"trial {best.trial} ({best.accuracy:.1%}, {best.latency_ms:.2f} ms)."
        )
    return lines
