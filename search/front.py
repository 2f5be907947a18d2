"""The front, and how one point is picked from it; which of the baselines matter beside it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluators.result import Evaluation
from evaluators.tasks.intervals import paired_drop_pp
from search.hypervolume import Corner
from search.spec import Constraints
from spaces.errors import SplitsearchError

FORMAT = 1
OBJECTIVES = ("accuracy", "latency_ms")
PICKS = ("knee", "fastest", "most-accurate")
ALWAYS_SHOWN = ("all-on-device", "server-only, raw")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A finished trial or a baseline as front, report and export see it.

    ``trial`` is None for a baseline; ``feasible`` says whether it keeps the study's constraints, ``broken`` which of
    them it does not keep, in words, where somebody asked (see :func:`judged`).
    """

    trial: int | None
    evaluation: Evaluation
    feasible: bool = True
    broken: tuple[str, ...] = ()

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

    @property
    def title(self) -> str:
        """For sentences: ``trial 12 (stem, AE 0.25, 2 bit)``, or a baseline's name."""
        return self.name if self.trial is None else f"trial {self.trial} ({self.name})"

    @property
    def figures(self) -> str:
        """For sentences: ``57.1 %, 11.60 ms, 628 bytes``."""
        sent = f", {self.evaluation.payload_bytes:,.0f} bytes" if self.evaluation.payload_bytes else ""
        return f"{self.accuracy:.1%}, {self.latency_ms:.2f} ms{sent}"

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
        asked = [f"a drop of at most {max_drop_pp:g} pp"] if max_drop_pp is not None else []
        asked += [f"at most {max_latency_ms:g} ms"] if max_latency_ms is not None else []
        raise SplitsearchError(
            f"no point of the front keeps these limits ({' and '.join(asked)}); its smallest drop is {drop:.2f} pp, "
            f"its lowest latency {fastest:.2f} ms. Ask for less, or run more trials"
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


def corner_of(baselines: Sequence[Point], limits: Constraints) -> Corner:
    """The corner of a study: its own limits, and otherwise an accuracy of 0 and the slowest baseline's latency."""
    accuracy = 0.0
    if limits.max_accuracy_drop_pp is not None:
        uncut = [point.accuracy + point.evaluation.accuracy_drop_pp / 100 for point in baselines]
        accuracy = max(0.0, min(uncut) - limits.max_accuracy_drop_pp / 100) if uncut else 0.0
    latency_ms = limits.max_latency_ms
    if latency_ms is None:
        latency_ms = max((point.latency_ms for point in baselines), default=1.0)
    return Corner(accuracy=accuracy, latency_ms=latency_ms)


def not_told_apart(front: Sequence[Point]) -> set[int | None]:
    """The trials of a front that its own images do not tell from the next faster point: the 95 % interval of the
    paired difference holds 0. Unknown, hence not among them, where it is not kept which images were right.
    """
    found = set()
    for faster, point in itertools.pairwise(sorted(front, key=lambda point: point.latency_ms)):
        one, other = faster.evaluation.right, point.evaluation.right
        if one is None or other is None or len(one) != len(other):
            continue
        low, high = paired_drop_pp(one, other)[1]
        if low <= 0 <= high:
            found.add(point.trial)
    return found


def judged(points: Sequence[Point], limits: Constraints) -> list[Point]:
    """The points with ``feasible`` and ``broken`` as a study's limits have it."""

    def judge(point: Point) -> Point:
        broken = tuple(limits.broken(point.evaluation))
        return replace(point, feasible=not broken, broken=broken)

    return [judge(point) for point in points]


def baseline_front(baselines: Sequence[Point]) -> list[Point]:
    """The baselines to show, fastest first: those that no feasible one beats, and always the two that need no codec
    and no training.
    """
    always = [point for point in baselines if point.name in ALWAYS_SHOWN]
    front = [point for point in pareto_front(baselines) if point.name not in ALWAYS_SHOWN]
    return sorted([*always, *front], key=lambda point: point.latency_ms)


def warnings_for(point: Point, baselines: Sequence[Point]) -> list[str]:
    """What to say before somebody deploys a point: that a baseline which keeps the limits beats it."""
    beating = [baseline for baseline in pareto_front(baselines) if baseline.beats(point)]
    if not beating:
        return []
    best = max(beating, key=lambda baseline: baseline.accuracy)
    more = f" (and {len(beating) - 1} more)" if len(beating) > 1 else ""
    return [f"A baseline beats {point.title} ({point.figures}): {best.name} ({best.figures}){more}."]
