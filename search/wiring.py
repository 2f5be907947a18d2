"""From a study file to the evaluator that scores its trials. Imports torch only when called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluators.base import Evaluator
from search.spec import StudySpec
from spaces.errors import SpecError


def build_evaluator(spec: StudySpec, folder: Path) -> Evaluator:
    """The evaluator of a study.

    Raises:
        SpecError: model, weights or data do not exist or do not fit each other.
    """
    from evaluators.split_evaluator import SplitEvaluator, SplitSettings

    settings = SplitSettings(
        model=spec.model,
        data=spec.data,
        device=spec.device,
        server=spec.server,
        link=spec.link,
        finetune=spec.finetune,
        baseline=spec.baseline,
        seed=spec.search.seed,
    )
    with _named(spec):
        return SplitEvaluator(settings, folder)


def rehearse(evaluator: Evaluator, spec: StudySpec) -> None:
    """Try in seconds what a run does in hours.

    Raises:
        SplitsearchError: something would fail later.
    """
    with _named(spec):
        evaluator.rehearse(spec.space(list(evaluator.partition_points())))


@contextmanager
def _named(spec: StudySpec) -> Iterator[None]:
    """Add the study file's name to errors about what stands in it."""
    try:
        yield
    except SpecError as error:
        error.file = error.file or str(spec.file)
        raise
