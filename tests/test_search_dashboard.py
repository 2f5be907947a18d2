"""What optuna-dashboard shows of a study: notes, figures and files, each once, however often they are put there."""

import json
import shutil
import socket
import subprocess
import sys
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CHROMIUM, NO_CHROMIUM
from browser import page as browser_page
from conftest import STUDY, finish

from search import dashboard, notes
from search.cli import run_command
from search.confirm import confirmed_points
from search.front import Point, judged, pareto_front
from search.points import baseline_points, trial_points
from search.spec import Constraints, load_spec
from search.storage import open_study

pytest.importorskip("optuna_dashboard")


LIMITS = {"max_accuracy_drop_pp": 9.0, "max_payload_bytes": 1500}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of a finished study, for copies of them."""
    return finish({**STUDY, "constraints": LIMITS}, tmp_path_factory.mktemp("finished"), "--trials", "12")


@pytest.fixture
def done(finished, write_study, study_dict, fake):
    """The file of a finished study with trials over a limit, one of them more accurate than the front's fast end."""
    file = write_study({**study_dict, "constraints": LIMITS})
    shutil.copytree(finished, "runs")
    return file


def opened(file):
    spec = load_spec(file)
    folder = Path("runs") / spec.name
    return open_study(spec, folder), spec, folder


def attributes(study):
    return study._storage.get_study_system_attrs(study._study_id)


def files_of(study):
    """Names of the files kept with the study."""
    found = [json.loads(text) for key, text in attributes(study).items() if key.startswith("artifacts:")]
    return sorted(meta["filename"] for meta in found)


def note_on(study, number=None):
    trial_id = None if number is None else study.get_trials(deepcopy=False)[number]._trial_id
    return dashboard._note_of(attributes(study), trial_id)


def test_a_run_leaves_notes_figures_and_the_report(done):
    study, _, folder = opened(done)
    front = pareto_front(trial_points(study))
    assert note_on(study).startswith(
        f"# demo\n\n**The front: trial {', '.join(str(point.trial) for point in front)}.**"
    )
    assert "- At this link deploy " in note_on(study) and "[report.html](/artifacts/1/" in note_on(study)
    for trial in study.get_trials(deepcopy=False):
        assert bool(note_on(study, trial.number)) == (trial.number in {point.trial for point in front})
    assert front[0].figures in note_on(study, front[0].trial) and "| head |" in note_on(study, front[0].trial)
    assert files_of(study) == ["report.html"]
    (kept,) = (folder / "artifacts").iterdir()
    assert kept.read_bytes() == (folder / "report.html").read_bytes()
    drawn = {key.split(":")[2] for key in attributes(study) if key.startswith("dashboard:plot_data:")}
    assert drawn == {"pareto", "latency-parts", "growth"}


def test_a_baseline_over_a_limit_is_drawn_as_in_the_report(done, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "optuna_dashboard.save_plotly_graph_object",
        lambda study, figure, graph_object_id: drawn.update({graph_object_id: figure}),
    )
    study, _, _ = opened(done)
    dashboard._save_figures(study, Constraints(max_payload_bytes=1200))
    names = " ".join(trace.name for trace in drawn["pareto"].data)
    assert "server-only, WebP" in names and "server-only, JPEG" not in names  # 1,000 bytes, 1,500 bytes


def test_what_best_trials_shows_wrongly_is_named(done):
    study, _, _ = opened(done)
    trials = trial_points(study)
    from optuna_dashboard._pareto_front import get_pareto_front_trials

    boxed = {trial.number for trial in get_pareto_front_trials(study.get_trials(), study.directions)}
    wrong = sorted(boxed & {point.trial for point in trials if not point.feasible})
    assert wrong, "this study is to have such trials"
    said = note_on(study).split("it may show them: trial ")[1].split(".")[0]
    assert sorted(map(int, said.split(", "))) == wrong
    alone = [replace(point, feasible=True) for point in trials]
    assert "may show them" not in notes.study_note("demo", alone, [], [], "hardware", {})
    assert "No trial has kept the limits" in notes.study_note("demo", [], [], [], "hardware", {})


def test_workers_that_end_together_leave_everything_once(done):
    study, _, folder = opened(done)
    before, names = note_on(study), files_of(study)

    def publish(_):
        dashboard.publish(*opened(done))

    with ThreadPoolExecutor(4) as several:
        list(several.map(publish, range(4)))
    assert note_on(study) == before and files_of(study) == names and len(list((folder / "artifacts").iterdir())) == 1
    assert attributes(study)["dashboard:note_ver"] == 1  # nothing new was said


def test_what_somebody_wrote_stays(done):
    from optuna_dashboard import save_note

    study, spec, folder = opened(done)
    number = next(point.trial for point in trial_points(study) if point not in pareto_front(trial_points(study)))
    save_note(study, note_on(study).replace("deploy", "") + "\nTuesday: ask Ana.\n")
    for _ in range(2):
        dashboard.publish(study, spec, folder)
    assert note_on(study).count("Tuesday: ask Ana.") == note_on(study).count(notes.OURS) == 1
    assert "At this link deploy" in note_on(study) and not note_on(study, number)
    assert notes.renewed("mine", "ours") == f"ours\n\n---\n\n{notes.OURS}\n\nmine\n"
    assert notes.renewed(notes.renewed("mine", "ours"), "new") == f"new\n\n---\n\n{notes.OURS}\n\nmine\n"


def test_what_was_confirmed_stands_in_the_note(done, capsys):
    assert run_command(["confirm", done, "--seeds", "2"]) == 0
    study, spec, folder = opened(done)
    dashboard.publish(study, spec, folder)
    found = confirmed_points(study)
    rows = [line for line in note_on(study).split("Trained anew")[1].splitlines() if line.startswith("| ")]
    assert len(rows) == len(found) + 2 and rows[0].startswith("| trial | what | searched | confirmed | test (95 %)")
    assert rows[2].startswith(f"| {found[0].trial} | {found[0].config.label} | {found[0].searched:.1%} ")


def test_a_trial_that_left_the_front_says_so(done, monkeypatch):
    study, spec, folder = opened(done)
    points = trial_points(study)
    gone = pareto_front(points)[0].trial
    without = [replace(point, feasible=False) if point.trial == gone else point for point in points]
    monkeypatch.setattr(dashboard, "trial_points", lambda study: without)
    dashboard.publish(study, spec, folder)
    assert note_on(study, gone).startswith(notes.LEFT_THE_FRONT)


def test_an_exported_bundle_is_kept_with_the_study(done, capsys):
    study, spec, folder = opened(done)
    for target in ("one", "two"):
        assert run_command(["export", done, "--pick", "fastest", "-o", target]) == 0
    number = pareto_front(trial_points(study))[0].trial
    name = f"bundle-of-trial-{number}.zip"
    assert files_of(study) == [name, "report.html"]
    with zipfile.ZipFile(folder / "artifacts" / dashboard._artifact_id(study.study_name, name)) as archive:
        assert archive.testzip() is None
        assert archive.read("two/bundle.json") == Path("two/bundle.json").read_bytes()
    dashboard.publish(study, spec, folder)
    assert f"[Its bundle](/artifacts/1/{dashboard._artifact_id(study.study_name, name)})" in note_on(study, number)


def test_studies_in_one_storage_do_not_show_each_others_report(write_study, study_dict, fake):
    ids = {}
    for name in ("one", "two"):
        file = write_study({**study_dict, "name": name}, f"{name}.yaml")
        assert run_command(["run", file, "--trials", "2", "--storage", "both.db"]) == 0
        study = open_study(load_spec(file), Path("runs") / name, "both.db")
        (ids[name],) = [key.removeprefix("artifacts:") for key in attributes(study) if key.startswith("artifacts:")]
    assert not (Path("runs") / "one" / "artifacts" / ids["two"]).exists()  # what the dashboard of the first one serves


def test_a_note_is_markdown_whatever_a_point_is_called(done):
    study, _, _ = opened(done)
    point = pareto_front(trial_points(study))[0]
    odd = Point(trial=3, evaluation=replace(point.evaluation, name="a|b"))
    rows = [line for line in notes.study_note("demo", [odd], [], [], "hw", {}).splitlines() if line.startswith("| 3 ")]
    assert rows == [
        f"| 3 | a\\|b | {point.accuracy:.1%} | {point.evaluation.accuracy_drop_pp:+.1f} | "
        f"{point.evaluation.payload_bytes:,.0f} | {point.latency_ms:.2f} |"
    ]
    assert "beats trial" in notes.trial_note(
        replace(point, evaluation=replace(point.evaluation, accuracy=0.1)),
        judged(baseline_points(study), load_spec(done).constraints),
        None,
    )


@pytest.fixture
def served(done):
    """Address of the dashboard that the command serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from search.cli import main; main()", "dashboard", done, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            first = server.stderr.readline()
            assert first.startswith(f"http://127.0.0.1:{port}/dashboard/studies/1/note "), first
            while "Listening" not in server.stderr.readline():
                assert server.poll() is None
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_the_dashboards_pages_show_notes_figures_and_the_report(served, done):
    study, _, folder = opened(done)
    best = pareto_front(trial_points(study))[0]
    study_page = f"{served}/dashboard/studies/1"
    with browser_page() as page:
        page.open(f"{study_page}/note", "document.body?.innerText.includes('At this link deploy')")
        assert page.run("[...document.querySelectorAll('table tr')].length") == 1 + len(
            pareto_front(trial_points(study))
        )
        page.open(f"{study_page}/trials?numbers={best.trial}", "document.body?.innerText.includes('how it is known')")
        assert best.figures in page.run("document.body.innerText")
        page.open(study_page, "document.body?.innerText.includes('report.html')", height=4000)
        for name in ("pareto", "latency-parts", "growth"):
            page.wait(f"document.getElementById('user-defined-plot:{name}')?.querySelector('.trace path')")
        shown = page.run("document.querySelectorAll('[id=\"user-defined-plot:pareto\"] .points path').length")
        assert shown >= len(trial_points(study))
        assert not [error for error in page.errors if "plotly" in error.lower()]
    link = note_on(study).split("[report.html](")[1].split(")")[0]
    with urllib.request.urlopen(served + link) as answer:
        assert answer.read() == (folder / "report.html").read_bytes()
        assert answer.headers["Content-Type"] == "text/html"
