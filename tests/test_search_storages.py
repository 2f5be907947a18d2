"""Every kind of storage: what is written is read back, none is drawn twice, and killed trials come again."""

import datetime
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.trial import TrialState
from test_search_spec import change
from test_search_study import known_front, start, values

from evaluators.fake import FakeEvaluator
from search import backends, patience
from search.backends import GRACE_S, open_backend
from search.front import pareto_front
from search.objective import prepare, run_trials
from search.patience import Patience, StorageGone
from search.places import Journal, read_place
from search.points import finished_trials, trial_points
from search.presence import Presence
from search.spec import load_spec, with_trials
from search.storage import open_study, start_or_resume
from spaces.errors import SpecError, SplitsearchError

KINDS = ("sqlite", "postgres", "journal", "grpc")
ELSEWHERE = {"host": "another-machine.invalid", "pid": 1, "lock": "/nowhere/run.lock"}


@pytest.fixture
def proxy(tmp_path):
    """Optuna's gRPC proxy over an SQLite file, in a thread."""
    pytest.importorskip("grpc")
    from optuna.storages._grpc.server import make_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    behind = optuna.storages.get_storage(f"sqlite:///{tmp_path}/behind.db")
    server = make_server(behind, "127.0.0.1", port, ThreadPoolExecutor(max_workers=4))
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(params=KINDS)
def storage(request, tmp_path):
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    if request.param == "grpc":
        return request.getfixturevalue("proxy")
    return str(tmp_path / "shared" / ("study.db" if request.param == "sqlite" else "study.log"))


@pytest.fixture
def spec(write_study, study_dict):
    return load_spec(write_study(study_dict))


def opened(spec, folder, storage):
    evaluator = FakeEvaluator()
    space = spec.space(list(evaluator.partition_points()))
    study = start_or_resume(spec, space, folder, storage, evaluator.identity(), ask_price=evaluator.price)
    prepare(study, space, evaluator, lambda _: None)
    return study, space


def run(spec, folder, storage, **options):
    study, space = opened(spec, folder, storage)
    run_trials(study, spec, space, FakeEvaluator(), folder, **options)
    return study


def test_a_study_is_the_same_wherever_it_is_kept(spec, storage, tmp_path):
    spec = with_trials(spec, 12)
    study, plain = run(spec, tmp_path / "run", storage), start(spec, tmp_path / "plain")
    read = open_study(spec, tmp_path / "run", storage)
    for one, other, again in zip(study.trials, plain.trials, read.trials, strict=True):
        assert (one.number, one.params, one.values, one.state) == (
            other.number,
            other.params,
            other.values,
            other.state,
        )
        differing = {key for key in one.user_attrs if one.user_attrs[key] != other.user_attrs[key]}
        assert differing <= {"owner"} and one.system_attrs == other.system_attrs
        assert (again.params, again.values, again.user_attrs) == (one.params, one.values, one.user_attrs)
        assert one.datetime_start <= one.datetime_complete
    assert len(run(with_trials(spec, 15), tmp_path / "run", storage).trials) == 15  # resumed


def test_all_of_a_space_gives_the_known_front(spec, storage, write_study, study_dict, tmp_path):
    space = {"partition": "all", "ae_ratio": [0.03125, 1.0], "bits": [1, 4], "tcl": 0, "head": "own"}
    change(study_dict, "space", space)
    small = with_trials(load_spec(write_study(study_dict)), 100)
    study = run(small, tmp_path / "run", storage)
    assert len(study.trials) == 3 * 2 * 2 * 2
    assert values(pareto_front(trial_points(study))) == known_front(small)


def test_what_is_written_of_a_trial_is_read_back(spec, storage, tmp_path):
    study, _ = opened(spec, tmp_path / "run", storage)
    backend = study.backend
    with backend.alone("study"):
        trial = backend.begin(study._study_id, {"owner": ELSEWHERE, "note": [1, 2]})
        distributions = study.sampler.distributions
        params = {name: getattr(each, "choices", [None])[0] for name, each in distributions.items()}
        backend.write_params(trial._trial_id, params, distributions)
    backend.finish(trial._trial_id, TrialState.COMPLETE, (0.5, 7.0), {"a": "b"}, {"constraints": [0.0]}, [0.1, 0.2])
    (read,) = open_study(spec, tmp_path / "run", storage).trials
    assert (read.number, read.state, read.values, read.params) == (0, TrialState.COMPLETE, [0.5, 7.0], params)
    assert read.user_attrs == {"owner": ELSEWHERE, "note": [1, 2], "a": "b"}
    assert read.system_attrs == {"constraints": [0.0]} and read.intermediate_values == {0: 0.1, 1: 0.2}
    with pytest.raises(UpdateFinishedTrialError):
        backend.finish(trial._trial_id, TrialState.FAIL, (), {}, {})


@pytest.mark.parametrize("storage", ["sqlite", "postgres"], indirect=True)
def test_rows_are_what_optuna_reads(spec, storage, tmp_path):
    """Against Optuna's own way of reading its tables."""
    study = run(with_trials(spec, 6), tmp_path / "run", storage)
    backend = study.backend
    backend.begin(study._study_id, {})
    for included, after in ((set(), -1), ({2, 3}, 4), (set(), 5)):
        own = backend._get_trials(study._study_id, None, included, after)
        optunas = super(backends.StudyDatabase, backend)._get_trials(study._study_id, None, included, after)
        assert own == optunas and own
    running = backend._get_trials(study._study_id, (TrialState.RUNNING,), set(), -1)
    assert [trial.number for trial in running] == [6]


def interrupted(spec, folder, storage, owner):
    """A study of five finished trials and one that is running, whose process is somebody else."""
    study, space = opened(spec, folder, storage)
    run_trials(study, with_trials(spec, 5), space, FakeEvaluator(), folder)
    with study.backend.alone("study"):
        trial = study.backend.begin(study._study_id, {"owner": owner})
        params = study.sampler.sample_relative(study, trial, study.sampler.distributions)
        study.backend.write_params(trial._trial_id, params, study.sampler.distributions)
    return study, trial, params


def test_a_killed_process_s_trial_is_run_again_with_its_parameters(spec, storage, tmp_path):
    with Presence(tmp_path / "run") as killed:
        owner = killed.owner
    params = interrupted(spec, tmp_path / "run", storage, owner)[2]
    study = run(with_trials(spec, 8), tmp_path / "run", storage)
    assert study.trials[5].state == TrialState.FAIL and study.trials[5].user_attrs["killed"] == 5
    again = study.trials[6]
    assert again.state == TrialState.COMPLETE and again.params == params
    assert again.user_attrs["owner"] != owner
    assert optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history(again) == [5]
    assert len(finished_trials(study)) == 8 and len(study.trials) == 9
    configs = [study.sampler.config_of(each.params) for each in finished_trials(study)]
    assert len(set(configs)) == 8


def test_a_living_process_s_trial_is_left_to_it(spec, storage, tmp_path):
    with Presence(tmp_path / "run") as alive:
        interrupted(spec, tmp_path / "run", storage, alive.owner)
        study = run(with_trials(spec, 8), tmp_path / "run", storage)
    assert study.trials[5].state == TrialState.RUNNING and len(finished_trials(study)) == 7


def test_a_machine_that_is_silent_for_too_long_loses_its_trial(spec, tmp_path, postgres):
    params = interrupted(spec, tmp_path / "run", postgres, ELSEWHERE)[2]
    study = run(with_trials(spec, 7), tmp_path / "run", postgres)
    assert study.trials[5].state == TrialState.RUNNING  # it has given a sign of life as it began
    with study.backend.engine.begin() as connection:
        gone = sqlalchemy.func.now() - datetime.timedelta(seconds=GRACE_S + 1)
        connection.execute(sqlalchemy.update(models.TrialHeartbeatModel).values(heartbeat=gone))
    study = run(with_trials(spec, 8), tmp_path / "run", postgres)
    assert study.trials[5].state == TrialState.FAIL
    again = next(each for each in study.trials if each.system_attrs.get("retry_history") == [5])
    assert again.state == TrialState.COMPLETE and again.params == params


def test_who_was_cut_off_itself_judges_nobody(spec, tmp_path, postgres):
    study, trial, _ = interrupted(spec, tmp_path / "run", postgres, ELSEWHERE)
    with study.backend.engine.begin() as connection:
        gone = sqlalchemy.func.now() - datetime.timedelta(seconds=GRACE_S + 1)
        connection.execute(sqlalchemy.update(models.TrialHeartbeatModel).values(heartbeat=gone))
    assert study.backend.silent_trials(study._study_id) == {trial._trial_id}
    study.backend.was_cut_off()
    assert study.backend.silent_trials(study._study_id) == set()


def test_a_trial_that_was_given_up_while_it_ran_harms_nobody(spec, tmp_path, postgres, caplog):
    class GivenUp(FakeEvaluator):
        def evaluate(self, config, **options):
            running = study.get_trials(states=(TrialState.RUNNING,))
            if running[0].number == 2:
                study.tell(2, state=TrialState.FAIL)
            return super().evaluate(config, **options)

    study, space = opened(spec, tmp_path / "run", postgres)
    run_trials(study, with_trials(spec, 5), space, GivenUp(), tmp_path / "run")
    assert "trial 2 was given up by others" in caplog.text
    assert len(finished_trials(study)) == 5 and study.trials[2].state == TrialState.FAIL


def test_a_configuration_that_kills_its_process_again_and_again_cannot_run(spec, tmp_path):
    study, trial, params = interrupted(spec, tmp_path / "run", None, None)
    for _ in range(5):
        study.tell(trial.number, state=TrialState.FAIL)
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[-1])
        trial = study.trials[-1]
        if trial.number < 10:
            study.backend.take_waiting(trial, {"owner": None})
    study = run(with_trials(spec, 6), tmp_path / "run", None)
    last = study.trials[-1]
    assert last.state == TrialState.COMPLETE and last.constraints["runs"] > 0 and last.params == params
    assert "was killed 5 times" in last.user_attrs["infeasible"]


def test_only_one_takes_a_waiting_trial(spec, storage, tmp_path):
    study, _ = opened(spec, tmp_path / "run", storage)
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"owner": ELSEWHERE}))
    (waiting,) = study.trials
    assert study.backend.take_waiting(waiting, {"owner": {"host": "a"}})
    assert study.trials[0].state == TrialState.RUNNING and study.trials[0].user_attrs["owner"] == {"host": "a"}
    other = open_backend(read_place(tmp_path / "run", storage), tmp_path / "run", spec.name)
    assert not other.take_waiting(waiting, {"owner": ELSEWHERE})


def test_without_locks_the_later_of_two_equal_trials_is_given_up(spec, tmp_path, proxy):
    """Another machine has drawn at the same moment: its trial has the lower number."""
    study, space = opened(spec, tmp_path / "run", proxy)
    run_trials(study, with_trials(spec, 3), space, FakeEvaluator(), tmp_path / "run")
    backend, draw = study.backend, study.sampler.sample_relative

    def drawn_by_both(self_study, trial, distributions):
        params = draw(self_study, trial, distributions)
        study.sampler.sample_relative = draw
        # Its number is higher, so it is the one that gives way; ours stays.
        return params

    first = backend.begin(study._study_id, {"owner": ELSEWHERE})
    params = draw(study, first, study.sampler.distributions)
    backend.write_params(first._trial_id, params, study.sampler.distributions)
    study.sampler.sample_relative = lambda *a: (drawn_by_both(*a), params)[1]
    run_trials(study, with_trials(spec, 5), space, FakeEvaluator(), tmp_path / "run")
    assert study.trials[4].state == TrialState.FAIL and "had begun the same" in study.trials[4].user_attrs["stopped"]
    counted = [each for each in study.trials if each.state in (TrialState.COMPLETE, TrialState.RUNNING)]
    assert len(counted) == 5 and len({study.sampler.config_of(each.params) for each in counted}) == 5


class Measuring(FakeEvaluator):
    """Says that it times its device here, on a processor with so many cores."""

    def __init__(self, cores):
        self._cores = cores

    def describe(self):
        found = super().describe()
        machine = {"processor": "some processor", "cores": self._cores}
        return {**found, "machine": machine, "device": {**found["device"], "name": "local", "source": "measured"}}


def test_a_timing_belongs_to_a_machine(spec, tmp_path, postgres):
    study, space = opened(spec, tmp_path / "run", postgres)
    study.set_user_attr("environment", Measuring(4).describe())
    prepare(study, space, Measuring(4), lambda _: None)
    with pytest.raises(SpecError, match=r"of another machine \(some processor, 4 cores\), this one is .*, 8 cores"):
        prepare(study, space, Measuring(8), lambda _: None)
    prepare(study, space, FakeEvaluator(), lambda _: None)  # whose device is modelled, so the same everywhere


def test_a_server_that_restarts_while_a_study_is_prepared(spec, tmp_path, postgres_server, postgres):
    study, space = opened(spec, tmp_path / "run", postgres)

    class Restarts(FakeEvaluator):
        def prepare(self, space, progress):
            postgres_server.stop("immediate")
            postgres_server.start()

    prepare(study, space, Restarts(), lambda _: None)
    other, _ = opened(spec, tmp_path / "run", postgres)
    with other.backend.alone("prepare", lambda: pytest.fail("the lock is held by nobody")):
        pass


def test_a_line_of_the_journal_that_was_cut_short_harms_nobody(spec, tmp_path):
    file = tmp_path / "study.log"
    run(with_trials(spec, 4), tmp_path / "run", str(file))
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code":8,"worker_id":"a","trial')
    study = run(with_trials(spec, 6), tmp_path / "run", str(file))
    assert len(finished_trials(study)) == 6 and file.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in file.read_text().splitlines())


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("a/study.log", "a/study.log"),
        ("journal:///shared/x", "/shared/x"),
        ("journal://x.log", "x.log"),
        ("grpc://box:13001", "grpc://box:13001"),
        ("grpc://box", "grpc://box:13000"),
        ("postgresql://ann:secret@box/x", "postgresql+psycopg://ann:***@box/x"),
        ("x.db", "x.db"),
    ],
)
def test_places(tmp_path, given, place):
    assert str(read_place(tmp_path, given)) == place
    assert read_place(tmp_path, "journal://x.log") == Journal(tmp_path.__class__("x.log"))


@pytest.mark.parametrize("given", ["grpc://", "grpc://box:port", "journal://", "study.txt"])
def test_no_places(tmp_path, given):
    with pytest.raises(SpecError, match="journal on a shared disk"):
        read_place(tmp_path, given)


@pytest.mark.parametrize("storage", ["grpc://127.0.0.1:9", "postgresql://postgres@127.0.0.1:9/x"])
def test_a_storage_that_is_not_there_is_named(spec, tmp_path, storage):
    with pytest.raises(SplitsearchError, match="cannot be used"):
        opened(spec, tmp_path / "run", storage)


def test_patience_waits_longer_and_longer_and_not_for_ever(spec, tmp_path):
    study, _ = opened(spec, tmp_path / "run", None)
    now, waits = [0.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    def gone():
        raise sqlalchemy.exc.OperationalError("select", {}, RuntimeError("the server is gone"))

    answers = iter([gone, gone, gone, lambda: 7])
    patient = Patience(study.backend, 60.0, sleep, lambda: now[0])
    assert patient(lambda: next(answers)()) == 7 and waits == [0.5, 1.0, 2.0]
    with pytest.raises(StorageGone, match=r"not answered for \d+ s \(the server is gone\).*same command again"):
        patient(gone)
    assert now[0] < 3.5 + 60.0 + 15.0
    with pytest.raises(ZeroDivisionError):
        patient(lambda: 1 / 0)
    assert patience.LIMIT_S == 600.0 and time.monotonic() - study.backend._cut_off_at < 60
