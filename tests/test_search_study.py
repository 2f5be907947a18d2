"""The loop with the fake evaluator: the front is known, resuming resumes, nothing is lost."""

import itertools
import math
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.engine.default import DefaultDialect
from test_search_spec import change

from evaluators.fake import FakeEvaluator
from search import backends
from search.backends import StudyDatabase
from search.front import pareto_front
from search.objective import prepare, run_trials
from search.points import finished_trials, trial_points
from search.spec import load_spec, with_trials
from search.storage import open_study, start_or_resume
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit, MeasurementError, NotFinished, SpecError


def start(spec, folder, evaluator=None, **options):
    evaluator = evaluator or FakeEvaluator()
    space = spec.space(list(evaluator.partition_points()))
    study = start_or_resume(spec, space, folder, contents=evaluator.identity(), ask_price=evaluator.price)
    prepare(study, space, evaluator, lambda _: None)
    run_trials(study, spec, space, evaluator, folder, **options)
    return study


def known_front(spec):
    """Every configuration scored, by brute force."""
    evaluator, points = FakeEvaluator(), []
    for config in spec.space(list(evaluator.partition_points())).grid():
        try:
            found = evaluator.evaluate(config)
        except InfeasibleSplit:
            continue
        if found.accuracy_drop_pp <= 9.0:
            points.append((found.latency_ms, found.accuracy))
    best = [p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)]
    return sorted(set(best))


@pytest.fixture
def spec(write_study, study_dict):
    return load_spec(write_study(study_dict))


@pytest.fixture
def small(write_study, study_dict):
    """A space of 24 configurations, two of them impossible and some over the limit."""
    change(
        study_dict, "space", {"partition": "all", "ae_ratio": [0.03125, 1.0], "bits": [1, 4], "tcl": 0, "head": "own"}
    )
    return load_spec(write_study(study_dict))


def values(points):
    return [(p.latency_ms, p.accuracy) for p in points]


def test_searching_the_whole_space_finds_the_known_front_and_stops(small, tmp_path):
    study = start(with_trials(small, 1000), tmp_path / "run")
    size = small.space(list(FakeEvaluator().partition_points())).size
    assert len(finished_trials(study)) == size == 3 * 2 * 2 * 2
    front = pareto_front(trial_points(study))
    assert values(front) == known_front(small)
    optunas = {(trial.values[1], trial.values[0]) for trial in study.best_trials}
    assert optunas == set(values(front))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_no_configuration_is_tried_twice(write_study, study_dict, tmp_path, sampler):
    change(study_dict, "search.sampler", sampler)
    change(study_dict, "space.tcl", {"low": 1.0, "high": 10.0, "off": True})
    spec = load_spec(write_study(study_dict))
    study = start(with_trials(spec, 30), tmp_path / "run")
    space = spec.space(list(FakeEvaluator().partition_points()))
    configs = [space.suggest(optuna.trial.FixedTrial(trial.params)) for trial in study.trials]
    assert len(set(configs)) == len(configs) == 30


def test_same_seed_same_front_and_another_seed_another_order(spec, write_study, study_dict, tmp_path):
    one, two = start(spec, tmp_path / "one"), start(spec, tmp_path / "two")
    assert [t.params for t in one.trials] == [t.params for t in two.trials]
    change(study_dict, "search.seed", 1)
    other = start(load_spec(write_study(study_dict)), tmp_path / "three")
    assert [t.params for t in one.trials] != [t.params for t in other.trials]


def test_running_again_resumes(spec, tmp_path):
    start(with_trials(spec, 7), tmp_path / "run")
    study = start(with_trials(spec, 12), tmp_path / "run")
    assert [trial.number for trial in study.trials] == list(range(12))
    again = start(with_trials(spec, 12), tmp_path / "run")
    assert len(again.trials) == 12


def test_infeasible_configurations_teach_optuna_and_its_dashboard(small, tmp_path):
    study = start(with_trials(small, 1000), tmp_path / "run")
    impossible = [t for t in study.trials if t.params["partition"] == "deep" and t.params["ae_ratio"] == 0.03125]
    over = [t for t in study.trials if t.constraints.get("max_accuracy_drop_pp", 0) > 0]
    assert len(impossible) == 2 * 2 and over
    for trial in [*impossible, *over]:
        assert trial.state == TrialState.COMPLETE
        assert any(value > 0 for value in trial.constraints.values())
        assert any(value > 0 for value in trial.system_attrs["constraints"])  # what optuna-dashboard reads
    assert all("leaves no channel of 8" in trial.user_attrs["infeasible"] for trial in impossible)
    assert all("max_accuracy_drop_pp exceeded" in trial.user_attrs["infeasible"] for trial in over)
    fine = [t for t in study.trials if t not in impossible and t not in over]
    assert all(value <= 0 for trial in fine for value in trial.system_attrs["constraints"])
    assert not {t.number for t in study.best_trials} & {t.number for t in [*impossible, *over]}


def test_every_part_is_a_user_attribute(spec, tmp_path):
    study = start(with_trials(spec, 3), tmp_path / "run")
    attributes = finished_trials(study)[0].user_attrs
    assert {"head_ms", "link_ms", "tail_ms", "payload_bytes", "source_device", "configuration"} <= set(attributes)
    assert study.metric_names == ["accuracy", "latency_ms"]


def test_another_study_file_under_the_same_name_is_refused(spec, write_study, study_dict, tmp_path):
    start(with_trials(spec, 3), tmp_path / "run")
    change(study_dict, "link.rate_mb_per_s", 5.0)
    change(study_dict, "space.bits", [1, 2])
    other = load_spec(write_study(study_dict))
    for attempt in (lambda: start(other, tmp_path / "run"), lambda: open_study(other, tmp_path / "run")):
        with pytest.raises(SpecError) as caught:
            attempt()
        assert "link.rate_mb_per_s (was 1.0, is 5.0), space.bits (was [1, 2, 4], is [1, 2])" in str(caught.value)
    assert len(open_study(spec, tmp_path / "run").trials) == 3


def test_nothing_there_yet_says_what_to_do(spec, tmp_path):
    with pytest.raises(NotFinished, match="splitsearch run"):
        open_study(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Stopped(FakeEvaluator):
    """Interrupted, or killed, in the middle of the fourth trial."""

    def __init__(self, how):
        self.left, self.how = 3, how

    def evaluate(self, config: SplitConfig, **options):
        self.left -= 1
        if self.left < 0:
            raise self.how
        return super().evaluate(config, **options)


def test_ctrl_c_keeps_finished_trials_and_marks_the_running_one(spec, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        start(spec, tmp_path / "run", Stopped(KeyboardInterrupt()))
    study = open_study(spec, tmp_path / "run")
    assert len(finished_trials(study)) == 3
    assert study.trials[3].state == TrialState.FAIL
    assert study.trials[3].user_attrs["stopped"] == "interrupted by the user"
    study = start(spec, tmp_path / "run")
    assert len(finished_trials(study)) == 20


@pytest.mark.parametrize("moment", ["begin", "write_params", "finish"])
def test_ctrl_c_at_any_moment_of_a_trial_leaves_none_running(spec, tmp_path, monkeypatch, moment):
    start(with_trials(spec, 3), tmp_path / "run")
    done = getattr(StudyDatabase, moment)

    def interrupted(*args, **options):
        monkeypatch.setattr(StudyDatabase, moment, done)
        if moment != "finish":
            done(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(StudyDatabase, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(spec, tmp_path / "run")
    last = open_study(spec, tmp_path / "run").trials[-1]
    assert last.number == 3 and last.state == TrialState.FAIL
    assert last.user_attrs["stopped"] == "interrupted by the user"


def test_ctrl_c_after_any_statement_lets_go_of_the_database(spec, tmp_path, monkeypatch):
    """The transaction it fell into must not outlive it: the note of the trial needs the database."""
    monkeypatch.setattr(backends, "_WAIT_S", 0.1)
    evaluator, execute, told = FakeEvaluator(), DefaultDialect.do_execute, []
    space = spec.space(list(evaluator.partition_points()))
    start(with_trials(spec, 3), tmp_path / "run")

    def is_interrupted(statement):
        """Whether a run of one trial comes as far as to this statement, from 0; it must leave none running."""
        study = start_or_resume(spec, space, tmp_path / "run", contents=evaluator.identity(), ask_price=evaluator.price)
        more, left = with_trials(spec, len(finished_trials(study)) + 1), iter(range(statement, -1, -1))

        def do_execute(self, cursor, said, *rest):
            execute(self, cursor, said, *rest)
            if next(left, None) == 0:
                told.append(said)
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(DefaultDialect, "do_execute", do_execute)
            try:
                run_trials(study, more, space, evaluator, tmp_path / "run")
            except KeyboardInterrupt:
                running = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
                assert not running, told[-1]
                return True
        return False

    statements = next(count for count in itertools.count() if not is_interrupted(count))
    assert statements > 20 and {said.split()[0] for said in told} == {"SELECT", "INSERT", "UPDATE"}


def test_a_killed_run_leaves_no_running_trial_behind(spec, tmp_path):
    study = start(with_trials(spec, 2), tmp_path / "run")
    study._storage.create_new_trial(study._study_id)
    study = start(with_trials(spec, 4), tmp_path / "run")
    assert [trial.state for trial in study.trials].count(TrialState.RUNNING) == 0
    assert len(finished_trials(study)) == 4


def test_a_timeout_starts_no_further_trial(spec, tmp_path):
    study = start(spec, tmp_path / "run", timeout_s=0.0)
    assert len(finished_trials(study)) <= 1


class Silent(FakeEvaluator):
    """A device that does not answer when it is asked for the n-th time, for each n in ``calls``."""

    def __init__(self, *calls):
        self.calls, self.asked = calls, []

    def evaluate(self, config: SplitConfig, **options):
        self.asked.append(config)
        if len(self.asked) in self.calls:
            raise MeasurementError("ssh://camera: it does not answer; is the device on?")
        return super().evaluate(config, **options)


def test_a_silent_device_costs_no_trial_and_is_asked_again_later(spec, tmp_path):
    evaluator = Silent(4)
    study = start(with_trials(spec, 8), tmp_path / "run", evaluator)
    assert len(finished_trials(study)) == 8
    lost = study.trials[3]
    assert lost.state == TrialState.FAIL and lost.constraints["measured"] > 0
    assert "does not answer" in lost.user_attrs["infeasible_for_now"]
    again = next(trial for trial in study.trials if trial.user_attrs.get("retry_of") == 3)
    assert again.state == TrialState.COMPLETE and again.params == lost.params and again.number > 4
    assert evaluator.asked.count(evaluator.asked[3]) == 2
    assert again.constraints.get("measured", 0.0) <= 0


def test_a_device_that_stays_silent_ends_the_run_and_nothing_is_lost(spec, tmp_path):
    with pytest.raises(MeasurementError, match="is the device on"):
        start(spec, tmp_path / "run", Silent(3, 4, 5))
    study = open_study(spec, tmp_path / "run")
    assert len(finished_trials(study)) == 2 and len(study.trials) == 5
    lost = [trial.params for trial in study.trials[2:]]
    study = start(spec, tmp_path / "run")
    assert len(finished_trials(study)) == 20
    assert [trial.params for trial in study.trials[5:8]] == lost


class Broken(FakeEvaluator):
    """Fails in its own way at every third configuration."""

    def __init__(self, harm):
        self.harm, self.asked = harm, 0

    def evaluate(self, config: SplitConfig, **options):
        self.asked += 1
        found = super().evaluate(config, **options)
        return self.harm(found) if self.asked % 3 == 0 else found


def out_of_memory(_):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_memory(_):
    raise MemoryError


def overflow(_):
    raise FloatingPointError("overflow encountered")


def nan_accuracy(found):
    return replace(found, accuracy=math.nan)


def endless_latency(found):
    return replace(found, latency=replace(found.latency, head_ms=math.inf))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (out_of_memory, "out of memory"),
        (no_memory, "MemoryError"),
        (overflow, "overflow encountered"),
        (nan_accuracy, "no number: accuracy nan"),
        (endless_latency, "no number: head_ms inf"),
    ],
)
def test_what_breaks_a_configuration_breaks_no_search(spec, tmp_path, harm, reason):
    study = start(with_trials(spec, 9), tmp_path / "run", Broken(harm))
    assert len(finished_trials(study)) == 9
    broken = [
        trial for trial in study.trials if trial.constraints["runs"] > 0 and reason in trial.user_attrs["infeasible"]
    ]
    assert len(broken) >= 2
    assert not {point.trial for point in trial_points(study)} & {trial.number for trial in broken}


def test_another_error_ends_the_run_and_is_noted(spec, tmp_path):
    def bug(_):
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError, match="a mistake of ours"):
        start(with_trials(spec, 9), tmp_path / "run", Broken(bug))
    study = open_study(spec, tmp_path / "run")
    assert study.trials[2].state == TrialState.FAIL and "a mistake of ours" in study.trials[2].user_attrs["stopped"]
    assert len(finished_trials(study)) == 2


def test_a_study_of_another_format_is_refused_with_a_sentence(spec, tmp_path):
    study = start(with_trials(spec, 2), tmp_path / "run")
    study.set_user_attr("format", 1)
    for attempt in (lambda: open_study(spec, tmp_path / "run"), lambda: start(spec, tmp_path / "run")):
        with pytest.raises(SpecError, match=r"another version of splitsearch \(format 1, 2 is known here\).*use --out"):
            attempt()
