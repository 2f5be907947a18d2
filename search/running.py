"""A run as a value, and the steps that it takes: the same for a run by itself and for each of many workers."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.base import Evaluator, Progress
from search import objective, wiring
from search.front import Point
from search.front_sampler import FrontSampler
from search.spec import StudySpec, load_spec, with_trials
from search.storage import OwnStudy, has_trials, run_folder, start_or_resume
from search.warm_start import earlier_points
from spaces.space import SearchSpace

EVALUATOR = "search.wiring:build_evaluator"  # module and function, by name, as workers are other processes


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run is asked for; JSON-ready.

    Attributes:
        study: a study file, or the name of one.
        trials: finished trials to come to; the file's unless given.
        timeout_s: no trial begins after so many seconds.
        storage: as ``--storage`` takes it.
        out: folder of the results; its usual one unless given.
        sharing: how many workers divide the cores of the machine; 0 leaves threads alone.
        evaluator: what builds it, as ``module:function``.
    """

    study: str
    trials: int | None = None
    timeout_s: float | None = None
    storage: str | None = None
    out: str | None = None
    sharing: int = 0
    evaluator: str = field(default_factory=lambda: EVALUATOR)

    def to_dict(self) -> dict[str, Any]:
        """For :class:`Job`'s constructor, on the other side."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A study that is open for running."""

    job: Job
    spec: StudySpec
    folder: Path
    evaluator: Evaluator
    space: SearchSpace
    study: OwnStudy
    earlier: list[Point]

    @property
    def wanted(self) -> int:
        """Finished trials to come to: as many as the spec asks for, or all configurations where those are fewer."""
        return min(self.spec.search.trials, self.space.size or self.spec.search.trials)

    def prepare(self, progress: Progress) -> None:
        """Everything that precedes the first trial."""
        objective.prepare(self.study, self.space, self.evaluator, progress)
        if self.earlier and isinstance(self.study.sampler, FrontSampler):
            self.study.sampler.learn_from(self.earlier)

    def run_trials(self, finished: Callable[[], None] = lambda: None, *, stay: bool = False) -> None:
        """One trial after the other; see :func:`search.objective.run_trials`."""
        objective.run_trials(
            self.study,
            self.spec,
            self.space,
            self.evaluator,
            self.folder,
            timeout_s=self.job.timeout_s,
            finished=finished,
            stay=stay,
        )


def open_run(job: Job) -> Run:
    """Open or make the study; one that has not begun is rehearsed first.

    Raises:
        SpecError: the study file, its model or data, or the storage are not as they should be.
        SplitsearchError: something would fail later, or the storage cannot be read.
    """
    spec = with_trials(load_spec(job.study), job.trials)
    folder = run_folder(spec, Path(job.out) if job.out else None)
    evaluator = _builder(job.evaluator)(spec, folder)
    space = spec.space(list(evaluator.partition_points()))
    if not has_trials(spec, folder, job.storage):
        wiring.rehearse(evaluator, spec)
    contents = evaluator.identity()
    earlier = earlier_points(spec, contents)
    study = start_or_resume(spec, space, folder, job.storage, contents, ask_price=evaluator.price)
    return Run(job=job, spec=spec, folder=folder, evaluator=evaluator, space=space, study=study, earlier=earlier)


def _builder(name: str) -> Callable[[StudySpec, Path], Evaluator]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
