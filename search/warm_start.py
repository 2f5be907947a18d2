"""Warm start: what another study of the same model has found, for a search that begins."""

from __future__ import annotations

from collections.abc import Mapping

from search.front import Point
from search.points import trial_points
from search.spec import StudySpec, find_study, load_spec, locate
from search.storage import contents_of, open_study, run_folder
from spaces.errors import SpecError

_KEY = "search.warm_start"
_SAME = ("network", "weights", "images")


def earlier_points(spec: StudySpec, contents: Mapping[str, str]) -> list[Point]:
    """The scored trials of the study that ``search.warm_start`` names; none where it names none.

    Its hardware, link and budget may be others: only accuracies are taken from it, and those with a doubt.

    Args:
        spec: of the study that begins.
        contents: its evaluator's identity.

    Raises:
        SpecError: no such study, or one of another network, other weights or other images.
        NotFinished: it has no results yet.
    """
    if spec.search.warm_start is None:
        return []
    other = _other_study(spec, spec.search.warm_start)
    study = open_study(other, run_folder(other, None))
    known = contents_of(study)
    differing = [name for name in _SAME if known.get(name) != contents.get(name)]
    if differing:
        raise SpecError(
            _KEY,
            spec.search.warm_start,
            f"its {' and '.join(differing)} {'is' if differing == ['network'] else 'are'} not those of this study, so "
            "its accuracies say nothing here; leave the key out",
        )
    return trial_points(study)


def _other_study(spec: StudySpec, named: str) -> StudySpec:
    """The study that is named, its file looked up as any path in a study file. Raises SpecError if there is none."""
    place = locate(named, spec.file, _KEY) if named.endswith((".yaml", ".yml")) else named
    try:
        path = find_study(str(place))
    except SpecError as error:
        raise SpecError(_KEY, named, error.allowed) from None
    other = load_spec(str(path))
    if other.name == spec.name:
        raise SpecError(_KEY, named, "another study is needed, and this is the study itself; leave the key out")
    return other
