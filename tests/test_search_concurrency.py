"""Several processes on one study: real ones, on an SQLite file in a run folder."""

import datetime
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from test_search_spec import change
from test_search_study import start

from evaluators.fake import FakeEvaluator
from search.points import finished_trials
from search.presence import Presence, is_alive
from search.spec import load_spec, with_trials
from search.storage import open_study, start_or_resume

ROOT = Path(__file__).parent.parent
WORKER = """
import sys, time
from pathlib import Path
from evaluators.fake import FakeEvaluator
from search.objective import prepare, run_trials
from search.spec import load_spec
from search.storage import start_or_resume

file, folder, pause_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

class Slow(FakeEvaluator):
    def baselines(self, *, trained):
        with (folder / "baselines.txt").open("a") as log:
            log.write("measured\\n")
        return super().baselines(trained=trained)

    def evaluate(self, config, **options):
        print("evaluating", flush=True)
        time.sleep(pause_s)
        return super().evaluate(config, **options)

spec, evaluator = load_spec(file), Slow()
space = spec.space(list(evaluator.partition_points()))
study = start_or_resume(spec, space, folder, contents=evaluator.identity(), ask_price=evaluator.price)
prepare(study, space, evaluator, lambda _: None)
run_trials(study, spec, space, evaluator, folder)
"""


def worker(file, folder, pause_s):
    command = [sys.executable, "-c", WORKER, file, str(folder), str(pause_s)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@pytest.fixture
def forty(write_study, study_dict):
    """A study of 40 trials in a space of 108 configurations."""
    change(study_dict, "search.trials", 40)
    return write_study(study_dict)


def configurations(spec, trials):
    space = spec.space(list(FakeEvaluator().partition_points()))
    return [space.suggest(optuna.trial.FixedTrial(trial.params)) for trial in trials]


def test_two_processes_share_one_study(forty, tmp_path):
    both = [worker(forty, tmp_path / "run", 0.02) for _ in range(2)]
    for process in both:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    spec = load_spec(forty)
    trials = open_study(spec, tmp_path / "run").trials
    assert [trial.number for trial in trials] == list(range(40))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len(set(configurations(spec, trials))) == 40
    assert len({trial.user_attrs["owner"]["pid"] for trial in trials}) == 2
    assert (tmp_path / "run" / "baselines.txt").read_text() == "measured\n"


def test_killed_in_mid_trial_the_other_goes_on(forty, tmp_path):
    doomed = worker(forty, tmp_path / "run", 60.0)
    assert doomed.stdout.readline() == "evaluating\n"
    spec = load_spec(forty)
    # A living process's trial is left alone by whoever comes.
    space = spec.space(list(FakeEvaluator().partition_points()))
    study = start_or_resume(
        spec, space, tmp_path / "run", contents=FakeEvaluator().identity(), ask_price=FakeEvaluator().price
    )
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    other = worker(forty, tmp_path / "run", 0.02)
    assert other.stdout.readline() == "evaluating\n"
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.communicate()
    said = other.communicate(timeout=120)[1]
    assert other.returncode == 0, said
    study = start(spec, tmp_path / "run")
    assert len(finished_trials(study)) == 40
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.FAIL) == 1 and states.count(TrialState.RUNNING) == 0
    assert study.trials[0].state == TrialState.FAIL
    assert len(set(configurations(spec, finished_trials(study)))) == 40


def test_half_of_another_process_s_parameters_is_no_configuration(forty, tmp_path):
    spec = with_trials(load_spec(forty), 12)
    study = start(with_trials(spec, 11), tmp_path / "run")
    with Presence(tmp_path / "run") as other:
        blank = optuna.create_trial(state=TrialState.RUNNING, user_attrs={"owner": other.owner})
        half = study._storage.create_new_trial(study._study_id, blank)
        bits = optuna.distributions.CategoricalDistribution((1, 2, 4))
        study._storage.set_trial_param(half, "bits", 1, bits)
        again = start(with_trials(spec, 13), tmp_path / "run")
        assert len(finished_trials(again)) == 12  # the thirteenth is the other's
        assert again.trials[11].state == TrialState.RUNNING
    again = start(with_trials(spec, 13), tmp_path / "run")
    assert len(finished_trials(again)) == 13 and again.trials[11].state == TrialState.FAIL


def test_a_process_is_at_work_as_long_as_it_lives(tmp_path):
    with Presence(tmp_path) as presence:
        assert is_alive(presence.owner, None)
    assert not is_alive(presence.owner, None)
    assert not is_alive(None, None)
    assert not list((tmp_path / ".locks").glob("run-*"))


def test_a_trial_of_another_machine_is_left_alone_for_a_day(tmp_path):
    elsewhere = {"host": "another-machine.invalid", "pid": 1, "lock": str(tmp_path / "no.lock")}
    now = datetime.datetime.now()
    assert is_alive(elsewhere, now - datetime.timedelta(hours=20))
    assert not is_alive(elsewhere, now - datetime.timedelta(hours=30))
