"""Which points a bundle is made of: what was asked for, among the confirmed points where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from search import bundle_points
from search.confirm import Confirmed, as_searched, confirmed_points
from search.front import Point, find_trial, judged, pareto_front, pick_point, warnings_for
from search.points import baseline_points, trial_points, why_no_front
from search.spec import Constraints, StudySpec
from spaces.errors import SplitsearchError
from spaces.wording import counted


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for.

    Attributes:
        trial: by number; None for a pick from the front.
        pick: one of :data:`search.front.PICKS`.
        max_drop_pp: highest accuracy drop in percentage points.
        max_latency_ms: highest latency.
        points: so many in one bundle, for links of other rates.
    """

    trial: int | None = None
    pick: str = "knee"
    max_drop_pp: float | None = None
    max_latency_ms: float | None = None
    points: int = 1


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a bundle is made of.

    Attributes:
        first: the point that was asked for.
        confirmed: its confirmation, if it has one.
        others: further points, with theirs.
        max_drop_pp: highest accuracy drop of a further point.
        advice: what speaks against the choice, a sentence each.
    """

    first: Point
    confirmed: Confirmed | None
    others: Sequence[tuple[Point, Confirmed | None]]
    max_drop_pp: float
    advice: Sequence[str]


def choose(study: optuna.Study, spec: StudySpec, wish: Wish, named: str) -> Chosen:
    """The points for a bundle.

    Args:
        study, spec: the study.
        wish: what is asked for.
        named: the study as the user names it, with the options that say where it is kept.

    Raises:
        SplitsearchError: no point is as asked for; says how near others come.
    """
    searched = trial_points(study)
    tried = {each.trial: each for each in confirmed_points(study)}
    proofs = {number: each for number, each in tried.items() if each.validation}
    known = judged(as_searched(list(proofs.values()), searched), spec.constraints)
    if wish.trial is None and not any(point.feasible for point in [*searched, *known]):
        raise SplitsearchError(why_no_front(study))
    first = _first(wish, searched, known)
    asked_pp = bundle_points.accuracy_asked(first, wish.max_drop_pp)
    others = bundle_points.further_points(first, known or searched, wish.points - 1, asked_pp)
    advice = list(warnings_for(first, judged(baseline_points(study), spec.constraints)))
    if over := _over(wish, spec.constraints, first):
        advice.insert(0, f"{first.title} does not keep every limit: {', '.join(over)}")
    if first.trial not in proofs:
        advice.insert(
            0,
            f"trial {first.trial} is not confirmed: its accuracy is the search's own, of one quick training. "
            f"'splitsearch confirm {named}' trains the front anew and tests it",
        )
    new = [point for point in pareto_front(searched) if point.trial not in tried]
    if known and new and wish.trial is None:
        numbers = ", ".join(str(point.trial) for point in new)
        advice.append(
            f"chosen among {len(known)} confirmed points; of the front, trial {numbers} is not confirmed: "
            f"'splitsearch confirm {named}' adds what the front has gained since"
        )
    if len(others) < wish.points - 1:
        among = f" of the {len(known)} confirmed ones" if known else ""
        advice.append(
            f"only {counted(1 + len(others), 'points')}: no other{among} with a drop of at most {asked_pp:.2f} points "
            "(--max-drop-pp) is the fastest at any rate"
        )

    def proof(point: Point) -> Confirmed | None:
        return None if point.trial is None else proofs.get(point.trial)

    return Chosen(
        first=first,
        confirmed=proof(first),
        others=[(each, proof(each)) for each in others],
        max_drop_pp=asked_pp,
        advice=advice,
    )


def _over(wish: Wish, limits: Constraints, point: Point) -> list[str]:
    """The limits of the study, and those asked for, that a point does not keep; one that is named by number may not."""
    asked = Constraints(max_accuracy_drop_pp=wish.max_drop_pp, max_latency_ms=wish.max_latency_ms)
    return [told for each in (limits, asked) for told in each.broken(point.evaluation)]


def _first(wish: Wish, searched: Sequence[Point], known: Sequence[Point]) -> Point:
    """The point that is asked for; ``known`` are the confirmed ones."""
    if wish.trial is not None:
        return find_trial(known if any(point.trial == wish.trial for point in known) else searched, wish.trial)
    front = pareto_front(known or searched)
    if known and not front:
        raise SplitsearchError(
            f"none of the {len(known)} confirmed points keeps the study's limits; take one even so with --trial, "
            "or run more trials and confirm again"
        )
    try:
        return pick_point(front, wish.pick, wish.max_drop_pp, wish.max_latency_ms)
    except SplitsearchError as error:
        if not known:
            raise
        raise SplitsearchError(
            f"of the {len(known)} confirmed points, {error}. One that is not confirmed can be had with --trial"
        ) from None
