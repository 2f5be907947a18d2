"""The verdict: what to deploy at this link, at which other link rates that changes, and what the baselines say."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.front import ALWAYS_SHOWN, Point, pareto_front

MOST_GIVEN_AWAY = 0.01  # in accuracy, for speed, of what is recommended against the most accurate
_ROUNDING = 1e-9  # 25 of 2,500 images are a point, whatever their quotients' last digits say
_RATES = (1e-4, 1e4)  # MB/s; beyond these nobody has a link


@dataclass(frozen=True, kw_only=True)
class Span:
    """The link rates at which a point is the fastest, in MB/s: above ``low``, up to ``high``."""

    point: Point
    low: float
    high: float


def fixed_ms(point: Point) -> float:
    """The part of a point's latency that the link's rate does not change, in milliseconds."""
    return point.latency_ms - point.evaluation.link_busy_ms


def fastest_by_rate(points: Sequence[Point]) -> list[Span]:
    """Which point is the fastest at which rate, from slow links to fast ones: the lower envelope of their latencies.

    Exact, as each latency is a straight line over the time that a byte takes. At least one point is needed.
    """
    # With an endless rate the payload is nothing; from there on to slower links, each next point sends less.
    best = min(points, key=lambda point: (fixed_ms(point), point.evaluation.payload_bytes, -point.accuracy))
    spans: list[Span] = []
    high = math.inf
    while True:
        smaller = [point for point in points if point.evaluation.payload_bytes < best.evaluation.payload_bytes]
        if not smaller:
            return [Span(point=best, low=0.0, high=high), *spans[::-1]]
        following = max(smaller, key=functools.partial(_soonest, best))
        low = _crossing(best, following)
        if low < high:
            spans.append(Span(point=best, low=low, high=high))
        best, high = following, min(low, high)


def _soonest(larger: Point, smaller: Point) -> tuple[float, float, float]:
    return _crossing(larger, smaller), -smaller.evaluation.payload_bytes, smaller.accuracy


def _crossing(larger: Point, smaller: Point) -> float:
    """The rate in MB/s below which the point with the smaller payload is the faster one."""
    saved_bytes = larger.evaluation.payload_bytes - smaller.evaluation.payload_bytes
    extra_ms = fixed_ms(smaller) - fixed_ms(larger)
    return saved_bytes / (1000 * extra_ms) if extra_ms > 0 else math.inf


def recommended(points: Sequence[Point], given_away: float = MOST_GIVEN_AWAY) -> Point:
    """The fastest of those that give away no more than so much of the highest accuracy.

    Raises ValueError when there is no point.
    """
    return min(_as_good(points, given_away), key=lambda point: (point.latency_ms, -point.accuracy))


def _as_good(points: Sequence[Point], given_away: float = MOST_GIVEN_AWAY) -> list[Point]:
    highest = max(point.accuracy for point in points)
    return [point for point in points if point.accuracy >= highest - given_away - _ROUNDING]


def verdicts(trials: Sequence[Point], baselines: Sequence[Point], max_latency_ms: float | None = None) -> list[str]:
    """The verdict in sentences. If a baseline wins, this is where it is said.

    Args:
        trials: all of a study's; on another link another one may win.
        baselines: all of them, judged by the study's limits (:func:`search.front.judged`).
        max_latency_ms: the study's limit, which other points may keep at another rate.
    """
    front = pareto_front(trials)
    missing = "kept the constraints" if trials else "has a result"
    lines = [] if front else [f"No trial {missing}, so there is no front."]
    usable = [point for point in [*trials, *baselines] if point.feasible]
    if usable:
        lines += _deployment(usable, max_latency_ms)
    lines += [
        f"{baseline.name} is no choice: {', '.join(baseline.broken)}."
        for baseline in baselines
        if baseline.name in ALWAYS_SHOWN and baseline.broken
    ]
    return lines + _beaten(front, baselines)


def next_steps(study: str, trials: Sequence[Point], finished: int) -> list[str]:
    """What to type next.

    Args:
        study: as the user names it, with the options that say where it is kept.
        trials: all of its that were scored.
        finished: number of those that came to an end, scored or not; what ``--trials`` counts.
    """
    if not finished:
        return [f"next: 'splitsearch run {study}' goes on to the first trial"]
    if not pareto_front(trials):
        change = "loosen the study's constraints" if trials else "give the study another space"
        more = f"'splitsearch run {study} --trials {2 * finished}' looks at more of the space"
        return [f"next: {change}, under another name; or {more}"]
    commands = {
        f"splitsearch confirm {study}": "the front trained anew, with more budget and three seeds, and tested",
        f"splitsearch replay {study} --rates 0.01,0.1,1,10": "other links; nothing is trained",
        f"splitsearch export {study} -o bundle": "two halves that run, with the evidence",
    }
    width = max(map(len, commands))
    return ["next:", *(f"  {command:<{width}}   {does}" for command, does in commands.items())]


def _deployment(usable: Sequence[Point], max_latency_ms: float | None) -> list[str]:
    best, highest = recommended(usable), max(usable, key=lambda point: (point.accuracy, -point.latency_ms))
    why = "nothing that keeps the limits is more accurate, and what comes within a point of it is slower"
    if best.accuracy < highest.accuracy:
        why = f"the fastest within a point of the most accurate, which is {highest.title} ({highest.figures})"
    lines = [f"At this link deploy {best.title}: {best.figures}; {why}."]
    lines += _other_kind(best, usable)
    fastest = min(usable, key=lambda point: (point.latency_ms, -point.accuracy))
    if fastest is not best:
        lines.append(f"For speed alone, {fastest.title} keeps the limits too: {fastest.figures}.")
    rates = _other_rates(best, _as_good(usable))
    if rates and max_latency_ms is not None:
        rates.append(
            f"That leaves out which points keep {max_latency_ms:g} ms at another rate: the report's sliders and "
            "'splitsearch replay --rates' count it in."
        )
    return lines + rates


def _other_kind(best: Point, usable: Sequence[Point]) -> list[str]:
    """The best split where a baseline is recommended, and the best baseline where a split is."""

    def others(points: Sequence[Point]) -> list[Point]:
        return [point for point in points if (point.trial is None) != (best.trial is None)]

    kind = "split" if best.trial is None else "baseline"
    if not others(usable):
        return []
    near = others(_as_good(usable))
    if not near:
        return [f"No {kind} comes within a point of the most accurate."]
    rival = min(near, key=lambda point: (point.latency_ms, -point.accuracy))
    return [f"The fastest {kind} within that point is {rival.title}: {rival.figures}."]


def _other_rates(best: Point, as_good: Sequence[Point]) -> list[str]:
    """At which link rates another one of those that are as good is the fastest."""
    rate = next((_rate_of(point) for point in as_good if point.evaluation.link_busy_ms > 0), None)
    if rate is None:
        return []
    spans = fastest_by_rate(as_good)
    below = [span for span in spans if span.high < rate and span.high > _RATES[0]]
    above = [span for span in spans if span.low >= rate and span.low < _RATES[1]]
    own = _megabytes(rate, digits=4)
    if not below and not above:
        return [f"Within that point, {best.title} is the fastest at any link rate, not only at {own}."]
    changes = [f"below about {_megabytes(span.high)} {_short(span.point)}" for span in below[::-1]]
    changes += [f"above about {_megabytes(span.low)} {_short(span.point)}" for span in above]
    return [f"At other rates than {own} others within that point are faster: {'; '.join(changes)}."]


def _rate_of(point: Point) -> float:
    return point.evaluation.payload_bytes / (1000 * point.evaluation.link_busy_ms)


def _short(point: Point) -> str:
    return f"{point.title}, {point.accuracy:.1%}"


def _megabytes(rate: float, digits: int = 2) -> str:
    number, unit = (rate, "MB/s") if rate >= 0.1 else (1000 * rate, "kB/s")
    rounded = float(f"{number:.{digits}g}")  # as text 99.7 would be 1e+02
    return f"{number:,.0f} {unit}" if number >= 100 else f"{rounded:g} {unit}"


def _beaten(front: Sequence[Point], baselines: Sequence[Point]) -> list[str]:
    rivals = pareto_front(baselines)
    left = [point for point in front if not any(rival.beats(point) for rival in rivals)]
    if not front or len(left) == len(front):
        return ["No baseline beats a point of the front."] if front and rivals else []
    if not left:
        return ["Every point of the front is beaten by a baseline."]
    beaten = len(front) - len(left)
    return [f"A baseline beats {beaten} of the {len(front)} points of the front, but not {_trials(left)}."]


def _trials(points: Sequence[Point]) -> str:
    """``trial 7``, ``trials 1 and 3``, ``trials 1, 3 and 8``."""
    *others, last = (str(point.trial) for point in points)
    return f"trials {', '.join(others)} and {last}" if others else f"trial {last}"
