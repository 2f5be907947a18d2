"""A finished study on other hardware or another link: the same trials, their latency composed anew, nothing trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from evaluators.latency.compose import sources_of
from evaluators.latency.links import LinkProfile, described_link, load_link
from evaluators.latency.machine_for import machine_for
from evaluators.latency.machines import Machine, Measuring
from evaluators.latency.profiles import load_machine
from evaluators.latency.table import StageTable
from evaluators.result import DEVICE_PARTS, SERVER_PARTS, Evaluation, LatencyParts
from evaluators.store import shared_store
from search.front import Point, judged, pareto_front
from search.points import baseline_points, environment, trial_points
from search.spec import Constraints, StudySpec
from search.tables import hardware_line
from spaces.errors import NotFinished, SpecError


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be different. Every link makes one result; no link keeps the study's own."""

    device: Machine | None = None
    server: Machine | None = None
    links: tuple[LinkProfile | None, ...] = (None,)


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """A study under other circumstances."""

    trials: list[Point]
    baselines: list[Point]
    environment: Mapping[str, Any]

    @property
    def hardware(self) -> str:
        """Device, server and link in a line."""
        return hardware_line(dict(self.environment))

    def to_dict(self) -> dict[str, Any]:
        """One entry of ``replay --json``."""
        places = {key: self.environment[key] for key in ("device", "server", "link")}
        front = [point.to_dict() for point in pareto_front(self.trials)]
        return {**places, "front": front, "baselines": [point.to_dict() for point in self.baselines]}


def replay(
    points: Sequence[Point],
    limits: Constraints,
    *,
    device: Machine | None = None,
    server: Machine | None = None,
    link: LinkProfile | None = None,
) -> list[Point]:
    """Points with their latency composed anew; accuracy and payload stay. What is not given stays as it was.

    Args:
        points: trials or baselines.
        limits: decide anew which points are feasible.

    Raises:
        NotFinished: a machine would have to time something for this.
    """

    def again(point: Point) -> Point:
        evaluation = _anew(point.evaluation, device, server, link)
        feasible = point.trial is None or all(value <= 0 for value in limits.excess(evaluation).values())
        return replace(point, evaluation=evaluation, feasible=feasible)

    return [again(point) for point in points]


def _anew(
    evaluation: Evaluation, device: Machine | None, server: Machine | None, link: LinkProfile | None
) -> Evaluation:
    timings, parts = dict(evaluation.timings), evaluation.latency.to_dict()
    for machine, places in ((device, DEVICE_PARTS), (server, SERVER_PARTS)):
        if machine is None:
            continue
        for part in places:
            stage = part.removesuffix("_ms")
            timings.pop(stage, None)
            if parts[part] and stage not in evaluation.stage_keys:
                raise NotFinished(f"'{evaluation.name}' was scored by an earlier version; run the study again")
        stage_keys = {stage: stage_key for stage, stage_key in evaluation.stage_keys.items() if f"{stage}_ms" in places}
        timings |= machine.timings(stage_keys, lambda machine=machine: _nothing_is_timed(machine))  # type: ignore[misc]
    sent, sources = evaluation.payload_bytes, evaluation.sources
    parts |= {f"{stage}_ms": timing.p50_ms for stage, timing in timings.items()}
    fields: dict[str, Any] = {"timings": timings}
    if link is not None and sent:
        parts["link_ms"] = link.latency_ms(sent)
        fields |= {"link_busy_ms": link.busy_ms(sent), "link_p90_ms": link.p90_ms(sent)}
    sources = sources_of(
        timings,
        device.profile.source if device else sources.device,
        server.profile.source if server else sources.server,
        link.origin if link else sources.link,
    )
    return replace(evaluation, latency=LatencyParts(**parts), sources=sources, **fields)


def _nothing_is_timed(machine: Machine) -> Path:
    record = "'splitsearch profile TARGET --study STUDY'"
    if isinstance(machine, Measuring):
        raise NotFinished(
            f"the study has no timings on {machine.profile.name}, and a replay takes none; record them first with "
            f"{record}, and give the file that it writes"
        )
    raise NotFinished(
        f"what is no network takes on {machine.profile.name} so many times what the study timed on its own machine, "
        "and the store here has no such timings: the study was run elsewhere, or the store was emptied. Replay it "
        f"where it was run, or give a file that {record} writes"
    )


def read_changes(
    spec: StudySpec,
    was: Mapping[str, Any],
    device: str | None,
    server: str | None,
    link: str | None,
    rates: str | None,
) -> Changes:
    """Read what the command line asks for.

    A machine known through what some network or programs take there needs these timed here once; the times are kept.

    Args:
        spec: of the study.
        was: its environment.
        device, server, link, rates: as given, or None.

    Raises:
        SpecError: a profile, link or rate that cannot be right.
    """
    table = StageTable(shared_store(), was.get("timing_scope"))

    def machine(name: str | None, key: str) -> Machine | None:
        if not name:
            return None
        profile = load_machine(name, key)
        profile.check_fits(spec.model.name, spec.data.image_size, key)
        return machine_for(profile, table)

    base = _read_link(link) if link else None
    links: tuple[LinkProfile | None, ...] = (base,)
    if rates:
        base = base or described_link(was["link"])
        links = tuple(_at_rate(base, rate) for rate in rates.split(","))
    return Changes(device=machine(device, "--device"), server=machine(server, "--server"), links=links)


def replay_study(study: optuna.Study, spec: StudySpec, changes: Changes) -> list[ReplayResult]:
    """One result for each link."""
    was = environment(study)
    trials, baselines = trial_points(study), baseline_points(study)
    results = []
    for link in changes.links:
        anew = [
            replay(points, spec.constraints, device=changes.device, server=changes.server, link=link)
            for points in (trials, baselines)
        ]
        asked = {"device": changes.device, "server": changes.server, "link": link}
        now = dict(was) | {place: found.describe() for place, found in asked.items() if found is not None}
        baselines_now = judged(anew[1], spec.constraints)
        results.append(ReplayResult(trials=anew[0], baselines=baselines_now, environment=now))
    return results


def _read_link(text: str) -> LinkProfile:
    rate, colon, rtt = text.partition(":")
    if not colon:
        return _named_link(text)
    numbers = {"rate_mb_per_s": _number(rate, "--link"), "rtt_ms": _number(rtt, "--link")}
    try:
        return load_link(numbers)
    except SpecError as error:
        number = error.key.removeprefix("link.")
        raise SpecError("--link", text, f"RATE:RTT as in 2:10 is needed; of {number}, {error.allowed}") from None


def _named_link(name: str) -> LinkProfile:
    try:
        return load_link(name)
    except SpecError as error:
        raise SpecError("--link", name, f"{error.allowed}, and so does RATE:RTT as in 2:10") from None


def _at_rate(base: LinkProfile, rate: str) -> LinkProfile:
    try:
        return base.at_rate(_number(rate, "--rates"))
    except SpecError as error:
        raise SpecError("--rates", rate, error.allowed) from None


def _number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError(key, text, "a number is needed") from None
