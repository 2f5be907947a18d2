"""Plotly figures of a study. Data first (``pareto_data``), figure second, so that tests look at data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from evaluators.result import FINE_TUNED, LatencyParts
from search.front import Point, baseline_front, knee, pareto_front

_INK, _GRID = "#1f2937", "#e5e7eb"
_FRONT, _TRIAL, _INFEASIBLE, _KNEE = "#2563eb", "#93b4f0", "#c4c8cf", "#dc2626"
# By what a baseline's name is without quality and training.
_BASELINES = {
    "all-on-device": "#b45309",
    "server-only, raw": "#047857",
    "server-only, JPEG": "#10b981",
    "server-only, WebP": "#0891b2",
    "server-only, AVIF": "#7c3aed",
}
_OTHER_BASELINE, _LEFT_OUT = "#4b5563", "#d1d5db"
# Device in blues, link in amber, server in greens: where the time goes is seen before any label is read.
PART_COLOURS = {
    "head_ms": "#1e3a8a",
    "encode_ms": "#2563eb",
    "pack_ms": "#60a5fa",
    "compress_ms": "#bfdbfe",
    "link_ms": "#f59e0b",
    "decompress_ms": "#d1fae5",
    "unpack_ms": "#6ee7b7",
    "decode_ms": "#10b981",
    "tail_ms": "#065f46",
}


@dataclass(frozen=True, kw_only=True)
class ParetoData:
    """The points of the Pareto plot, each in exactly one group; the knee is also on the front.

    ``baselines`` are those that no other one beats, ``left_out`` the rest.
    """

    front: list[Point]
    dominated: list[Point]
    infeasible: list[Point]
    baselines: list[Point]
    left_out: list[Point]
    knee: Point | None


def pareto_data(trials: Sequence[Point], baselines: Sequence[Point]) -> ParetoData:
    """Sort trials into front, dominated and infeasible, and baselines by whether another one beats them."""
    front, shown = pareto_front(trials), baseline_front(baselines)
    numbers = {point.trial for point in front}
    return ParetoData(
        front=front,
        dominated=[point for point in trials if point.feasible and point.trial not in numbers],
        infeasible=[point for point in trials if not point.feasible],
        baselines=shown,
        left_out=[point for point in baselines if point not in shown],
        knee=knee(front) if front else None,
    )


def hover(point: Point) -> str:
    """Everything about a point: configuration, both objectives, payload, every latency part with its source."""
    found = point.evaluation
    title = f"trial {point.trial}" if point.trial is not None else found.name
    lines = [f"<b>{title}</b>"]
    if found.config:
        config = found.config.to_dict()
        lines += [f"{key}: {value:.4g}" if key == "tcl" else f"{key}: {value}" for key, value in config.items()]
    low, high = found.drop_interval_pp
    lines += [
        f"accuracy: {found.accuracy:.2%} (drop {found.accuracy_drop_pp:+.2f} pp, 95 % {low:+.2f} to {high:+.2f})",
        *(f"{name}: {value:.2%}" for name, value in found.metrics.items()),
        f"payload: {found.payload_bytes:,.0f} bytes",
        f"<b>latency: {found.latency_ms:.3f} ms</b>",
    ]
    for name, ms in found.latency.to_dict().items():
        if ms:
            lines.append(f"  {name.removesuffix('_ms')}: {ms:.3f} ms ({point.evaluation.source_of(name)})")
    lines += [f"doubtful: {warning}" for warning in found.warnings]
    lines.append(f"throughput, all three at work: {found.frames_per_s:.1f} frames/s")
    return "<br>".join(lines)


def pareto_figure(data: ParetoData) -> go.Figure:
    """Accuracy against latency: every trial, the front, the baselines. It opens where the last two are: a trial far
    below them would press them flat.
    """
    figure, window = go.Figure(), _window(data)
    _scatter(figure, "trial over a limit", data.infeasible, {"color": _INFEASIBLE, "symbol": "x-thin-open", "size": 8})
    _scatter(figure, "trial", data.dominated, {"color": _TRIAL, "size": 8})
    _scatter(
        figure, "front", data.front, {"color": _FRONT, "size": 11}, line={"color": _FRONT, "width": 2, "shape": "hv"}
    )
    if data.knee:
        ring = {"color": _KNEE, "size": 18, "symbol": "circle-open", "line": {"width": 3}}
        _scatter(figure, "knee", [data.knee], ring)
    for kind in dict.fromkeys(_kind(point) for point in data.baselines):
        colour, points = _BASELINES.get(kind, _OTHER_BASELINE), [p for p in data.baselines if _kind(p) == kind]
        given = [point for point in points if not point.name.endswith(FINE_TUNED)]
        tuned = [point for point in points if point.name.endswith(FINE_TUNED)]
        _scatter(figure, kind, given, {"color": colour, "symbol": "diamond", "size": 11}, texts=_qualities(given))
        open_diamond = {"color": colour, "symbol": "diamond-open", "size": 11}
        _scatter(figure, kind + FINE_TUNED, tuned, open_diamond, texts=_qualities(tuned))
    small = {"color": _LEFT_OUT, "symbol": "diamond", "size": 6}
    _scatter(figure, "other baselines", data.left_out, small, visible="legendonly")
    figure.update_layout(
        **_layout(),
        xaxis={"title": "latency (ms), less is better", "gridcolor": _GRID, "zeroline": False, "rangemode": "tozero"},
        yaxis={"title": "accuracy, more is better", "gridcolor": _GRID, "zeroline": False, "tickformat": ".2~%"},
        height=600,
        hovermode="closest",
        updatemenus=[_zoom(window)],
    )
    figure.update_layout(xaxis_range=window["xaxis.range"], yaxis_range=window["yaxis.range"], margin={"b": 110})
    return figure


def _kind(baseline: Point) -> str:
    """``server-only, JPEG`` of ``server-only, JPEG 50, fine-tuned``."""
    return baseline.name.removesuffix(FINE_TUNED).rstrip(" 0123456789")


def _qualities(baselines: Sequence[Point]) -> list[str]:
    return [point.name.removesuffix(FINE_TUNED).removeprefix(_kind(point)).strip() for point in baselines]


def _window(data: ParetoData) -> dict[str, list[float]]:
    """Ranges of the axes with the front and the baselines in them; of all trials where there is neither."""
    near = [*data.front, *data.baselines] or [*data.dominated, *data.infeasible]
    latest = max((point.latency_ms for point in near), default=1.0)
    accuracies = [point.accuracy for point in near] or [0.0, 1.0]
    low, high = min(accuracies), max(accuracies)
    pad = 0.05 * (high - low) + 0.005
    return {"xaxis.range": [0, 1.05 * latest], "yaxis.range": [low - 2 * pad, high + pad]}


def _zoom(window: dict[str, list[float]]) -> dict[str, Any]:
    """Two buttons: the corner where the front is, and every trial."""
    everything = {"xaxis.autorange": True, "yaxis.autorange": True}
    buttons = [
        {"label": "front and baselines", "method": "relayout", "args": [window]},
        {"label": "every trial", "method": "relayout", "args": [everything]},
    ]
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1.1,
        "pad": {"t": 0},
    }


def parts_figure(points: Sequence[Point], baselines: Sequence[Point]) -> go.Figure:
    """Stacked latency parts of front points, and below them of the baselines that matter, once for the network as given
    and fine-tuned, which takes as long.
    """
    rivals = {point.name.removesuffix(FINE_TUNED): point for point in baseline_front(baselines)}
    rows = [*list(rivals.values())[::-1], *list(points)[::-1]]
    labels = [f"{name} " for name in rivals][::-1] + [f"{point.trial}: {point.name} " for point in points][::-1]
    figure = go.Figure()
    for name in LatencyParts.names():
        values = [getattr(point.evaluation.latency, name) for point in rows]
        if not any(values):
            continue
        texts = [
            f"{name.removesuffix('_ms')}: {ms:.3f} ms ({point.evaluation.source_of(name)})"
            for point, ms in zip(rows, values)
        ]
        figure.add_bar(
            name=name.removesuffix("_ms"),
            y=labels,
            x=values,
            orientation="h",
            marker={"color": PART_COLOURS[name]},
            hovertext=texts,
            hoverinfo="text",
        )
    figure.update_layout(
        **_layout(),
        barmode="stack",
        xaxis={"title": "latency (ms)", "gridcolor": _GRID, "zeroline": False},
        yaxis={"automargin": True, "tickfont": {"size": 12}},
        height=200 + 26 * len(rows),
        bargap=0.3,
    )
    figure.update_layout(legend={"traceorder": "normal"}, margin={"b": 110})
    return figure


def growth_figure(hypervolumes: Sequence[float]) -> go.Figure:
    """How the front grew from trial to trial, as shares of what it came to."""
    most, count = max(hypervolumes, default=0.0) or 1.0, len(hypervolumes)
    figure = go.Figure(layout=_layout())
    figure.add_scatter(
        x=list(range(1, count + 1)),
        y=[volume / most for volume in hypervolumes],
        mode="lines+markers",  # one trial alone makes no line
        marker={"color": _FRONT, "size": 4},
        line={"color": _FRONT, "width": 2, "shape": "hv"},
        hovertemplate="after %{x} trials %{y:.1%}<extra></extra>",
    )
    figure.update_layout(
        xaxis={"title": "trials", "gridcolor": _GRID, "zeroline": False, "dtick": 1 if count < 10 else None},
        yaxis={"title": "hypervolume", "gridcolor": _GRID, "tickformat": ".0%", "rangemode": "tozero"},
        height=320,
    )
    return figure


def _scatter(
    figure: go.Figure,
    name: str,
    points: Sequence[Point],
    marker: dict[str, Any],
    *,
    line: dict[str, Any] | None = None,
    texts: list[str] | None = None,
    visible: bool | str = True,
) -> None:
    if not points:
        return
    mode = "markers" + ("+lines" if line else "") + ("+text" if texts and any(texts) else "")
    figure.add_scatter(
        name=name,
        visible=visible,
        x=[point.latency_ms for point in points],
        y=[point.accuracy for point in points],
        mode=mode,
        marker=marker,
        line=line,
        text=texts,
        textposition="bottom center",
        textfont={"size": 11, "color": marker["color"]},
        hovertext=[hover(point) for point in points],
        hoverinfo="text",
        cliponaxis=False,  # whole markers at the edge
    )


def _layout() -> dict[str, Any]:
    return {
        "template": "plotly_white",
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": _INK},
        "margin": {"l": 70, "r": 20, "t": 40, "b": 60},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "xref": "container", "x": 0},
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"size": 12}},
    }
