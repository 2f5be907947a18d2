"""The progress bar of ``run``: trial, best knee so far, time left. On stderr, so that stdout stays clean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from search.front import Point, knee, pareto_front
from search.points import PointReader, finished_trials


class RunProgress:
    """Shows how far a study is."""

    def __init__(self, bar: Progress, console: Console, study: optuna.Study, total: int) -> None:
        self._bar, self._console, self._study = bar, console, study
        self._reader = PointReader(study)
        self._front: list[Point] = []
        self._task = bar.add_task("preparing", total=total, completed=len(finished_trials(study)), best="")
        self._said = ""

    def say(self, text: str) -> None:
        """What goes on before the first trial."""
        if not self._console.is_terminal and text != self._said:
            self._console.print(text)
        self._said = text
        self._bar.update(self._task, description=text)

    def start_trials(self) -> None:
        """The first trial begins."""
        self.advance()
        self._bar.reset(self._task, total=self._bar.tasks[0].total, completed=len(finished_trials(self._study)))

    def advance(self) -> None:
        """A trial ended."""
        self._front = pareto_front([*self._front, *self._reader.new()])
        best = ""
        if self._front:
            point = knee(self._front)
            best = f"knee {point.accuracy:.1%} at {point.latency_ms:.2f} ms"
        done = self._reader.finished
        self._bar.update(self._task, description="trials", completed=done, best=best)
        if not self._console.is_terminal:
            self._console.print(f"trial {done} of {self._bar.tasks[0].total:.0f}  {best}")


@contextmanager
def run_progress(study: optuna.Study, total: int, console: Console) -> Iterator[RunProgress]:
    """A live bar on a terminal, one line a trial elsewhere."""
    columns = (
        TextColumn("{task.description}", markup=False),  # names and paths may have brackets in them
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}", style="bold"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield RunProgress(bar, console, study, total)
