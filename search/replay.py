"""A finished study on other hardware or another link: the same trials, their latency composed anew, nothing trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from evaluators.latency.links import LinkProfile, load_link
from evaluators.latency.machines import Machine
from evaluators.latency.profiles import load_machine
from evaluators.latency.reference import machine_for
from evaluators.latency.runners import LocalRunner
from evaluators.latency.table import StageTable
from evaluators.result import DEVICE_PARTS, SERVER_PARTS, Evaluation, LatencyParts
from search.front import Point, pareto_front
from search.spec import Constraints, StudySpec
from search.study import baseline_points, environment, trial_points
from search.tables import hardware_line
from spaces.errors import SpecError


def replay(
    points: Sequence[Point],
    was: Mapping[str, Any],
    limits: Constraints,
    *,
    device: Machine | None = None,
    server: Machine | None = None,
    link: LinkProfile | None = None,
) -> list[Point]:
    """Points with their latency composed anew; accuracy and payload stay.

    A device's or server's parts are scaled by its factor over the factor they were recorded with. What is not given
    stays as it was.

    Args:
        points: trials or baselines.
        was: the study's environment, with the factors its latencies were recorded with.
        limits: decide anew which points are feasible.
    """
    device_scale = device.factor / was["device"]["factor"] if device else 1.0
    server_scale = server.factor / was["server"]["factor"] if server else 1.0

    scales = dict.fromkeys(DEVICE_PARTS, device_scale) | dict.fromkeys(SERVER_PARTS, server_scale)

    def anew(evaluation: Evaluation) -> Evaluation:
        parts = evaluation.latency.to_dict()
        parts |= {name: parts[name] * scale for name, scale in scales.items()}
        busy_ms = evaluation.link_busy_ms
        if link is not None and evaluation.payload_bytes > 0:
            parts["link_ms"] = link.latency_ms(evaluation.payload_bytes)
            busy_ms = link.busy_ms(evaluation.payload_bytes)
        timings = {stage: timing.scaled(scales[f"{stage}_ms"]) for stage, timing in evaluation.timings.items()}
        sources = replace(
            evaluation.sources,
            device=device.source if device else evaluation.sources.device,
            server=server.source if server else evaluation.sources.server,
        )
        return replace(
            evaluation, latency=LatencyParts(**parts), sources=sources, link_busy_ms=busy_ms, timings=timings
        )

    def again(point: Point) -> Point:
        evaluation = anew(point.evaluation)
        feasible = point.trial is None or all(value <= 0 for value in limits.excess(evaluation).values())
        return replace(point, evaluation=evaluation, feasible=feasible)

    return [again(point) for point in points]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be different. Every link makes one scene; no link keeps the study's own."""

    device: Machine | None
    server: Machine | None
    links: tuple[LinkProfile | None, ...]


@dataclass(frozen=True, kw_only=True)
class Scene:
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


def read_changes(
    spec: StudySpec, folder: Path, device: str | None, server: str | None, link: str | None, rates: str | None
) -> Changes:
    """Read what the command line asks for.

    A machine known through a published latency needs that network timed here once; the time is kept in ``folder``.

    Raises:
        SpecError: a profile, link or rate that cannot be right.
    """
    table = StageTable(folder / "latency.json")

    def machine(name: str | None, key: str) -> Machine | None:
        return machine_for(load_machine(name, key), LocalRunner(), table) if name else None

    base = _read_link(link) if link else None
    links: tuple[LinkProfile | None, ...] = (base,)
    if rates:
        rtt_ms = (base or spec.link).rtt_ms
        links = tuple(
            load_link({"rate_mb_per_s": _number(rate, "--rates"), "rtt_ms": rtt_ms}) for rate in rates.split(",")
        )
    return Changes(device=machine(device, "--device"), server=machine(server, "--server"), links=links)


def replay_study(study: optuna.Study, spec: StudySpec, changes: Changes) -> list[Scene]:
    """One scene for each link."""
    was = environment(study)
    trials, baselines = trial_points(study), baseline_points(study)
    scenes = []
    for link in changes.links:
        asked = {"device": changes.device, "server": changes.server, "link": link}
        now = dict(was)
        for key in ("device", "server"):
            machine = asked[key]
            now[key] = machine.describe() if isinstance(machine, Machine) else was[key]
        if link is not None:
            now["link"] = {"rate_mb_per_s": link.rate_mb_per_s, "rtt_ms": link.rtt_ms}
        anew = [
            replay(points, was, spec.constraints, device=changes.device, server=changes.server, link=link)
            for points in (trials, baselines)
        ]
        scenes.append(Scene(trials=anew[0], baselines=anew[1], environment=now))
    return scenes


def _read_link(text: str) -> LinkProfile:
    rate, colon, rtt = text.partition(":")
    if not colon:
        return load_link(text)
    return load_link({"rate_mb_per_s": _number(rate, "--link"), "rtt_ms": _number(rtt, "--link")})


def _number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError(key, text, "a number is needed") from None
