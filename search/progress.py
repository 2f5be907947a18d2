"""The progress of ``run``: trials done and under way, the front so far, time left. On stderr: stdout stays clean."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from search.front import Point, corner_of, knee, pareto_front
from search.hypervolume import Staircase
from search.places import in_words, is_unreachable
from search.points import STOPPED, PointReader, baseline_points, finished_trials
from search.spec import Constraints, StudySpec


class RunProgress:
    """Shows how far a study is, whoever runs its trials.

    Args:
        bar: on a terminal.
        console: where lines go.
        study: to look at.
        total: finished trials to come to.
        limits: of the study, for the corner of the hypervolume.
    """

    def __init__(self, bar: Progress, console: Console, study: optuna.Study, total: int, limits: Constraints) -> None:
        self._bar, self._console, self._study, self._total, self._limits = bar, console, study, total, limits
        self._reader = PointReader(study)
        self._front: list[Point] = []
        self._task = bar.add_task("preparing", total=total, completed=len(finished_trials(study)), now="")
        self._said, self._shown = "", 0
        self._began, self._done_then = time.monotonic(), 0

    def say(self, text: str) -> None:
        """What goes on before the first trial, and what went wrong since."""
        if not self._console.is_terminal and text != self._said:
            self._console.print(text, soft_wrap=True)
        self._said = text
        self._bar.update(self._task, description=text)

    def start_trials(self) -> None:
        """The first trial begins."""
        self._began, self._done_then = time.monotonic(), len(finished_trials(self._study))
        self.advance()
        self._bar.reset(self._task, total=self._total, completed=self._done_then)

    def advance(self) -> None:
        """Trials may have ended or begun."""
        self._front = pareto_front([*self._front, *self._reader.new()])
        done, now = self._reader.finished, self._now()
        self._bar.update(self._task, description="trials", completed=done, now=now)
        if not self._console.is_terminal and done != self._shown:
            self._console.print(f"trial {done} of {self._total}  {now}", soft_wrap=True)
        self._shown = done

    def look(self) -> None:
        """As :meth:`advance`, from outside: a storage that does not answer is looked at again later."""
        try:
            self.advance()
        except Exception as error:
            if not is_unreachable(error):
                raise
            self.say(f"the storage does not answer ({in_words(error)}); the workers wait for it")

    def _now(self) -> str:
        """``3 running  2 stopped early  hypervolume 1.23  knee 91.2% at 3.40 ms  about 4 min left``."""
        running = len(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        stopped = sum(STOPPED in trial.user_attrs for trial in finished_trials(self._study))
        parts = [f"{running} running"] if running else []
        parts += [f"{stopped} stopped early"] if stopped else []
        if self._front:
            corner = corner_of(baseline_points(self._study), self._limits)
            area = Staircase([(point.accuracy, point.latency_ms) for point in self._front], corner).hypervolume
            point = knee(self._front)
            parts += [f"hypervolume {area:.4g}", f"knee {point.accuracy:.1%} at {point.latency_ms:.2f} ms"]
        return "  ".join([*parts, *self._left()])

    def _left(self) -> list[str]:
        done, left = self._reader.finished - self._done_then, self._total - self._reader.finished
        if done < 1 or left < 1:
            return []
        return [f"about {time_text(left * (time.monotonic() - self._began) / done)} left"]


def time_text(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def run_progress(study: optuna.Study, spec: StudySpec, console: Console) -> Iterator[RunProgress]:
    """A live bar on a terminal, one line a trial elsewhere."""
    columns = (
        TextColumn("{task.description}", markup=False),  # names and paths may have brackets in them
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}", style="bold"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield RunProgress(bar, console, study, spec.search.trials, spec.constraints)
