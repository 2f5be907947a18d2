"""Front, baselines and partition points as tables for a terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from evaluators.result import MOST_OTHERS, MOST_SPREAD, NEGLIGIBLE_MS, Evaluation, HeadCost, LatencyParts
from search.fitting_table import FittingTable
from search.front import Point, baseline_front, not_told_apart, warnings_for
from spaces.partition import Choice

LEAST_WORDS = 20  # places for a column of words
_PLACES = ("device", "server", "link")
DOUBTFUL = (
    f"* a stage was timed with a spread over {MOST_SPREAD:.0%} and {NEGLIGIBLE_MS:g} ms, or while the machine was "
    f"slowed down or had other work (over {MOST_OTHERS:.0%}), or is modelled with an unknown error"
)

NOT_TOLD_APART = "~ these images do not tell its accuracy from that of the next faster point"


def front_table(
    front: Sequence[Point],
    baselines: Sequence[Point],
    chosen: Point | None,
    title: str,
    *,
    everything: bool = False,
) -> FittingTable:
    """Front points fastest first, then the baselines that matter (:func:`search.front.baseline_front`), or with
    ``everything`` all of them.

    A point of the front that a baseline beats is marked, as is a baseline that does not keep the study's limits.
    """
    shown = list(baselines) if everything else baseline_front(baselines)
    metrics = metric_names([*front, *baselines])
    table = FittingTable(title, ("frames/s", "server", "link", "device", *metrics, "bytes"))
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold", min_width=LEAST_WORDS)
    rest = ("drop pp", "bytes", "latency ms", "device", "link", "server", "frames/s")
    for heading in ("accuracy", *metrics, *rest):
        table.add_column(heading, justify="right", no_wrap=True)
    close = not_told_apart(front)
    for point in front:
        knee = point is chosen
        marks = ["<- knee"] if knee else []
        marks += ["(beaten by a baseline)"] if warnings_for(point, baselines) else []
        table.add_row(
            str(point.trial),
            "  ".join([point.name, *marks]),
            *_cells(point, metrics, "~" if point.trial in close else ""),
            style="bold" if knee else "",
        )
    table.add_section()
    for point in shown:
        table.add_row("", baseline_label(point), *_cells(point, metrics), style="cyan" if point.feasible else "dim")
    notes = [DOUBTFUL] if any(point.evaluation.warnings for point in [*front, *shown]) else []
    notes += [NOT_TOLD_APART] if close else []
    if left_out := len(baselines) - len(shown):
        notes.append(f"left out: {left_out} baselines that are beaten by one of these, or over a limit")
    table.caption = "\n".join(notes) or None
    return table


def baseline_label(point: Point) -> str:
    """A baseline's name, and which of the study's limits it does not keep."""
    return f"{point.name}  ({', '.join(point.broken)})" if point.broken else point.name


def latency_cell(found: Evaluation) -> str:
    """Milliseconds, with a mark where a timing behind them is not to be trusted."""
    return f"{found.latency_ms:.2f}{'*' if found.warnings else ''}"


def metric_names(points: Sequence[Point]) -> list[str]:
    """Metrics beside accuracy, as far as there are any."""
    return list(dict.fromkeys(name for point in points for name in point.evaluation.metrics))


def _cells(point: Point, metrics: Sequence[str], mark: str = "") -> list[str]:
    found = point.evaluation
    return [
        f"{mark}{found.accuracy:.1%}",
        *(f"{found.metrics[name]:.1%}" if name in found.metrics else "" for name in metrics),
        f"{found.accuracy_drop_pp:+.1f}",
        f"{found.payload_bytes:,.0f}",
        latency_cell(found),
        f"{found.latency.device_ms:.2f}",
        f"{found.latency.link_ms:.2f}",
        f"{found.latency.server_ms:.2f}",
        f"{found.frames_per_s:.1f}",
    ]


def hardware_line(environment: dict[str, Any]) -> str:
    """``device raspberry_pi_4b (modelled: measured here x 4.9), server local (measured, 2 threads), link 2 MB/s, 2 ms
    round trip (modelled)``, and what accuracy is where that is not top-1.
    """

    def place(key: str) -> str:
        found = environment[key]
        # Studies of earlier versions have no words for it, and links without a name.
        name = found.get("name") or f"{found['rate_mb_per_s']:g} MB/s with {found['rtt_ms']:g} ms round trip"
        return f"{key} {name} ({found.get('how') or found.get('source', 'modelled')})"

    metric = environment.get("metric", "top-1")  # which most people take for granted
    return ", ".join(place(key) for key in _PLACES) + ("" if metric == "top-1" else f"; accuracy is {metric}")


def points_table(choices: Sequence[Choice], head_ms: Sequence[float | None], title: str) -> FittingTable:
    """Partition points from input to output."""
    table = FittingTable(title, ("k params head + tail", "float bytes", "MMACs head + tail"))
    table.add_column("point", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for heading in ("float bytes", "MMACs head + tail", "k params head + tail", "head ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("searched", overflow="fold", min_width=LEAST_WORDS)
    for choice, ms in zip(choices, head_ms, strict=True):
        point = choice.point
        table.add_row(
            point.name,
            " + ".join("x".join(map(str, shape)) for shape in point.shapes),
            f"{point.float_bytes:,}",
            f"{point.head_macs / 1e6:,.1f} + {point.tail_macs / 1e6:,.1f}",
            f"{point.head_params / 1e3:,.0f} + {point.tail_params / 1e3:,.0f}",
            "-" if ms is None else f"{ms:.2f}",
            f"yes{', but ' if choice.warning else ''}{choice.warning}" if choice.kept else f"no: {choice.why}",
            style="" if choice.kept else "dim",
        )
    return table


def heads_table(costs: Sequence[HeadCost]) -> FittingTable:
    """Distilled heads, one row for all points that share one; then the points that have none, and why."""
    table = FittingTable("distilled heads", ("k params", "MMACs"))
    table.add_column("head", no_wrap=True)
    table.add_column("in place of the own head up to", overflow="fold", min_width=LEAST_WORDS)
    for heading in ("MMACs", "k params", "head ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in sorted(costs, key=lambda cost: bool(cost.why)):
        points = ", ".join(cost.points)
        if cost.macs is None or cost.params is None:
            table.add_row(cost.head, f"none for {points}: {cost.why}", style="dim")
            continue
        ms = "-" if cost.ms is None else f"{cost.ms:.2f}"
        table.add_row(cost.head, points, f"{cost.macs / 1e6:,.1f}", f"{cost.params / 1e3:,.0f}", ms)
    return table


def to_csv(front: Sequence[Point], baselines: Sequence[Point]) -> str:
    """One row a point: the keys of ``front --json``, inner ones flattened, then throughput and warnings."""
    config_keys = ["partition", "ae_ratio", "bits", "tcl", "lzma"]
    configs = [point.evaluation.config for point in front]
    further = {key for config in configs if config for key in config.to_dict()} - set(config_keys)
    config_keys += sorted(further)  # coder and stride, where a study asks for them
    columns = ["kind", "trial", "name", "accuracy", "latency_ms", "payload_bytes", "feasible", *config_keys]
    columns += [*LatencyParts.names(), "source_device", "source_server", "source_link"]
    columns += ["latency_p90_ms", "frames_per_s", "warnings", *metric_names([*front, *baselines])]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for kind, points in (("front", front), ("baseline", baselines)):
        for point in points:
            row = point.to_dict()
            config, latency, sources = row.pop("config") or {}, row.pop("latency"), row.pop("sources")
            places = {f"source_{place}": source for place, source in sources.items()}
            found = point.evaluation
            further_cells: dict[str, Any] = {"latency_p90_ms": found.latency_p90_ms}
            further_cells |= {"frames_per_s": found.frames_per_s, "warnings": "; ".join(found.warnings)}
            writer.writerow({"kind": kind, **row, **config, **latency, **places, **further_cells, **found.metrics})
    return text.getvalue()
