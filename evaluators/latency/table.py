"""Timings that were taken once, one entry of the store each, so that nothing is timed twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evaluators.latency.runners import calmest, timed_calmly
from evaluators.result import Timing, stage_kind
from evaluators.store import Store, StoreKey

KIND = "timing"
FORMAT = 5  # of what is measured and how; in 4 the networks of a half did not share their threads yet

Measure = Callable[[Sequence[str]], dict[str, Timing]]


class StageTable:
    """Timings by machine and stage. Head latency, say, is the same for every trial cut at that point.

    Args:
        store: keeps them; several studies and processes may share one.
        scope: what the names of stages mean, JSON-ready: which network, of which pictures. Timings are found again
            under an equal scope alone.
    """

    def __init__(self, store: Store, scope: Mapping[str, Any] | None = None) -> None:
        self._store, self._scope = store, dict(scope or {})
        self._known: dict[str, Timing] = {}  # by digest of their keys

    def unscoped(self) -> StageTable:
        """The table of what has nothing to do with a study's network: reference networks and programs."""
        return StageTable(self._store)

    def get(self, place: Mapping[str, Any], stages: Mapping[str, str], measure: Measure) -> dict[str, Timing]:
        """Look stages up, and measure those that are missing in one go.

        While one process measures a stage, others that need it wait and then find it.

        Args:
            place: the machine with all that its speed depends on, JSON-ready.
            stages: stage to what its latency depends on there; two of one kind with equal ones take equally long.
            measure: times the stages it is given. What does not come out calm is timed again.

        Returns:
            Stage to timing; a stage that the folder does not have is absent.
        """
        keys = {stage: self._key(place, stage, key) for stage, key in stages.items()}
        missing = {stage: key for stage, key in keys.items() if key.digest not in self._known}
        for stage, timing in self._found_or_made(missing, measure).items():
            again = self._store.known_value(self._key(place, stage, stages[stage], attempt=2))
            self._known[keys[stage].digest] = _better(timing, _timing(again)) if again else timing
        return {stage: self._known[key.digest] for stage, key in keys.items() if key.digest in self._known}

    def again(self, place: Mapping[str, Any], stages: Mapping[str, str], measure: Measure) -> dict[str, Timing]:
        """Measure stages a second time, once and for all, and from then on know the better timing of the two.

        Arguments and result are those of :meth:`get`.
        """
        first = self.get(place, stages, measure)
        seconds = {stage: self._key(place, stage, stages[stage], attempt=2) for stage in first}
        for stage, timing in self._found_or_made(seconds, measure).items():
            first[stage] = _better(first[stage], timing)
            self._known[self._key(place, stage, stages[stage]).digest] = first[stage]
        return first

    def _key(self, place: Mapping[str, Any], stage: str, key: str, **more: int) -> StoreKey:
        known = {"format": FORMAT, "scope": self._scope, "place": dict(place)}
        return StoreKey(KIND, {**known, "stage": stage_kind(stage), "key": key, **more})

    def _found_or_made(self, keys: Mapping[str, StoreKey], measure: Measure) -> dict[str, Timing]:
        # Every process takes them in the same order, so that no two wait for each other; what two stages share, once.
        ordered = {key.digest: stage for stage, key in sorted(keys.items(), key=lambda each: each[1].digest)}
        return self._in_order(list(ordered.values()), keys, _Taken(measure))

    def _in_order(self, stages: Sequence[str], keys: Mapping[str, StoreKey], taken: _Taken) -> dict[str, Timing]:
        """The rows of stages. Those to be made are all locked before the first of them is measured."""
        if not stages:
            return {}
        first, rest = stages[0], stages[1:]
        others: dict[str, Timing] | None = None

        def make() -> dict[str, Any]:
            nonlocal others
            taken.missing.append(first)
            others = self._in_order(rest, keys, taken)
            return _row(taken.of(first))

        try:
            found = {first: _timing(self._store.value(keys[first], make, about=first))}
        except _Absent:
            found = {}
        return found | (self._in_order(rest, keys, taken) if others is None else others)


class _Absent(Exception):
    """A folder does not have a stage."""


class _Taken:
    """Timings of all stages that turned out to be missing, taken when the first of them is asked for."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self.missing: list[str] = []
        self._timings: dict[str, list[Timing]] | None = None

    def of(self, stage: str) -> list[Timing]:
        """All timings of a stage. Raises _Absent if the folder does not have it."""
        if self._timings is None:
            self._timings = timed_calmly(self._measure, self.missing)
        if stage not in self._timings:
            raise _Absent
        return self._timings[stage]


def _timing(row: Mapping[str, Any]) -> Timing:
    return Timing.from_dict(row["timing"])


def _better(one: Timing, other: Timing) -> Timing:
    """The calm one of two, and of two calm ones the faster: what disturbs a stage does not make it faster."""
    return min(one, other, key=lambda timing: (not timing.is_calm, timing.p50_ms))


def _row(timings: Sequence[Timing]) -> dict[str, Any]:
    """What is kept: the calmest timing, and every run of all of them."""
    attempts = [{**timing.to_dict(), "runs_ms": list(timing.runs_ms)} for timing in timings]
    return {"timing": calmest(timings).to_dict(), "attempts": attempts}
