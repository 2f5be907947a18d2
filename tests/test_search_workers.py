"""Several workers on one study: real processes, killed, interrupted, cut off from their storage."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from test_search_cli import out
from test_search_spec import change
from test_search_study import known_front, values

from evaluators.fake import FakeEvaluator
from evaluators.store import Store
from search import running
from search.front import pareto_front
from search.launch import DaskWorkers
from search.points import finished_trials, trial_points
from search.spec import load_spec
from search.storage import open_study
from search.workers import Ended, Workers, check_ends, unwise
from spaces.errors import SpecError, SplitsearchError

ROOT = Path(__file__).parent.parent
# Ctrl-C is heard also where the tests run in a shell's background, which ignores it.
RUN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from search import cli, running; running.EVALUATOR = 'paced_fake:build'; cli.main()"
)


@pytest.fixture(autouse=True)
def paced(monkeypatch):
    """Workers, which are other processes, find the fake evaluator of the tests."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setattr(running, "EVALUATOR", "paced_fake:build")

    def pace(**settings):
        monkeypatch.setenv("PACED_FAKE", json.dumps(settings))

    return pace


@pytest.fixture
def file(write_study, study_dict):
    """A study of 24 trials in a space of 108 configurations."""
    change(study_dict, "search.trials", 24)
    return write_study(study_dict)


def read(file, folder="runs/demo", storage=None):
    return open_study(load_spec(file), Path(folder), storage)


def configurations(file, trials):
    space = load_spec(file).space(list(FakeEvaluator().partition_points()))
    return [space.suggest(optuna.trial.FixedTrial(trial.params)) for trial in trials]


def begun(study, count, limit_s=60):
    """Wait until so many trials have ended."""
    end = time.monotonic() + limit_s
    while len(finished_trials(study)) < count:
        assert time.monotonic() < end, [trial.state for trial in study.trials]
        time.sleep(0.05)


def check_whole(study, file, wanted=24):
    """Nothing lost, nothing twice, nothing running, and every killed trial was run again."""
    done = finished_trials(study)
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert len(done) == wanted == len(set(configurations(file, done)))
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    killed = [trial for trial in study.trials if trial.user_attrs.get("killed") == trial.number and trial.params]
    repeated = {number for trial in done for number in trial.system_attrs.get("retry_history", ())}
    assert {trial.number for trial in killed} <= repeated
    return killed


def test_workers_share_a_study_and_end_with_the_front(file, capsys, paced):
    paced(seconds=0.3)  # or the first one has done it all when the second one has started
    said = out(capsys, "run", file, "--workers", 2)
    study = read(file)
    assert check_whole(study, file) == []
    assert len({trial.user_attrs["owner"]["pid"] for trial in study.trials}) == 2
    assert os.getpid() not in {trial.user_attrs["owner"]["pid"] for trial in study.trials}
    assert study.user_attrs["random_streams"] == 3  # of the run itself, and of each worker its own
    assert "demo: front of" in said.out
    assert re.search(r"^trial 24 of 24  .*hypervolume [\d.]+  knee", said.err, re.MULTILINE)


@pytest.mark.architectures
def test_the_whole_space_gives_the_known_front_with_four_workers(write_study, study_dict, capsys, postgres):
    space = {"partition": "all", "ae_ratio": [0.03125, 1.0], "bits": [1, 4], "tcl": 0, "head": "own"}
    change(study_dict, "space", space)
    change(study_dict, "search.trials", 100)
    file = write_study(study_dict)
    out(capsys, "run", file, "--workers", 4, "--storage", postgres)
    study = read(file, storage=postgres)
    check_whole(study, file, wanted=3 * 2 * 2 * 2)
    assert values(pareto_front(trial_points(study))) == known_front(load_spec(file))


def started(file, *more):
    """The real command, in a process group of its own."""
    command = [sys.executable, "-c", RUN, "run", file, "--workers", "3", *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def stopped_in_a_trial(study):
    """The process of a trial that is running, and stays so: it stands still."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if not trial.params:
                continue
            pid = trial.user_attrs["owner"]["pid"]
            os.kill(pid, signal.SIGSTOP)
            if trial.number in [each.number for each in study.get_trials(states=(TrialState.RUNNING,))]:
                return pid
            os.kill(pid, signal.SIGCONT)
    pytest.fail("no trial began")


def children(pid):
    """Process ids of a process's own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def all_gone(processes, limit_s=120):
    end = time.monotonic() + limit_s
    while not all(map(is_gone, processes)):
        assert time.monotonic() < end
        time.sleep(0.05)


def when_running(file, count, storage=None):
    """The study, as soon as so many trials have ended."""
    end = time.monotonic() + 120
    while True:
        try:
            study = read(file, storage=storage)
            break
        except Exception:
            assert time.monotonic() < end
            time.sleep(0.1)
    begun(study, count)
    return study


def test_a_killed_worker_s_trial_is_run_again_by_the_others(file, paced):
    paced(seconds=0.5)
    process = started(file)
    study = when_running(file, 4)
    os.kill(stopped_in_a_trial(study), signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert re.search(r"worker \d was killed \(signal 9\)\. Its trial is tried again", said)
    assert len(check_whole(study, file)) == 1


def test_ctrl_c_ends_all_workers_and_notes_their_trials(file, paced):
    paced(seconds=2)  # the rest takes far longer than to interrupt it
    process = started(file)
    study = when_running(file, 4)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and re.search(r"interrupted; \d+ finished trials are kept in runs/demo", said)
    assert workers and all(map(is_gone, workers))
    states = [trial.state for trial in study.trials]
    assert TrialState.RUNNING not in states
    stopped = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert stopped and {trial.user_attrs["stopped"] for trial in stopped} == {"interrupted by the user"}
    assert not list(Path("runs/demo/.locks").glob("run-*"))


def test_no_worker_outlives_its_run(file, paced):
    paced(seconds=2)
    process = started(file)
    study = when_running(file, 4)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    all_gone(workers)
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}


@pytest.mark.parametrize("lost", [1, 1000])
def test_a_worker_that_lost_an_interrupt_gets_another_one_and_is_ended_at_last(lost):
    deaf = f"""if True:
        import sys, time
        from search import worker

        def work(told):
            print("begun", flush=True)
            for _ in range({lost}):
                try:
                    time.sleep(60)
                except KeyboardInterrupt:  # as Python itself does in a destructor
                    pass
            time.sleep(60)

        worker.AGAIN_S, worker._work = 0.2, work
        sys.exit(worker.main())
    """
    process = subprocess.Popen([sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"{}\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"begun\n"
    process.stdin.close()
    assert process.wait(30) == 130
    process.stdout.close()


@pytest.mark.architectures
def test_all_killed_in_mid_write_of_the_store_nothing_is_lost(file, paced, capsys):
    paced(seconds=0.3, stored=True)
    process = started(file)
    study = when_running(file, 5)
    doomed = children(process.pid)
    for pid in (*doomed, process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    all_gone(doomed)
    before = {trial.number: trial.values for trial in finished_trials(study)}
    running = [trial.number for trial in study.get_trials(states=(TrialState.RUNNING,)) if trial.params]
    paced(seconds=0.0, stored=True)
    out(capsys, "run", file, "--workers", 2)
    study = read(file)
    assert [trial.number for trial in check_whole(study, file)] == running
    assert before.items() <= {trial.number: trial.values for trial in finished_trials(study)}.items()
    store = Store(Path(os.environ["SPLITSEARCH_CACHE"]) / "store")
    done = configurations(file, finished_trials(study))
    assert {entry.about for entry in store.entries()} >= {each.label for each in done}
    assert not list((store.root / "candidate").glob(".*"))


def what_workers_said():
    return "".join(path.read_text() for path in Path("runs/demo/workers").glob("*.log"))


@pytest.mark.architectures
def test_a_database_server_that_restarts_is_waited_for(file, paced, postgres_server, postgres):
    paced(seconds=0.2)
    process = started(file, "--storage", postgres)
    study = when_running(file, 4, storage=postgres)
    before = {trial.number: trial.values for trial in finished_trials(study)}
    postgres_server.stop("immediate")
    end = time.monotonic() + 60
    while "the storage does not answer" not in what_workers_said():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    time.sleep(1.5)
    assert process.poll() is None
    postgres_server.start()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert "the storage does not answer" in said
    check_whole(study, file)
    after = {trial.number: trial.values for trial in finished_trials(study)}
    assert before.items() <= after.items()
    assert "the storage answers again" in what_workers_said()


def test_a_worker_that_cannot_work_says_why(file, capsys, monkeypatch):
    monkeypatch.setenv("PACED_FAKE", json.dumps({"unknown": 1}))
    out(capsys, "run", file, "--workers", 2, code=1)


def test_workers_meet_in_a_journal(file, capsys):
    out(capsys, "run", file, "--workers", 2, "--trials", 12, "--storage", "shared/study.log")
    check_whole(read(file, storage="shared/study.log"), file, wanted=12)


def test_what_workers_are_told_is_on_no_command_line(file, tmp_path):
    """A database's URL has a password in it, and everybody may read command lines."""
    with Workers(1, running.Job(study=file, storage="postgresql://ann:secret@127.0.0.1:9/x"), tmp_path) as workers:
        while "search.worker" not in (line := Path(f"/proc/{workers.all[0].pid}/cmdline").read_text()):
            time.sleep(0.01)
        assert "secret" not in line
        (end,) = workers.watch(lambda: None, lambda said: None)
    assert end.code == 1 and "postgresql" in str(end) and "secret" not in str(end)


def test_when_more_workers_are_unwise():
    assert unwise(1, 1, on_cpu=True) == "" and unwise(4, 8, on_cpu=False) == ""
    assert "more than this machine's 2 cores" in unwise(3, 2, on_cpu=False)
    assert "with 4 of its 8 cores each" in unwise(2, 8, on_cpu=True)


def test_a_search_that_one_of_its_workers_ended_is_no_failure(tmp_path):
    killed, done = Ended(number=1, code=-9, said=""), Ended(number=2, code=0, said="")
    check_ends([killed, done], 5, 20, tmp_path)  # its front had stopped growing, or time was over
    check_ends([killed], 20, 20, tmp_path)
    with pytest.raises(SplitsearchError, match=r"worker 1 was killed \(signal 9\)\. 5 of 20 trials are finished"):
        check_ends([killed, killed], 5, 20, tmp_path)


def test_a_cluster_without_workers_is_named(monkeypatch):
    distributed, closed = pytest.importorskip("distributed"), []

    class Client:
        def __init__(self, *_, **__):
            pass

        def scheduler_info(self, **_):
            return {"workers": {}}

        def close(self):
            closed.append(True)

    monkeypatch.setattr(distributed, "Client", Client)
    monkeypatch.setattr(distributed, "Event", lambda *_, **__: None)
    job = running.Job(study="demo", storage="grpc://there")
    with pytest.raises(SpecError, match="the cluster has no workers yet"), DaskWorkers(None, job, "tcp://there:8786"):
        pass
    assert closed


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--workers", "0"), "--workers"),
        (("--on", "ray://x"), "dask://host:8786"),
        (("--on", "dask://x:1"), "SQLite is for one machine"),
    ],
)
def test_impossible_workers_are_wrong_usage(file, capsys, more, said):
    assert said in out(capsys, "run", file, *more, code=2).err


@pytest.mark.architectures
def test_the_same_workers_on_a_cluster_of_four(file, capsys, paced, postgres):
    distributed = pytest.importorskip("distributed")
    paced(seconds=0.1)
    how = {"n_workers": 4, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        out(capsys, "run", file, "--on", address, "--storage", postgres)
    study = read(file, storage=postgres)
    check_whole(study, file)
    assert len({trial.user_attrs["owner"]["pid"] for trial in study.trials}) == 4
