"""What the dashboard says in words, as Markdown: a note on the study, and one on each trial of the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from search.confirm import HEADINGS, Confirmed, cells, promised
from search.front import Point, pareto_front, warnings_for
from search.verdict import verdicts

OURS = "*Written by splitsearch, which keeps it up to date. What stands below this line is yours and stays.*"
LEFT_THE_FRONT = "No longer on the front."
_WORDS = ("what", "part", "where", "how it is known")  # columns of words; the others are numbers


def renewed(note: str, ours: str) -> str:
    """A note with our part written anew, and below it whatever somebody else wrote."""
    above, mark, below = note.partition(OURS)
    kept = below if mark else above
    return f"{ours}\n\n---\n\n{OURS}\n\n{kept.strip()}".rstrip() + "\n"


def study_note(
    name: str,
    trials: Sequence[Point],
    baselines: Sequence[Point],
    confirmed: Sequence[Confirmed],
    hardware: str,
    links: Mapping[str, str],
    max_latency_ms: float | None = None,
) -> str:
    """The verdict, the front and what confirmation made of it.

    Args:
        name: of the study.
        trials: all that were scored.
        baselines: all of them, judged by the study's limits.
        confirmed: the points that were trained anew, if any.
        hardware: device, server and link in words.
        links: of what is kept beside the study, by its name.
        max_latency_ms: the study's limit.
    """
    front = pareto_front(trials)
    kept = ", ".join(f"[{text}]({link})" for text, link in links.items())
    rows = [[str(point.trial), point.name, *_figures(point)] for point in front]
    parts = [
        f"# {name}",
        _best_trials(trials, front),
        "\n".join(f"- {line}" for line in verdicts(trials, baselines, max_latency_ms)),
        _table(["trial", "what", "accuracy", "drop pp", "bytes", "latency ms"], rows) if front else "",
        *_confirmed(confirmed),
        f"{hardware}.",
        f"Kept with the study: {kept}." if kept else "",
    ]
    return "\n\n".join(filter(None, parts))


def _figures(point: Point) -> list[str]:
    found = point.evaluation
    drop, sent = f"{found.accuracy_drop_pp:+.1f}", f"{found.payload_bytes:,.0f}"
    return [f"{point.accuracy:.1%}", drop, sent, f"{point.latency_ms:.2f}"]


def _confirmed(confirmed: Sequence[Confirmed]) -> list[str]:
    if not confirmed:
        return []
    rows = [cells(each) for each in confirmed]
    said = "Trained anew with more budget and several seeds, and tested on images that chose nothing."
    return [f"{said} {promised(confirmed)}", _table(["trial", "what", *HEADINGS], rows)]


def trial_note(point: Point, baselines: Sequence[Point], link: str | None) -> str:
    """What a point of the front is good for, part by part; ``link`` is that of its bundle, if one was exported."""
    found = point.evaluation
    low, high = found.drop_interval_pp
    rows = [
        [name.removesuffix("_ms"), f"{ms:.3f}", found.place_of(name), str(found.source_of(name))]
        for name, ms in found.latency.to_dict().items()
        if ms
    ]
    doubts = [*warnings_for(point, baselines), *(f"doubtful: {warning}" for warning in found.warnings)]
    parts = [
        f"**{found.name}**: {point.figures}. Drop {found.accuracy_drop_pp:+.2f} pp against the uncut model (95 %: "
        f"{low:+.2f} to {high:+.2f}).",
        "\n".join(f"- {line}" for line in doubts),
        _table(["part", "ms", "where", "how it is known"], rows),
        f"[Its bundle]({link})" if link else "",
    ]
    return "\n\n".join(filter(None, parts))


def _best_trials(trials: Sequence[Point], front: Sequence[Point]) -> str:
    """Which of the dashboard's "Best Trials", chosen without regard to limits, are none."""
    over = {point.trial for point in trials if not point.feasible}
    boxed = pareto_front([replace(point, feasible=True) for point in trials])
    wrong = _numbers([point for point in boxed if point.trial in over])
    said = f"**The front: {_numbers(front)}.**" if front else "**No trial has kept the limits so far.**"
    said += ' The box "Best Trials" looks at accuracy and latency alone and knows no limits'
    return f"{said}; over a limit, though it may show them: {wrong}." if wrong else f"{said}."


def _numbers(points: Sequence[Point]) -> str:
    return "trial " + ", ".join(str(point.trial) for point in points) if points else ""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---" if heading in _WORDS else "---:" for heading in headings], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
