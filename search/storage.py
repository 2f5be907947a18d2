"""Where a study is kept: opened for reading, or made and resumed for running, and only as the study that is meant."""

from __future__ import annotations

import datetime
import shlex
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from search.backends import Backend, open_backend
from search.front import OBJECTIVES
from search.identity import differing_contents, differing_settings, listed
from search.knowledge import AskPrice
from search.places import Journal, Place, SqliteFile, explained, read_place
from search.samplers import make_sampler
from search.spec import StudySpec
from spaces.errors import NotFinished, SpecError
from spaces.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

FORMAT = 2  # of a study's attributes: 1 had no number, and the study file's text in place of resolved values
_FORMAT, _SPEC, _CONTENTS = "format", "spec", "contents"
_RUNGS = "rungs"  # of an evaluator's identity; nothing to a study that trains every trial to its end
_SEARCHED = "space.partitions"  # known only with the model at hand, so kept with its contents
_STREAMS = "random_streams"  # attribute of a study: how many processes have begun to draw for it
_WRITTEN = "last_written"  # attribute of a study: when somebody saw that it can be
_STREAM_STRIDE = 1_000_003  # between the seeds of two of them
_MOST_SHIFT = 2**30


def run_folder(spec: StudySpec, out: Path | None) -> Path:
    """Where a study's results are: ``runs/<name>`` unless told otherwise."""
    return out or Path("runs") / spec.name


class OwnStudy(optuna.Study):
    """A study that can be looked at once and then thought about, without asking the storage over and over.

    Args:
        name: of the study.
        backend: where it is kept.
        sampler: proposes configurations; none for a study that is only read.
    """

    _looked = False

    def __init__(self, name: str, backend: Backend, sampler: BaseSampler | None = None) -> None:
        super().__init__(study_name=name, storage=backend.storage, sampler=sampler)
        self.backend = backend

    @contextmanager
    def one_look(self) -> Iterator[list[FrozenTrial]]:
        """Whoever reads trials inside gets those of this moment."""
        self._thread_local.cached_all_trials = None
        self._looked = True
        try:
            yield self.get_trials(deepcopy=False)
        finally:
            self._looked = False
            self._thread_local.cached_all_trials = None

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return super()._get_trials(deepcopy, states, use_cache or self._looked)


def open_study(spec: StudySpec, folder: Path, storage: str | None = None) -> OwnStudy:
    """The finished or half-finished study for reading.

    Raises:
        NotFinished: there is none yet.
        SpecError: it was made with other settings, or there is no such storage.
        SplitsearchError: what is kept there cannot be read.
    """
    study, place = _found(spec, folder, storage)
    with explained(place):
        _check_settings(study, spec, place)
        study.get_trials(deepcopy=False)  # damage shows here, not in the middle of something
    return study


def has_trials(spec: StudySpec, folder: Path, storage: str | None = None) -> bool:
    """Whether a study has begun. Makes nothing."""
    try:
        study, place = _found(spec, folder, storage)
    except NotFinished:
        return False
    with explained(place):
        return study.backend.has_trials(study._study_id)


def _found(spec: StudySpec, folder: Path, storage: str | None) -> tuple[OwnStudy, Place]:
    """The study and where it is; raises NotFinished if there is none."""
    place = read_place(folder, storage)
    kept = [*(["--storage", storage] if storage else []), *(["--out", str(folder)] if _is_out(spec, folder) else [])]
    run = f"'splitsearch {shlex.join(['run', str(spec.file), *kept])}'"
    if isinstance(place, SqliteFile | Journal) and not place.path.is_file():
        raise NotFinished(f"no results in {place.path.parent} yet; {run} makes them")
    with explained(place):
        try:
            return OwnStudy(spec.name, open_backend(place, folder, spec.name)), place
        except KeyError:
            raise NotFinished(f"no study '{spec.name}' in {place} yet; {run} makes it") from None


def _is_out(spec: StudySpec, folder: Path) -> bool:
    """Whether somebody asked for this folder of results."""
    return folder != run_folder(spec, None)


def start_or_resume(
    spec: StudySpec,
    space: SearchSpace,
    folder: Path,
    storage: str | None = None,
    contents: Mapping[str, str] | None = None,
    *,
    ask_price: AskPrice,
) -> OwnStudy:
    """The study for running, made if need be.

    Args:
        spec: the study file.
        space: what is searched.
        folder: of the results.
        storage: a database's URL or file, in place of the folder's own.
        contents: the evaluator's identity.
        ask_price: the evaluator's, of configurations.

    Raises:
        SpecError: the study exists and was made with other settings or other contents.
        SplitsearchError: what is kept there cannot be read.
    """
    place = read_place(folder, storage)
    folder.mkdir(parents=True, exist_ok=True)
    with explained(place):
        backend = open_backend(place, folder, spec.name)
        with backend.alone("study"):
            study = optuna.create_study(
                study_name=spec.name,
                storage=backend.storage,
                directions=["maximize", "minimize"],
                load_if_exists=True,
            )
            now = {**(contents or {}), _SEARCHED: list(space.partitions)}
            if study.user_attrs.get(_SPEC) is None and not study.get_trials(deepcopy=False):
                _describe(study, spec, now)
            _check_settings(study, spec, place)
            _check_contents(study, spec, place, now)
            shift = _new_stream(study)
    sampler = make_sampler(
        spec.search.sampler,
        spec.search.seed,
        space,
        shift,
        ask_price=ask_price,
        limits=spec.constraints,
        once_per_cut=bool(spec.finetune.shared),
    )
    return OwnStudy(spec.name, backend, sampler)


def check_contents(
    study: optuna.Study, spec: StudySpec, folder: Path, storage: str | None, contents: Mapping[str, str]
) -> None:
    """Raise SpecError where weights, images or code are not those that the study was made with."""
    known = study.user_attrs.get(_CONTENTS, {})
    _check_contents(
        study, spec, read_place(folder, storage), {"space.partitions": known.get("space.partitions"), **contents}
    )


def check_writable(study: optuna.Study, folder: Path, storage: str | None) -> None:
    """Raise SplitsearchError where nothing can be kept with a study, before hours of work are lost to that."""
    with explained(read_place(folder, storage)):
        # Not a value that stands there already: that would be no writing to a database.
        study.set_user_attr(_WRITTEN, datetime.datetime.now(datetime.UTC).isoformat())


def contents_of(study: optuna.Study) -> dict[str, str]:
    """The identity of the evaluator that a study was made with."""
    return dict(study.user_attrs.get(_CONTENTS, {}))


def _new_stream(study: optuna.Study) -> int:
    """What to add to the seed: a resumed sampler must not draw the numbers again that it drew at the start, nor those
    that another process draws, on whatever machine.
    """
    begun, streams = len(study.get_trials(deepcopy=False)), study.user_attrs.get(_STREAMS, 0)
    study.set_user_attr(_STREAMS, streams + 1)
    return (begun + _STREAM_STRIDE * streams) % _MOST_SHIFT


def _describe(study: optuna.Study, spec: StudySpec, contents: Mapping[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(OBJECTIVES))
    study.set_user_attr(_FORMAT, FORMAT)
    study.set_user_attr(_CONTENTS, dict(contents))
    study.set_user_attr("spec_sha256", spec.digest)
    study.set_user_attr(_SPEC, spec.comparable())  # last: with it the description is whole


def _check_settings(study: optuna.Study, spec: StudySpec, place: Place) -> None:
    found = study.user_attrs.get(_FORMAT)
    if found != FORMAT:
        raise _refused(
            spec,
            f"the study '{spec.name}' in {place} was made by another version of splitsearch (format "
            f"{found or 1}, {FORMAT} is known here) and cannot be read. Give the study another name or use --out",
        )
    _refuse(spec, place, differing_settings(study.user_attrs.get(_SPEC, {}), spec.comparable()))


def _check_contents(study: optuna.Study, spec: StudySpec, place: Place, now: Mapping[str, Any]) -> None:
    then = dict(study.user_attrs.get(_CONTENTS, {}))
    searched = differing_settings({_SEARCHED: then.pop(_SEARCHED, None)}, {_SEARCHED: now[_SEARCHED]})
    digests = {name: value for name, value in now.items() if name != _SEARCHED}
    if spec.search.pruning == "none":
        for each in (then, digests):
            each.pop(_RUNGS, None)
    _refuse(spec, place, [*differing_contents(then, digests), *searched])


def _refuse(spec: StudySpec, place: Place, differences: Sequence[str]) -> None:
    if differences:
        advice = f"the study '{spec.name}' in {place} was made with other values: {listed(differences)}"
        raise _refused(spec, f"{advice}. Give the study another name, use --out, or undo the change")


def _refused(spec: StudySpec, why: str) -> SpecError:
    error = SpecError("name", spec.name, why)
    error.file = str(spec.file)
    return error
