"""``check``: what a study would search, and on what, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from evaluators.base import Evaluator
from evaluators.result import HeadCost
from search import tables
from search.front import FORMAT, Point, judged
from search.spec import StudySpec
from spaces.errors import NotFinished
from spaces.partition import Choice, warn_of_encoders


@dataclass(frozen=True, kw_only=True)
class Check:
    """What ``check`` found.

    ``head_ms`` goes with ``choices``; ``distilled_heads`` are those of the space, if it has any; no baselines while the
    uncut model is untrained.
    """

    spec: StudySpec
    choices: list[Choice]
    head_ms: list[float | None]
    distilled_heads: list[HeadCost]
    baselines: list[Point]
    space_size: int | None
    hardware: dict[str, Any]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As ``check --json`` prints it."""
        heads = [cost.to_dict() for cost in self.distilled_heads]
        return {
            "format": FORMAT,
            "model": self.spec.model.name,
            "space_size": self.space_size,
            "points": [_point(choice, ms) for choice, ms in zip(self.choices, self.head_ms, strict=True)],
            "baselines": [point.to_dict() for point in self.baselines],
            **({"distilled_heads": heads} if heads else {}),
        }


def check(spec: StudySpec, evaluator: Evaluator) -> Check:
    """Load and measure; train nothing."""
    points = list(evaluator.partition_points())
    space = spec.space(points)
    notes = []
    try:
        found = [Point(trial=None, evaluation=found) for found in evaluator.baselines(trained=False)]
        baselines = judged(found, spec.constraints)
    except NotFinished as reason:
        baselines, notes = [], [f"No baselines: {reason}."]
    notes += evaluator.notes()
    hardware = evaluator.describe()
    if coded := hardware.get("coded_before"):
        notes.append(f"The pictures were coded before: {coded}.")
    return Check(
        spec=spec,
        choices=warn_of_encoders(spec.choices(points), space.ae_ratios),
        head_ms=evaluator.head_ms(points),
        distilled_heads=evaluator.distilled_heads(space),
        baselines=baselines,
        space_size=space.size,
        hardware=hardware,
        notes=notes,
    )


def tables_of(found: Check) -> Iterator[RenderableType]:
    """The findings for a terminal."""
    yield tables.points_table(
        found.choices, found.head_ms, f"{found.spec.name}: partition points of {found.spec.model.name}"
    )
    if found.distilled_heads:
        yield ""
        yield tables.heads_table(found.distilled_heads)
    if found.baselines:
        yield ""
        yield tables.front_table([], found.baselines, None, "baselines")
    yield tables.hardware_line(found.hardware)
    size = "continuous in TCL strength" if found.space_size is None else f"{found.space_size:,} configurations"
    kept = sum(choice.kept for choice in found.choices)
    yield f"{kept} points are searched; the space is {size}."
    yield from found.notes


def _point(choice: Choice, ms: float | None) -> dict[str, Any]:
    point = choice.point
    tensors = [{"shape": list(shape), "elements": count} for shape, count in zip(point.shapes, point.tensor_elements)]
    return {
        "name": point.name,
        "tensors": tensors,
        "elements": point.elements,
        "float_bytes": point.float_bytes,
        "head_macs": point.head_macs,
        "tail_macs": point.tail_macs,
        "head_ms": ms,
        "kept": choice.kept,
        "why": f"{choice.why}; {choice.warning}" if choice.warning else choice.why,
    }
