"""Searching: hypervolume, the model of accuracy, the sampler that knows latency, trials stopped early, the end."""

import dataclasses
import zlib

import numpy as np
import pytest
from optuna.trial import create_trial
from sklearn.gaussian_process.kernels import Matern

from evaluators.fake import UNCUT_ACCURACY, FakeEvaluator
from evaluators.result import RIGHT, LatencyParts, right_text
from search.accuracy_model import AccuracyModel, Features, Seen, Trend
from search.cli import run_command
from search.front import Point, not_told_apart
from search.hypervolume import Corner, GrowingFront, Staircase
from search.knowledge import RUNG_ACCURACIES, RUNG_ERRORS, Knowledge
from search.objective import prepare, run_trials, stopped_growing
from search.points import STOPPED, finished_trials, hypervolumes, trial_points
from search.pruning import Pruning
from search.spec import SAMPLERS, Constraints, SearchSettings, load_spec
from search.storage import open_study, start_or_resume
from search.tied_kernel import TiedMatern
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit, SpecError
from spaces.space import SearchSpace

CORNER = Corner(accuracy=0.5, latency_ms=100.0)
RANDOM = np.random.default_rng(0)


def results(count):
    return list(zip(RANDOM.uniform(0.3, 1.0, count), RANDOM.uniform(1.0, 130.0, count), strict=True))


def area(found, corner, steps=400_000):
    """By a fine sum over latencies."""
    ms = (np.arange(steps) + 0.5) * corner.latency_ms / steps
    best = np.full(steps, corner.accuracy)
    for accuracy, latency_ms in found:
        best = np.where(ms >= latency_ms, np.maximum(best, accuracy), best)
    return float((best - corner.accuracy).mean() * corner.latency_ms)


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_hypervolume_is_the_area(count):
    found = results(count)
    assert Staircase(found, CORNER).hypervolume == pytest.approx(area(found, CORNER), abs=1e-3)


def test_growth_is_the_hypervolume_of_what_came_so_far():
    found = [*results(10), None, *results(5)]
    prefixes = [[each for each in found[: end + 1] if each is not None] for end in range(len(found))]
    front = GrowingFront(CORNER)
    for result in found:
        front.add(result)
    assert front.hypervolumes == pytest.approx([Staircase(each, CORNER).hypervolume for each in prefixes])
    assert len(front.results) < 8


def test_expected_growth_is_the_mean_of_what_samples_add():
    front = Staircase(results(12), CORNER)
    mean, deviation = np.array([0.4, 0.8, 0.95]), np.array([0.1, 0.05, 0.02])
    latency_ms = np.array([5.0, 40.0, 99.0])
    found = front.expected_growth(mean, deviation, latency_ms)
    steps = list(zip(front._levels, front._starts_ms, strict=True))
    for number in range(3):
        samples = RANDOM.normal(mean[number], deviation[number], 400)
        added = [Staircase([*steps, (s, latency_ms[number])], CORNER).hypervolume - front.hypervolume for s in samples]
        assert found[number] == pytest.approx(np.mean(added), abs=4 * np.std(added) / 20 + 0.01)


def test_what_is_certain_adds_what_it_adds():
    front = Staircase([(0.6, 20.0), (0.8, 60.0)], CORNER)
    found = front.expected_growth(np.array([0.7, 0.55, 0.9]), np.zeros(3), np.array([40.0, 30.0, 200.0]))
    assert found == pytest.approx([0.1 * 20.0, 0.0, 0.0], abs=1e-9)


def seen(x, accuracy):
    return Seen(features=np.array([x]), accuracy=accuracy, error=0.005)


NO_TREND = Trend(slope=np.zeros(1), offset=0.0)


def test_the_model_is_right_between_what_it_saw_and_unsure_beyond():
    def true(x):
        return 0.5 + 0.2 * np.sin(3 * x)

    rows = [seen(x, true(x)) for x in np.linspace(0, 2, 12)]
    mean, deviation = AccuracyModel(0, NO_TREND).predict(rows, np.array([[0.4], [1.6], [6.0]]), floor=0.0, top=1.0)
    assert mean[:2] == pytest.approx(true(np.array([0.4, 1.6])), abs=0.03)
    assert deviation[2] > 5 * deviation[:2].max()


def test_equal_accuracies_break_no_model():
    rows = [seen(x, 0.7) for x in (0.0, 0.5, 1.0, 1.0)]
    mean, deviation = AccuracyModel(0, NO_TREND).predict(rows, np.array([[0.2]]), floor=0.5, top=1.0)
    assert mean == pytest.approx([0.7]) and np.isfinite(deviation).all()


def test_what_was_only_hopeless_says_nothing_of_what_is_far_from_it():
    rows = [seen(x, accuracy) for x, accuracy in ((0.0, 0.0), (0.5, 0.1), (1.0, 0.0), (1.0, 0.0))]
    mean, deviation = AccuracyModel(0, NO_TREND).predict(rows, np.array([[0.2], [9.0]]), floor=0.5, top=1.0)
    assert mean == pytest.approx([0.5, 0.75], abs=0.02)
    assert deviation[0] < 0.05 and deviation[1] == pytest.approx(0.25, abs=0.01)


def test_before_anything_was_seen_gentle_squeezes_are_expected_to_be_better():
    space = SearchSpace.from_dict({"partition": ["a", "b"], "ae_ratio": [0.0625, 0.25], "bits": [1, 2, 4]}, ["a", "b"])
    features = Features(space)
    squeezes = [(0.0625, 1), (0.0625, 4), (0.25, 1), (0.25, 2), (0.25, 4)]
    wanted = np.array(
        [features.of(SplitConfig(partition="b", ae_ratio=ratio, bits=bits), 64.0) for ratio, bits in squeezes]
    )
    model = AccuracyModel(0, features.trend, cuts=2)
    mean, deviation = model.predict([], wanted, floor=0.4, top=0.8)
    assert mean == pytest.approx([0.48, 0.6, 0.6, 0.66, 0.72]) and deviation == pytest.approx(np.full(5, 0.2))
    one = Seen(features=wanted[0], accuracy=0.7, error=0.005)
    mean, deviation = model.predict([one], wanted, floor=0.4, top=0.8)
    assert mean[0] == pytest.approx(0.7, abs=0.01) and mean[1] > 0.65 and deviation[0] < 0.05 < deviation[1]


def test_what_is_only_believed_fits_nothing():
    rows = [seen(x, 0.5 + 0.2 * np.sin(3 * x)) for x in np.linspace(0, 2, 8)]
    believed = [seen(x, 0.6) for x in np.linspace(3, 5, 20)]
    wanted = np.array([[1.1], [4.0]])
    model = AccuracyModel(0, NO_TREND)
    mean, deviation = model.predict(rows, wanted, floor=0.0, top=1.0, believed=believed)
    alone = AccuracyModel(0, NO_TREND)
    mean_alone, deviation_alone = alone.predict(rows, wanted, floor=0.0, top=1.0)
    assert model._kernel == alone._kernel and mean[0] == pytest.approx(mean_alone[0], abs=0.01)
    assert mean[1] == pytest.approx(0.6, abs=0.01) and deviation[1] < deviation_alone[1] / 2
    # Before there is anything to fit to, a running trial takes the doubt off its own place and no other.
    young = AccuracyModel(0, NO_TREND).predict([], wanted, floor=0.4, top=0.8, believed=believed)[1]
    assert young[1] < 0.05 < young[0]


def test_features_that_are_tied_share_a_length_scale_and_its_gradient():
    inputs = np.random.default_rng(0).normal(size=(6, 5))
    kernel = TiedMatern(np.array([0.7, 1.3, 2.0]), tied=3)
    assert kernel(inputs) == pytest.approx(Matern([0.7, 1.3, 2.0, 2.0, 2.0], nu=2.5)(inputs))
    _, gradient = kernel(inputs, eval_gradient=True)
    assert gradient.shape == (6, 6, 3) == (6, 6, len(kernel.theta))
    for number, step in enumerate(1e-6 * np.eye(3)):
        up, down = (kernel.clone_with_theta(kernel.theta + sign * step)(inputs) for sign in (1, -1))
        assert gradient[..., number] == pytest.approx((up - down) / 2e-6, abs=1e-6)


class Counting(FakeEvaluator):
    """Remembers what was evaluated, and gives less after less training."""

    def __init__(self):
        self.asked = []

    def evaluate(self, config, *, budget=None, seed=None, split="validation"):
        self.asked.append((config, budget))
        found = super().evaluate(config)
        cheaper = budget is not None and budget.until != "full"
        return dataclasses.replace(found, accuracy=found.accuracy - 0.05) if cheaper else found


@pytest.fixture
def search(write_study, study_dict, tmp_path):
    """Runs a study with the fake evaluator and returns it; ``settings`` are of its search."""

    def run(evaluator=None, space=None, folder="run", constraints=None, once_per_cut=False, **settings):
        study_dict["finetune"] = {"once_per_cut": once_per_cut}
        study_dict["search"] = {"trials": 20, "seed": 0, "pruning": "rungs"} | settings
        study_dict["space"] |= space or {}
        study_dict["constraints"] |= constraints or {}
        spec, evaluator = load_spec(write_study(study_dict)), evaluator or FakeEvaluator()
        space = spec.space(list(evaluator.partition_points()))
        study = start_or_resume(
            spec, space, tmp_path / folder, contents=evaluator.identity(), ask_price=evaluator.price
        )
        prepare(study, space, evaluator, lambda _: None)
        run_trials(study, spec, space, evaluator, tmp_path / folder)
        return study

    return run


def every_result(space_of):
    """All feasible results there are, (accuracy, latency)."""
    found, evaluator = [], FakeEvaluator()
    for config in space_of.grid():
        try:
            each = evaluator.evaluate(config)
        except InfeasibleSplit:
            continue
        if each.accuracy_drop_pp <= 9.0:
            found.append((each.accuracy, each.latency_ms))
    return found


BOTH_HEADS = {"head": ["own", "distilled"]}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tenth_of_the_space_has_all_of_the_front(search, seed):
    study = search(seed=seed, space=BOTH_HEADS, pruning="none")
    space = study.sampler._space
    assert space.size == 216 and len(finished_trials(study)) == 20
    knowledge = study.sampler.knowledge
    knowledge.update(study)
    everything = Staircase(every_result(space), knowledge.corner).hypervolume
    assert knowledge.hypervolumes[-1] == pytest.approx(everything, rel=0.001)
    assert knowledge.hypervolumes == sorted(knowledge.hypervolumes)


def cuts_of(study):
    configs = [study.sampler.of_trial(trial) for trial in finished_trials(study)]
    return [(config.partition, config.head, config.tcl) for config in configs]


def test_where_one_training_answers_for_a_cut_the_search_stays_at_few(search):
    each = cuts_of(search(space=BOTH_HEADS, folder="each", pruning="none", trials=14))
    study = search(space=BOTH_HEADS, folder="once", pruning="none", trials=14, once_per_cut=True)
    once = cuts_of(study)
    assert len(set(once)) < len(set(each))
    fake = FakeEvaluator()
    fastest = min(study.sampler._space.grid(), key=lambda config: latency_or_never(fake, config))
    assert once[0][:2] == (fastest.partition, fastest.head)
    knowledge = study.sampler.knowledge
    knowledge.update(study)
    everything = Staircase(every_result(study.sampler._space), knowledge.corner).hypervolume
    assert knowledge.hypervolumes[-1] >= 0.97 * everything


def test_before_there_is_a_model_nothing_slow_is_tried(search):
    fake, study = FakeEvaluator(), search(space=BOTH_HEADS, pruning="none", trials=4)
    taken = [study.sampler.of_trial(trial) for trial in finished_trials(study)]
    assert len({(config.partition, config.head) for config in taken}) > 1
    assert all(config.lossless == "packed" and not config.tcl for config in taken)
    whole = fake.baselines(trained=False)[0].latency_ms
    latencies = [latency_or_never(fake, config) for config in study.sampler._space.grid()]
    assert max(latency_or_never(fake, config) for config in taken) < whole < max(filter(np.isfinite, latencies))


class Dear(FakeEvaluator):
    """Wide bottlenecks take ten times as long to train."""

    def __init__(self, times):
        self.times = times

    def price(self, config):
        return dataclasses.replace(super().price(config), training_macs=self.times if config.ae_ratio > 0.3 else 1.0)


def test_what_takes_long_to_train_has_to_promise_more(search):
    def wide(folder, times):
        study = search(Dear(times), space=BOTH_HEADS, folder=folder, pruning="none", trials=12)
        return sum(study.sampler.of_trial(trial).ae_ratio > 0.3 for trial in finished_trials(study))

    assert wide("dear", 10.0) < wide("equal", 1.0) == wide("unknown", 0.0)


class CheapAndHopeless(FakeEvaluator):
    """All but one cut with its own head are trained in a third of the time, to nothing."""

    def price(self, config):
        return dataclasses.replace(super().price(config), training_macs=1.0 if self.is_hopeless(config) else 3.0)

    def evaluate(self, config, *, budget=None, seed=None, split="validation"):
        found = super().evaluate(config, budget=budget)
        return dataclasses.replace(found, accuracy=0.1) if self.is_hopeless(config) else found

    @staticmethod
    def is_hopeless(config):
        return (config.partition, config.head) != ("middle", "own")


def test_a_hopeless_beginning_does_not_go_on(search):
    study = search(CheapAndHopeless(), space=BOTH_HEADS, pruning="none", trials=16)
    hopeless = [CheapAndHopeless.is_hopeless(study.sampler.of_trial(trial)) for trial in finished_trials(study)]
    assert all(hopeless[:4]) and hopeless.count(False) > 3


def test_before_there_is_a_model_the_cheapest_are_not_tried_first(search):
    def taken(evaluator, folder):
        study = search(evaluator, space=BOTH_HEADS, folder=folder, pruning="none", trials=4)
        return [trial.params for trial in study.get_trials()]

    assert taken(Dear(100.0), "dear") == taken(FakeEvaluator(), "equal")


def test_where_no_configuration_keeps_the_limits_the_trials_say_so(search):
    study = search(constraints={"max_latency_ms": 0.001}, pruning="none", trials=4, once_per_cut=True)
    ended = finished_trials(study)
    assert len(ended) == 4 and all(max(trial.constraints.values()) > 0 for trial in ended)


def latency_or_never(evaluator, config):
    try:
        return evaluator.price(config).latency_ms()
    except InfeasibleSplit:
        return float("inf")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_stopped_trials_and_repeats_none(search, sampler):
    study = search(sampler=sampler, trials=30)
    configs = [study.sampler.of_trial(trial) for trial in finished_trials(study)]
    assert len(configs) == len(set(configs)) == 30
    assert any(STOPPED in trial.user_attrs for trial in finished_trials(study))


def test_the_same_seed_takes_the_same_configurations(search):
    def taken(folder, seed):
        close = {"ae_ratio": [0.25, 0.26, 0.27, 0.28]}
        return [trial.params for trial in search(space=close, folder=folder, seed=seed, trials=12).get_trials()]

    assert taken("one", 3) == taken("two", 3) != taken("three", 4)


def test_a_continuous_strength_is_searched_on_a_grid(search):
    study = search(space={"tcl": {"low": 1.0, "high": 1000.0, "log": True, "off": True}}, pruning="none")
    strengths = {round(study.sampler.of_trial(trial).tcl, 6) for trial in finished_trials(study)[6:]}
    assert strengths <= {0.0, 1.0, 10.0, 100.0, 1000.0} and len(strengths) > 1


def test_what_would_break_a_limit_is_not_proposed(search):
    fake = FakeEvaluator()
    study = search(space=BOTH_HEADS, constraints={"max_device_model_mb": 0.7}, pruning="none", trials=25)
    for trial in finished_trials(study)[6:]:
        assert fake.price(study.sampler.of_trial(trial)).device_model_mb <= 0.7


def test_a_trial_that_will_not_enter_the_front_is_stopped(search):
    evaluator = Counting()
    study = search(evaluator, sampler="random", trials=40)
    stopped = [trial for trial in finished_trials(study) if STOPPED in trial.user_attrs]
    assert stopped and all(trial.constraints["trained"] > 0 for trial in stopped)
    early = [trial for trial in stopped if trial.user_attrs[RUNG_ACCURACIES]]
    for trial in early:
        assert list(trial.intermediate_values.values()) == list(trial.user_attrs[RUNG_ACCURACIES].values())
    # The front is what it would have been.
    kept = {(point.accuracy, point.latency_ms) for point in trial_points(study)}
    steps = Staircase(
        [(p.accuracy, p.latency_ms) for p in trial_points(study) if p.feasible], Corner(accuracy=0.0, latency_ms=1e3)
    )
    for trial in stopped:
        try:
            found = FakeEvaluator().evaluate(study.sampler.of_trial(trial))
        except InfeasibleSplit:
            continue
        assert (found.accuracy, found.latency_ms) not in kept
        assert found.accuracy <= steps.level(found.latency_ms) or found.accuracy_drop_pp > 9.0


class Fickle(Counting):
    """Its closed-form starts say nothing: they are right or hopeless, by the configuration's own hash."""

    def evaluate(self, config, *, budget=None, seed=None, split="validation"):
        found = super().evaluate(config, budget=budget)
        hopeless = budget is not None and budget.until == "start" and zlib.crc32(config.label.encode()) % 2
        return dataclasses.replace(found, accuracy=0.1) if hopeless else found


def test_a_rung_that_says_little_is_not_scored_any_more(search):
    evaluator = Fickle()
    search(evaluator, sampler="random", trials=30)
    asked = [budget.until for _, budget in evaluator.asked if budget is not None]
    assert 6 <= asked.count("start") < asked.count("reconstruction")
    assert "start" not in asked[len(asked) // 2 :]


def test_what_a_rung_promises_is_what_others_gained_from_there(search):
    study = search(Counting(), sampler="random", trials=20)
    knowledge = Knowledge(study.sampler._space, FakeEvaluator().price, Constraints(), study.sampler.of_trial)
    assert knowledge.promise("start", 0.5) is None and knowledge.tells("start")
    knowledge.update(study)
    assert knowledge.promise("start", 0.5) == pytest.approx((0.55, 0.0), abs=1e-6)


class OnFew(Counting):
    """Cheap rungs are scored on 25 images."""

    def evaluate(self, config, *, budget=None, seed=None, split="validation"):
        found = super().evaluate(config, budget=budget)
        cheaper = budget is not None and budget.until != "full"
        return dataclasses.replace(found, details={**found.details, "scored_images": 25}) if cheaper else found


def stopped_at_rungs(study):
    return [trial for trial in finished_trials(study) if STOPPED in trial.user_attrs and trial.user_attrs[RUNG_ERRORS]]


def test_a_score_on_few_images_stops_fewer_trials_and_says_how_sure_it_is(search):
    study = search(OnFew(), sampler="random", trials=40, folder="few")
    few, whole = stopped_at_rungs(study), stopped_at_rungs(search(Counting(), sampler="random", trials=40))
    assert len(few) < len(whole) > 0
    for trial in finished_trials(study):
        for name, accuracy in trial.user_attrs.get(RUNG_ACCURACIES, {}).items():
            error = (accuracy * (1 - accuracy) / 25) ** 0.5
            assert trial.user_attrs[RUNG_ERRORS][name] == pytest.approx(error, abs=1e-5)
    knowledge = Knowledge(study.sampler._space, FakeEvaluator().price, Constraints(), study.sampler.of_trial)
    knowledge.update(study)
    assert knowledge.promise("start", 0.5, 0.1) == pytest.approx((0.55, 0.1), abs=1e-6)
    assert knowledge.promise("start", 0.5) == pytest.approx((0.55, 0.0), abs=1e-6)
    assert knowledge.tells("start")  # which asks how gains scatter, not how sure one score is


def test_the_model_of_accuracy_believes_a_score_on_few_images_less(search):
    study = search(OnFew(), sampler="random", trials=40, constraints={"max_accuracy_drop_pp": 30.0})
    knowledge = Knowledge(study.sampler._space, FakeEvaluator().price, Constraints(), study.sampler.of_trial)
    (ended, score), gains = (0.7, {"start": 0.6, "reconstruction": 0.6}), [0.05] * 6
    knowledge._gains = {"start": list(gains), "reconstruction": list(gains)}
    trial = finished_trials(study)[-1]
    errors = {"start": 0.01, "reconstruction": 0.08}
    trial = create_trial(
        params=trial.params,
        distributions=trial.distributions,
        values=[ended, 10.0],
        user_attrs={STOPPED: "why", RUNG_ACCURACIES: score, RUNG_ERRORS: errors},
    )
    trial.number = 99
    knowledge._take(trial)
    (seen,) = knowledge.seen
    assert (seen.accuracy, seen.error) == pytest.approx((0.65, 0.08))


def test_without_pruning_every_trial_is_trained_to_the_end_at_once(search):
    evaluator = Counting()
    study = search(evaluator, sampler="random", pruning="none")
    assert not any(STOPPED in trial.user_attrs for trial in finished_trials(study))
    assert [budget for _, budget in evaluator.asked] == [None] * 20


def test_another_coder_for_what_is_trained_costs_no_rungs(search):
    evaluator = Counting()
    search(
        evaluator, space={"partition": "deep", "ae_ratio": 1.0, "bits": [4], "tcl": 0, "lzma": [False, True]}, trials=2
    )
    assert [budget is None or budget.until == "full" for _, budget in evaluator.asked] == [False, False, True, True]
    assert evaluator.asked[2][0].training_key == evaluator.asked[3][0].training_key


def test_budgets_climb_and_none_stands_there_twice():
    full = Budget(images=10, reconstruction_steps=5, epochs=2, head_steps=3)
    assert [(name, each.until) for name, each in full.rungs.items()] == [
        ("start", "start"),
        ("reconstruction", "reconstruction"),
        ("full", "full"),
    ]
    assert all(dataclasses.replace(each, until="full") == full for each in full.rungs.values())
    assert list(dataclasses.replace(full, reconstruction_steps=0).rungs) == ["start", "full"]
    assert list(dataclasses.replace(full, epochs=0).rungs) == ["start", "full"]
    assert list(dataclasses.replace(full, reconstruction_steps=0, epochs=0).rungs) == ["full"]
    with pytest.raises(SpecError, match="until: 'begin' given"):
        dataclasses.replace(full, until="begin")


def test_the_search_ends_when_its_front_has_stopped_growing(search):
    study = search(trials=200, patience=8, min_growth=0.01, pruning="none")
    done = finished_trials(study)
    assert 8 < len(done) < 60
    assert len(search(trials=200, patience=8, min_growth=0.01, pruning="none").get_trials()) == len(done)


@pytest.mark.parametrize(
    ("volumes", "ends"),
    [([], False), ([1.0], False), ([1.0, 1.0, 1.0], False), ([1.0, 1.0, 1.0, 1.0], True), ([0.0] * 9, False)],
)
def test_patience(volumes, ends):
    assert stopped_growing(volumes, SearchSettings(patience=3, min_growth=0.01)) == ends
    assert not stopped_growing(volumes, SearchSettings())


def test_what_cannot_become_better_than_something_faster_is_not_trained(search):
    space = {"partition": ["stem", "deep"], "bits": [8], "ae_ratio": [1.0], "tcl": [60], "lzma": [False, True]}
    study = search(space=space, trials=4)
    slow, coded, fast = (
        SplitConfig(partition=partition, ae_ratio=1.0, bits=8, tcl=60.0, lossless=coder)
        for partition, coder in (("stem", "packed"), ("stem", "lzma"), ("deep", "packed"))
    )
    knowledge = study.sampler.knowledge
    knowledge.update(study)
    why = Pruning(knowledge, UNCUT_ACCURACY).by_price(slow)
    assert (
        why == "not trained: it takes 19.59 ms at least, and 90.0% was found in less; 90.0% is the most to be hoped for"
    )
    assert not Pruning(knowledge, UNCUT_ACCURACY).by_price(coded)  # nobody knows what a coder leaves of it
    assert Pruning(knowledge, UNCUT_ACCURACY).by_price(fast)  # found already
    assert not Pruning(knowledge, UNCUT_ACCURACY + 0.01).by_price(slow)


def test_a_trial_that_shares_a_training_says_whose(search):
    space = {"partition": "deep", "ae_ratio": 1.0, "bits": [4], "tcl": 0, "lzma": [False, True]}
    first, second = finished_trials(search(space=space, trials=2))
    assert "same_training_as_trial" not in first.user_attrs
    assert second.user_attrs["same_training_as_trial"] == first.number


def right_point(trial, latency_ms, right):
    right = np.array(right, bool)
    evaluation = dataclasses.replace(
        FakeEvaluator().baselines(trained=False)[0],
        accuracy=float(right.mean()),
        latency=LatencyParts(head_ms=latency_ms),
        details={"scored_images": len(right), RIGHT: right_text(right)},
    )
    assert (evaluation.right == right).all()
    return Point(trial=trial, evaluation=evaluation)


def test_points_are_told_apart_by_the_images_that_they_differ_on():
    nine, ten, many = [1] * 60 + [0] * 41, [1] * 61 + [0] * 40, [1] * 90 + [0] * 11
    front = [right_point(0, 1.0, nine), right_point(1, 2.0, ten), right_point(2, 3.0, many)]
    assert not_told_apart(front) == {1}
    unknown = dataclasses.replace(front[1].evaluation, details={})
    assert not not_told_apart([front[0], dataclasses.replace(front[1], evaluation=unknown)])


def test_another_study_of_the_model_spares_the_first_round(write_study, study_dict, tmp_path, capsys, fake):
    study_dict["search"] = {"trials": 30, "seed": 0, "pruning": "none"}
    assert run_command(["run", write_study(study_dict, "demo.yaml")], debug=False) == 0
    study_dict |= {"name": "second", "link": {"rate_mb_per_s": 0.2}}
    study_dict["search"] = {"trials": 8, "seed": 1, "pruning": "none", "warm_start": "demo.yaml"}
    assert run_command(["run", write_study(study_dict, "second.yaml")], debug=False) == 0
    spec = load_spec("second.yaml")
    study = open_study(spec, tmp_path / "runs" / "second")
    warm = hypervolumes(study, spec.constraints)
    study_dict["name"] = "cold"
    del study_dict["search"]["warm_start"]
    assert run_command(["run", write_study(study_dict, "cold.yaml")], debug=False) == 0
    cold = hypervolumes(open_study(load_spec("cold.yaml"), tmp_path / "runs" / "cold"), spec.constraints)
    assert warm[2] > cold[2] and warm[-1] >= cold[-1]


def test_a_warm_start_is_looked_up_as_every_path_is(write_study, study_dict, tmp_path, capsys, fake, monkeypatch):
    study_dict["search"] = {"trials": 3, "seed": 0}
    assert run_command(["run", write_study(study_dict)], debug=False) == 0
    study_dict |= {"name": "second", "search": {"trials": 3, "seed": 0, "warm_start": "demo.yaml"}}
    second = write_study(study_dict, "second.yaml")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").rename(tmp_path / "elsewhere" / "runs")  # results are below the current folder
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_command(["run", second], debug=False) == 0
    study_dict |= {"name": "third", "search": {"trials": 3, "seed": 0, "warm_start": "absent.yaml"}}
    assert run_command(["run", write_study(study_dict, "third.yaml")], debug=False) == 2
    assert "search.warm_start: 'absent.yaml' given; no such file" in capsys.readouterr().err


def test_a_study_of_another_model_is_no_warm_start(write_study, study_dict, capsys, fake, monkeypatch):
    study_dict["search"] = {"trials": 3, "seed": 0}
    assert run_command(["run", write_study(study_dict, "demo.yaml")], debug=False) == 0
    study_dict |= {"name": "second"}
    study_dict["search"] |= {"warm_start": "demo.yaml"}
    path = write_study(study_dict, "second.yaml")
    monkeypatch.setattr(fake, "identity", lambda: {"fake": "1", "weights": "others"})
    assert run_command(["run", path], debug=False) == 2
    assert "search.warm_start: 'demo.yaml' given; its weights are not those of this study" in capsys.readouterr().err
    study_dict["search"] |= {"sampler": "tpe"}
    assert run_command(["run", write_study(study_dict, "second.yaml")], debug=False) == 2
    assert "only the sampler front can use another study" in capsys.readouterr().err


def test_a_study_is_no_warm_start_of_itself(write_study, study_dict, capsys, fake):
    study_dict["search"] = {"trials": 3, "seed": 0, "warm_start": "demo.yaml"}
    assert run_command(["run", write_study(study_dict)]) == 2
    assert "search.warm_start: 'demo.yaml' given; another study is needed" in capsys.readouterr().err
