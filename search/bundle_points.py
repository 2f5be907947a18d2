"""Several points in one bundle: which ones, and how they are written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluators.base import Evaluator
from evaluators.edge import points, seal
from evaluators.edge.verify import write_prediction
from evaluators.store import file_digest
from search.confirm import Confirmed
from search.front import Point
from search.verdict import MOST_GIVEN_AWAY, fastest_by_rate


def accuracy_asked(first: Point, max_drop_pp: float | None) -> float:
    """The highest drop of a further point in percentage points: as given, else a point below the bundle's first."""
    return first.evaluation.accuracy_drop_pp + 100 * MOST_GIVEN_AWAY if max_drop_pp is None else max_drop_pp


def further_points(first: Point, known: Sequence[Point], count: int, max_drop_pp: float) -> list[Point]:
    """The points that are fastest at some link rate, besides the first; those for slow links first.

    Args:
        first: already in the bundle.
        known: to choose from.
        count: how many at most.
        max_drop_pp: highest accuracy drop in percentage points.
    """
    kept = [point for point in known if point.feasible and point.evaluation.accuracy_drop_pp <= max_drop_pp]
    winners = [span.point for span in fastest_by_rate(kept)] if kept else []
    others = {point.trial: point for point in winners if point.trial != first.trial}
    return list(others.values())[:count]


def write_points(
    folder: Path,
    first: Point,
    others: Sequence[tuple[Point, Confirmed | None]],
    evaluator: Evaluator,
    environment: dict[str, Any],
    max_drop_pp: float | None,
) -> dict[str, Any]:
    """Put further points into both halves, heads of one cut only once; what ``bundle.json`` says of all points."""
    if not others:
        return {}
    listed, heads = [_in_bundle(first, "1")], _heads(folder / "device", {})
    for number, (point, confirmed) in enumerate(others, 2):
        _export(folder, str(number), point, confirmed, evaluator)
        place, found = points.folder_of(folder / "device", str(number)), point.evaluation
        parts, sources = found.latency.to_dict(), found.sources.to_dict()
        write_prediction(place, parts, sources, found.payload_bytes, environment.get("link", {}))
        heads = _heads(place, heads)
        listed.append(_in_bundle(point, str(number)))
    points.write(folder / "device", listed, max_drop_pp)
    return {"points": [asdict(each) for each in listed], "fastest_by_rate": points.by_rate(listed)}


def rate_rows(table: dict[str, Any]) -> str:
    """Rows of a Markdown table: from which rate on which point is the fastest."""
    known = {each["version"]: each for each in table["points"]}
    return "".join(
        f"| {row['from_mb_per_s']:.4g} | {row['version']} | {known[row['version']]['trial']} "
        f"| {known[row['version']]['name']} |\n"
        for row in table["fastest_by_rate"]
    )


def _export(folder: Path, version: str, point: Point, confirmed: Confirmed | None, evaluator: Evaluator) -> None:
    """Both halves of a further point without their code, which is the first point's."""
    config = point.evaluation.config
    assert config is not None
    budget, seed = (confirmed.budget, confirmed.seeds[0]) if confirmed else (None, None)
    making = folder / "making"
    making.mkdir()
    evaluator.export(config, making, budget=budget, seed=seed)
    for side in seal.SIDES:
        shutil.rmtree(making / side / "edge", ignore_errors=True)
        (making / side / "__main__.py").unlink(missing_ok=True)
        (folder / side / "points").mkdir(exist_ok=True)
        (making / side).rename(points.folder_of(folder / side, version))
    making.rmdir()


def _heads(place: Path, known: dict[str, Path]) -> dict[str, Path]:
    """Leave out a point's head where another has the same; the heads known with it, by their digests."""
    head, manifest = place / "head.onnx", place / "device.json"
    if not head.exists():
        return known
    digest = file_digest(head)
    if digest in known:
        shared = os.path.relpath(known[digest], place)
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"models": {"head": shared}}) + "\n")
        head.unlink()
    return {digest: head, **known}


def _in_bundle(point: Point, version: str) -> points.PointInBundle:
    found = point.evaluation
    assert point.trial is not None
    return points.PointInBundle(
        version=version,
        trial=point.trial,
        name=point.name,
        drop_pp=found.accuracy_drop_pp,
        payload_bytes=found.payload_bytes,
        fixed_ms=found.latency_ms - found.latency.link_ms,
    )
