"""Neighbours of a timing: the same kind of stage at other settings, where more work does not take less time.

A head contains the heads of all earlier points, a tail those of all later ones; for features of one shape, more
bottleneck channels make more work for encoder, decoder and packing. A timing out of this order is suspect, however calm
it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from evaluators.result import StageKey, Timing, stage_kind

MOST_DISORDER = 0.20  # of the faster timing: by so much, what does less may take longer
NEGLIGIBLE_MS = 0.05  # and by so much, however fast both are
_RATIO = re.compile(r"/r([0-9.e+-]+)(?=/|$)")  # in the key of what stands at a bottleneck


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One timing with what it is of.

    Attributes:
        stage: as it was asked for: ``head``, ``pack b1``.
        stage_key: what it depends on.
    """

    stage: str
    stage_key: StageKey
    timing: Timing

    @property
    def name(self) -> str:
        """For people, and different for any two: ``encode of layer1/r0.25``."""
        return stage_name(self.stage, self.stage_key)

    @property
    def neighbourhood(self) -> tuple[str, str]:
        """Timings that agree in this are neighbours: all heads, all tails; bottlenecks of one shape of features."""
        ratio = _RATIO.search(self.stage_key.key)
        if ratio is None:
            return stage_kind(self.stage), ""
        # Strides change a network's work as ratios do; of what is no network, only the ratio says how much there is.
        rest = "" if self.stage_key.work else self.stage_key.key[ratio.end() :]
        return stage_kind(self.stage), self.stage_key.key[: ratio.start()] + rest

    def does_less_than(self, other: Timed) -> bool:
        """Whether the other one does all that this one does, and more."""
        own, others = self._amounts, other._amounts
        return own != others and all(less <= more for less, more in zip(own, others, strict=True))

    @property
    def _amounts(self) -> tuple[float, ...]:
        if self.stage_key.work:
            return astuple(self.stage_key.work)
        ratio = _RATIO.search(self.stage_key.key)
        return (float(ratio[1]) if ratio else 0.0,)


def stage_name(stage: str, stage_key: StageKey) -> str:
    """Of a stage with what it depends on: ``head of layer1``."""
    return f"{stage_kind(stage)} of {stage_key.key}"


def standing_out(timed: Iterable[Timed]) -> dict[str, str]:
    """The timings that contradict their neighbours, by name, each with a sentence that says how.

    Of two that contradict each other it is the one that contradicts more; both where neither does.
    """
    groups: dict[tuple[str, str], list[Timed]] = {}
    for each in timed:
        groups.setdefault(each.neighbourhood, []).append(each)
    found: dict[str, str] = {}
    for group in groups.values():
        found |= _standing_out(group)
    return found


def _standing_out(group: Sequence[Timed]) -> dict[str, str]:
    against = {one.name: {other.name: how for other in group if (how := _contradiction(one, other))} for one in group}
    found: dict[str, str] = {}
    while most := max(map(len, against.values()), default=0):
        worst = [name for name, others in against.items() if len(others) == most]
        found |= {name: next(iter(against.pop(name).values())) for name in worst}
        against = {
            name: {other: how for other, how in others.items() if other not in worst}
            for name, others in against.items()
        }
    return found


def _contradiction(one: Timed, other: Timed) -> str:
    """How one timing contradicts another, empty if it does not."""
    if one.does_less_than(other) and _takes_longer(one.timing, other.timing):
        return f"slower than the {other.name}, which does more"
    if other.does_less_than(one) and _takes_longer(other.timing, one.timing):
        return f"faster than the {other.name}, which does less"
    return ""


def _takes_longer(one: Timing, other: Timing) -> bool:
    return one.p50_ms - other.p50_ms > max(NEGLIGIBLE_MS, MOST_DISORDER * other.p50_ms)
