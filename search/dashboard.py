"""optuna-dashboard on a study, with our notes, figures and files on its pages."""

from __future__ import annotations

import importlib.util
import io
import json
import mimetypes
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.artifacts._upload import ARTIFACTS_ATTR_PREFIX

from evaluators.store import write_whole
from search import notes
from search.confirm import confirmed_points
from search.front import judged, pareto_front
from search.plots import growth_figure, pareto_data, pareto_figure, parts_figure
from search.points import baseline_points, environment, hypervolumes, trial_points
from search.presence import alone
from search.spec import Constraints, StudySpec
from search.storage import OwnStudy
from search.tables import hardware_line
from spaces.errors import SplitsearchError

_REPORT = "report.html"
_CARD_PX = 440  # what the dashboard's cards show of a figure's height


def publish(study: OwnStudy, spec: StudySpec, folder: Path) -> None:
    """Put our notes, figures and the report onto the dashboard's pages. Nothing without the extra.

    May be done again and again, and by several processes: each thing is there once, and what people wrote into a note
    stays.

    Args:
        study, spec: the study.
        folder: of its results; the report in it is taken along.
    """
    if not _is_installed():
        return
    with alone(folder, "dashboard"):
        if (folder / _REPORT).exists():
            _attach(study, folder, _REPORT, (folder / _REPORT).read_bytes())
        _save_notes(study, spec)
        _save_figures(study, spec.constraints)


def attach_bundle(study: optuna.Study, folder: Path, trial: int, bundle: Path) -> None:
    """Keep a bundle with the study, zipped, where the dashboard offers it. Nothing without the extra.

    Args:
        study: the study.
        folder: of its results.
        trial: number of the trial.
        bundle: its folder.
    """
    if not _is_installed():
        return
    with alone(folder, "dashboard"):
        _attach(study, folder, _bundle_name(trial), _zipped(bundle))


def serve(study: optuna.Study, port: int, folder: Path) -> None:
    """Serve the dashboard of a study's storage on 127.0.0.1 until interrupted.

    Raises:
        SplitsearchError: optuna-dashboard is not installed, or the port is taken.
    """
    if not _is_installed():
        raise SplitsearchError("optuna-dashboard is not installed; pip install 'splitsearch[dashboard]'")
    from optuna_dashboard import run_server

    artifacts = _artifacts(folder)
    artifacts.mkdir(parents=True, exist_ok=True)
    try:
        run_server(study._storage, host="127.0.0.1", port=port, artifact_store=FileSystemArtifactStore(artifacts))
    except OSError as error:
        raise SplitsearchError(f"port {port} cannot be used ({error.strerror}); give another with --port") from None


def _is_installed() -> bool:
    return importlib.util.find_spec("optuna_dashboard") is not None


def _save_figures(study: OwnStudy, limits: Constraints) -> None:
    from optuna_dashboard import save_plotly_graph_object

    data = pareto_data(trial_points(study), judged(baseline_points(study), limits))
    figures = {
        "pareto": pareto_figure(data),
        "latency-parts": parts_figure(data.front, data.baselines),
        "growth": growth_figure(hypervolumes(study, limits)),
    }
    for name, figure in figures.items():
        figure.update_layout(height=_CARD_PX)
        with study.backend.at_once():  # of ten thousand trials it is thousands of attributes
            save_plotly_graph_object(study, figure, graph_object_id=name)


def _save_notes(study: optuna.Study, spec: StudySpec) -> None:
    trials, baselines = trial_points(study), judged(baseline_points(study), spec.constraints)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    links = _links(study, attributes)
    confirmed, hardware = confirmed_points(study), hardware_line(environment(study))
    most_ms = spec.constraints.max_latency_ms
    whole = notes.study_note(spec.name, trials, baselines, confirmed, hardware, links, most_ms)
    _save_note(study, attributes, None, whole)
    front = {point.trial for point in pareto_front(trials)}
    numbers = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}
    for point in trials:
        assert point.trial is not None
        link, trial_id = links.get(_bundle_name(point.trial)), numbers[point.trial]
        if point.trial in front or link:
            _save_note(study, attributes, trial_id, notes.trial_note(point, baselines, link))
        elif notes.OURS in _note_of(attributes, trial_id):
            _save_note(study, attributes, trial_id, notes.LEFT_THE_FRONT)


def _note_of(attributes: Mapping[str, Any], trial_id: int | None) -> str:
    from optuna_dashboard._note import get_note_from_system_attrs

    return str(get_note_from_system_attrs(dict(attributes), trial_id)["body"])


def _save_note(study: optuna.Study, attributes: Mapping[str, Any], trial_id: int | None, ours: str) -> None:
    """Optuna-dashboard's own ``save_note`` wants a running trial, and asks the database anew for each note."""
    from optuna_dashboard._note import note_ver_key, save_note_with_version

    was = _note_of(attributes, trial_id)
    now = notes.renewed(was, ours)
    if now != was:
        version = int(attributes.get(note_ver_key(trial_id), 0)) + 1
        save_note_with_version(study._storage, study._study_id, trial_id, version, now)


def _attach(study: optuna.Study, folder: Path, name: str, content: bytes) -> None:
    """Keep a file with the study under its name; one that is there is replaced.

    ``optuna.artifacts.upload_artifact`` would add another each time.
    """
    artifact_id = _artifact_id(study.study_name, name)
    meta = ArtifactMeta(artifact_id=artifact_id, filename=name, mimetype=_type_of(name), encoding=None)
    write_whole(_artifacts(folder) / meta.artifact_id, content)
    study._storage.set_study_system_attr(
        study._study_id, ARTIFACTS_ATTR_PREFIX + meta.artifact_id, json.dumps(asdict(meta))
    )


def _links(study: optuna.Study, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Where the dashboard serves the files kept with the study, by their names."""
    found = [json.loads(text) for key, text in attributes.items() if key.startswith(ARTIFACTS_ATTR_PREFIX)]
    return {meta["filename"]: f"/artifacts/{study._study_id}/{meta['artifact_id']}" for meta in found if meta}


def _artifacts(folder: Path) -> Path:
    return folder / "artifacts"


def _artifact_id(study: str, name: str) -> str:
    """The same for the same file of a study; a storage may hold several. The dashboard wants this form."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{study}/{name}"))


def _type_of(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _bundle_name(trial: int) -> str:
    return f"bundle-of-trial-{trial}.zip"


def _zipped(folder: Path) -> bytes:
    """A folder's files as an archive, not compressed: weights do not get smaller."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            archive.write(path, path.relative_to(folder.parent))
    return target.getvalue()
