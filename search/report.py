"""The report: one HTML page that needs nothing but a browser."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
import plotly.offline

from evaluators.store import write_whole
from search.confirm import HEADINGS, baseline_cells, cells, confirmed_baselines, confirmed_points, promised
from search.front import Point, baseline_front, judged, not_told_apart, pareto_front, warnings_for
from search.other_links import rate_table
from search.plots import growth_figure, pareto_data, pareto_figure, parts_figure
from search.points import STOPPED, baseline_points, environment, finished_trials, hypervolumes, trial_points
from search.spec import StudySpec
from search.tables import DOUBTFUL, NOT_TOLD_APART, baseline_label, hardware_line, latency_cell, metric_names
from search.verdict import verdicts
from spaces.wording import counted

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; }
body { max-width: 1160px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
.lead { color: #4b5563; margin: 0 0 1.2rem; }
.verdict { border-left: 4px solid #2563eb; background: #f3f6fd; padding: .7rem 1.1rem; margin: 1rem 0; }
.verdict p { margin: .25rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid #e5e7eb; }
th { font-weight: 600; color: #4b5563; } th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.knee td { font-weight: 600; background: #fef2f2; } tr.baseline td { color: #047857; }
pre { background: #f9fafb; border: 1px solid #e5e7eb; padding: 1rem; overflow-x: auto; font-size: .8rem; }
details summary { cursor: pointer; color: #4b5563; } .note { color: #6b7280; font-size: .9rem; }
.sliders { display: grid; grid-template-columns: max-content 1fr max-content; gap: .5rem 1rem; align-items: center; }
.sliders input[type=number] { width: 6.5rem; font: inherit; text-align: right; } .sliders button { font: inherit; }
.sliders input[type=range] { min-width: 0; }
@media (max-width: 640px) { .sliders { grid-template-columns: 1fr max-content; } }
@media (max-width: 640px) { .sliders label { grid-column: 1 / -1; } }
@media (min-width: 900px) { td:nth-child(n + 3) { white-space: nowrap; } }
#winner { min-height: 8.5rem; } #winner p { margin: .3rem 0; } #spans td { text-align: left; }
#spans tr.now td { font-weight: 600; background: #f3f6fd; }
.bar { display: flex; height: 1.4rem; margin: .5rem 0; } .bar span { min-width: 1px; }
.part { margin-right: 1.2rem; white-space: nowrap; }
.dot { display: inline-block; width: .7rem; height: .7rem; margin-right: .35rem; }
"""
_SCRIPT = Path(__file__).with_suffix(".js")
# Filled in by report.js.
_SLIDERS = """
<div class='sliders'>
<label for='rate'>link rate</label><input type='range' id='rate' step='any'>
<span><input type='number' id='rate-number' min='0' step='any' aria-label='link rate in MB/s'> MB/s</span>
<label for='drop'>accuracy given up</label><input type='range' id='drop' min='0' max='10' step='0.1'>
<output id='drop-words' for='drop'></output>
</div>
<p class='note'>At most so many percentage points below the most accurate that keeps the study's limits. {link};
the round trip stays, whatever the rate. <button id='reset' type='button'>as in the study</button></p>
<div id='winner' class='verdict' aria-live='polite'></div>
<div id='rates'></div>
<details open><summary>which wins at which rate</summary><table id='spans'></table></details>
"""


def write_report(study: optuna.Study, spec: StudySpec, target: Path) -> None:
    """Write the page, whole or not at all."""
    write_whole(target, report_html(study, spec))


def report_html(study: optuna.Study, spec: StudySpec) -> str:
    """The page as text."""
    trials, circumstances = trial_points(study), environment(study)
    baselines = judged(baseline_points(study), spec.constraints)
    data = pareto_data(trials, baselines)
    front = pareto_front(trials)
    done = finished_trials(study)
    stopped = sum(STOPPED in trial.user_attrs for trial in done)
    could_not_run = len(done) - len(trials) - stopped
    images = circumstances.get("images", {})
    counts = f"{counted(len(done), 'finished trials')}, {len(front)} on the front, {len(data.infeasible)} over a limit"
    counts += f", {could_not_run} that could not run" if could_not_run else ""
    counts += f", {stopped} stopped early" if stopped else ""
    seen = f", accuracy on {images['search-validation']:,} search-validation images" if images else ""
    knee = data.knee.trial if data.knee else None
    coded = circumstances.get("coded_before", "")
    rates = rate_table(trials, baselines, spec.constraints, circumstances["link"])
    said = verdicts(trials, baselines, spec.constraints.max_latency_ms)
    sections = [
        f"<h1>{html.escape(spec.name)}</h1>",
        f"<p class='lead'>{html.escape(spec.model.name)} on {html.escape(spec.data.name)}: {counts}{seen}.<br>"
        f"{html.escape(hardware_line(circumstances))}</p>",
        f"<div class='verdict'>{''.join(f'<p>{html.escape(line)}</p>' for line in said)}</div>",
        "<h2>What wins on another link, or for more accuracy</h2>",
        _SLIDERS.format(link=html.escape(f"The study's link: {rates['link']}")),
        _data("rate-table", rates),
        "<h2>Accuracy against latency</h2>",
        _figure(pareto_figure(data), "pareto"),
        "<p class='note'>On the study's own link. Hover over a point for its whole configuration, drag to zoom, click "
        "a legend entry to hide its points. The drop is paired: the same images as the "
        "uncut model. Test images were not used.</p>",
        f"<p class='note'>The pictures were coded before: {html.escape(coded)}.</p>" if coded else "",
        "<h2>Where the time goes</h2>",
        _figure(parts_figure(front, baselines), "parts"),
        "<h2>How the front grew</h2>",
        "<p class='note'>Hypervolume: the area between the front and the lowest accuracy and highest latency worth "
        "having, as a share of what it came to. A search whose curve is still rising has more to find.</p>",
        _figure(growth_figure(hypervolumes(study, spec.constraints)), "growth"),
        "<h2>Front and baselines</h2>",
        "<p class='note'>frames/s: when device, link and server work on consecutive images at the same time; the "
        "slowest of the three rules.</p>",
        _table(front, baseline_front(baselines), baselines, knee),
        f"<details><summary>{len(data.left_out)} more baselines, beaten by these or over a limit</summary>"
        f"{_table([], data.left_out, baselines, None)}</details>",
        *_confirmed(study),
        "<h2>Circumstances</h2>",
        f"<details><summary>machine, versions, hardware</summary><pre>{_json(circumstances)}</pre></details>",
        f"<details><summary>study file</summary><pre>{_json(spec.raw)}</pre></details>",
    ]
    body = "\n".join(sections)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(spec.name)} - splitsearch</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n<script type='text/plain' id='plotly'>{_packed_plotly()}</script>\n"
        f"<script>{_SCRIPT.read_text()}</script>\n</body></html>\n"
    )


def _confirmed(study: optuna.Study) -> list[str]:
    """What confirmation found, beside what the search had promised; nothing before that."""
    found = sorted(confirmed_points(study), key=lambda each: each.latency_ms)
    if not found:
        return []
    rows = [["trial", "what", *HEADINGS]]
    rows += map(cells, found)
    rows += map(baseline_cells, confirmed_baselines(study))
    lines = [
        f"<tr>{''.join(f'<{kind}>{html.escape(cell)}</{kind}>' for cell in row)}</tr>"
        for row, kind in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True)
    ]
    return [
        "<h2>Confirmed</h2>",
        "<p class='note'>Trained anew with more budget and several seeds. Test images chose nothing; the interval is "
        f"for other seeds and other images. Baselines have the search's own networks. {promised(found)}</p>",
        f"<table>{''.join(lines)}</table>",
    ]


def _figure(figure: go.Figure, name: str) -> str:
    return f"<div id='{name}'></div>{_data(f'{name}-figure', figure.to_plotly_json())}"


def _data(name: str, value: Any) -> str:
    """A value for report.js; no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f"<script type='application/json' id='{name}'>{text}</script>"


@functools.cache
def _packed_plotly() -> str:
    """Plotly's library, which a page carries along: 4.8 MB, compressed 2.0. Its Python package has no smaller one."""
    return base64.b64encode(gzip.compress(plotly.offline.get_plotlyjs().encode(), mtime=0)).decode()


def _table(front: Sequence[Point], shown: Sequence[Point], baselines: Sequence[Point], knee: int | None) -> str:
    """Front points and the baselines that are shown; ``baselines`` are all that may beat a point of the front."""
    metrics = metric_names([*front, *shown])
    heads = (
        "trial",
        "what",
        "accuracy",
        *metrics,
        "drop pp (95 %)",
        "bytes",
        "latency ms",
        "device",
        "link",
        "server",
        "frames/s",
    )
    rows = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    close = not_told_apart(front)
    for point in [*front, *shown]:
        found = point.evaluation
        marks = " (knee)" if point.trial is not None and point.trial == knee else ""
        marks += " (beaten by a baseline)" if point.trial is not None and warnings_for(point, baselines) else ""
        kind = "baseline" if point.trial is None else "knee" if point.trial == knee else ""
        low, high = found.drop_interval_pp
        cells = (
            "" if point.trial is None else str(point.trial),
            html.escape(baseline_label(point)) + marks,
            f"{'~' if point.trial is not None and point.trial in close else ''}{found.accuracy:.2%}",
            *(f"{found.metrics[name]:.2%}" if name in found.metrics else "" for name in metrics),
            f"{found.accuracy_drop_pp:+.2f} ({low:+.2f} to {high:+.2f})",
            f"{found.payload_bytes:,.0f}",
            latency_cell(found),
            f"{found.latency.device_ms:.2f}",
            f"{found.latency.link_ms:.2f}",
            f"{found.latency.server_ms:.2f}",
            f"{found.frames_per_s:.1f}",
        )
        rows.append(f"<tr class='{kind}'>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    said = doubts([*front, *shown])
    said += f"<p class='note'>{html.escape(NOT_TOLD_APART)}</p>" if close else ""
    return f"<table>{''.join(rows)}</table>{said}"


def doubts(points: Sequence[Point]) -> str:
    """Each doubt about a timing once, with whatever it is about."""
    about: dict[str, list[str]] = {}
    for point in points:
        for warning in point.evaluation.warnings:
            about.setdefault(warning, []).append(point.name if point.trial is None else f"trial {point.trial}")
    lines = (f"<li>{html.escape(warning)} ({html.escape('; '.join(names))})</li>" for warning, names in about.items())
    return f"<p class='note'>{html.escape(DOUBTFUL)}:</p><ul class='note'>{''.join(lines)}</ul>" if about else ""


def _json(value: Any) -> str:
    return html.escape(json.dumps(value, indent=2, default=str))
