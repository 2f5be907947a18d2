"""From a study file to the evaluator that scores its trials. Imports torch only when called."""

from __future__ import annotations

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
    try:
        return SplitEvaluator(settings, folder)
    except SpecError as error:
        error.file = str(spec.file)
        raise
