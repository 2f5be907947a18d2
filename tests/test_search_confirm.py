"""Confirmation: front points trained anew, tested once, reported beside what the search promised, exported first."""

import dataclasses
import json

import numpy as np
import pytest

from evaluators.edge import points
from evaluators.fake import FakeEvaluator
from search import wiring
from search.cli import run_command
from search.confirm import Confirmed, as_searched, confirmed_points, mean_interval, promised, to_confirm
from search.front import Point, pareto_front
from search.plots import growth_figure
from search.points import hypervolumes, trial_points
from search.spec import load_spec
from search.storage import open_study
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit


class Trained(FakeEvaluator):
    """More budget helps by 2 points, test images cost 3, a seed adds as many tenths; remembers what was asked."""

    def __init__(self):
        self.asked, self.exported, self.tested = [], [], []
        self.fails = self.falls = False
        self.worst_seed = None

    def evaluate(self, config, *, budget=None, seed=None, split="validation"):
        found = super().evaluate(config)
        if seed is None:
            return found
        self.asked.append((config, budget, seed, split))
        if self.fails:
            raise InfeasibleSplit("out of memory")
        gained = 0.02 + 0.001 * seed - (0.03 if split == "test" else 0.0)
        details = {**found.details, "scored_images": 400}
        drop = 50.0 if self.falls else found.accuracy_drop_pp - 100 * gained
        drop += 20.0 if seed == self.worst_seed else 0.0
        return dataclasses.replace(found, accuracy=found.accuracy + gained, accuracy_drop_pp=drop, details=details)

    def baselines(self, *, trained, split="validation", only=None):
        found = super().baselines(trained=trained, split=split, only=only)
        if split == "validation":
            return found
        self.tested.append(set(only))
        details = {"scored_images": 400}
        return [dataclasses.replace(each, accuracy=each.accuracy - 0.04, details=details) for each in found]

    def export(self, config, directory, *, budget=None, seed=None):
        self.exported.append((config, budget, seed))
        return super().export(config, directory)


@pytest.fixture
def trained(monkeypatch):
    evaluator = Trained()
    monkeypatch.setattr(wiring, "build_evaluator", lambda spec, folder: evaluator)
    return evaluator


@pytest.fixture
def study(trained, write_study, study_dict, capsys):
    """The file of a study that has run."""
    study_dict["confirm"] = {"images": 123}
    path = write_study(study_dict)
    assert run_command(["run", path], debug=False) == 0
    capsys.readouterr()
    return path


def test_the_front_is_trained_anew_and_tested(study, trained, capsys):
    assert run_command(["confirm", study, "--json"], debug=False) == 0
    found = json.loads(capsys.readouterr().out)["confirmed"]
    opened = open_study(load_spec(study), load_spec(study).file.parent / "runs" / "demo")
    front = {point.trial: point for point in pareto_front(trial_points(opened))}
    assert {each["trial"] for each in found} >= set(front)
    for each in found:
        assert each["seeds"] == [0, 1, 2]
        assert each["budget"]["images"] == 123 and each["test_images"] == 400
        assert each["validation"] == pytest.approx([each["searched"] + 0.02 + 0.001 * seed for seed in range(3)])
        assert np.mean(each["test"]) == pytest.approx(each["searched"] - 0.009)
        low, high = each["test_interval"]
        assert low < np.mean(each["test"]) < high
    assert {split for *_, split in trained.asked} == {"validation", "test"}
    assert {each.trial for each in confirmed_points(opened)} == {each["trial"] for each in found}


def test_what_was_confirmed_is_not_trained_again_and_more_seeds_are_added(study, trained, capsys):
    assert run_command(["confirm", study, "--seeds", "2"], debug=False) == 0
    asked = len(trained.asked)
    assert run_command(["confirm", study, "--seeds", "2"], debug=False) == 0
    assert len(trained.asked) == asked
    assert run_command(["confirm", study], debug=False) == 0
    assert len(trained.asked) == asked * 3 // 2 and {seed for _, _, seed, _ in trained.asked[asked:]} == {2}
    shown = capsys.readouterr().out
    assert "searched" in shown and "test (95 %)" in shown and "above those on test images" in shown


def test_the_baselines_that_matter_are_tested_beside_them_once(study, trained, capsys):
    assert run_command(["confirm", study, "--seeds", "1", "--json"], debug=False) == 0
    found = json.loads(capsys.readouterr().out)["baselines"]
    names = [each["name"] for each in found]
    assert "server-only, JPEG 50, fine-tuned" in names and "all-on-device" in names
    assert not any("JPEG 90" in name for name in names)  # JPEG 50 beats it
    assert [each["latency_ms"] for each in found] == sorted(each["latency_ms"] for each in found)
    for each in found:
        assert each["test"] == pytest.approx(each["searched"] - 0.04) and each["test_images"] == 400
        assert each["test_interval"] == list(mean_interval([each["test"]], 400))
    assert run_command(["confirm", study, "--seeds", "1"], debug=False) == 0
    assert trained.tested == [set(names)]
    shown = next(line for line in capsys.readouterr().out.splitlines() if "server-only, JPEG 50, fine-tuned" in line)
    assert "86.0%" in shown and "82.0% (" in shown
    report = (load_spec(study).file.parent / "runs" / "demo" / "report.html").read_text()
    assert "<td>server-only, JPEG 50, fine-tuned</td><td>86.0%</td><td></td><td>82.0% (" in report


def test_named_trials_alone_are_confirmed(study, trained, capsys):
    assert run_command(["confirm", study, "--trial", "3", "--trial", "1", "--trial", "3", "--json"], debug=False) == 0
    found = json.loads(capsys.readouterr().out)["confirmed"]
    assert [each["trial"] for each in found] == [3, 1] and len(trained.asked) == 2 * 3 * 2
    assert run_command(["confirm", study, "--trial", "99"], debug=False) == 1
    assert "trial 99 has no result; the last trials with one:" in capsys.readouterr().err


def test_a_study_that_can_only_be_read_is_refused_before_anything_is_trained(study, trained, capsys):
    read_only = ["--storage", "sqlite:///file:runs/demo/study.db?mode=ro&uri=true"]
    assert run_command(["confirm", study, *read_only], debug=False) == 1
    assert "cannot be used: attempt to write a readonly database" in capsys.readouterr().err and not trained.asked
    assert run_command(["confirm", study, "--seeds", "1"], debug=False) == 0
    assert run_command(["confirm", study, "--seeds", "1", *read_only], debug=False) == 0  # shows what is known


def test_export_prefers_what_is_confirmed(study, trained, tmp_path, capsys):
    assert run_command(["export", study, "-o", str(tmp_path / "before")], debug=False) == 0
    assert "is not confirmed" in capsys.readouterr().err
    assert json.loads((tmp_path / "before" / "bundle.json").read_text())["confirmed"] is None
    assert run_command(["confirm", study], debug=False) == 0
    capsys.readouterr()
    assert run_command(["export", study, "-o", str(tmp_path / "after")], debug=False) == 0
    assert "is not confirmed" not in capsys.readouterr().err
    bundle = json.loads((tmp_path / "after" / "bundle.json").read_text())
    _, budget, seed = trained.exported[-1]
    assert (budget.images, seed) == (123, 0) and bundle["seed"] == 0
    assert bundle["evidence"]["accuracy"] == bundle["confirmed"]["validation"][0]
    assert bundle["evidence"]["details"]["scored_images"] == 400
    assert "on 400 test images, mean of 3 seeds" in (tmp_path / "after" / "README.md").read_text()


def test_export_says_what_of_the_front_was_found_since_the_confirmation(study, tmp_path, capsys):
    assert run_command(["confirm", study, "--seeds", "1"], debug=False) == 0
    capsys.readouterr()
    assert run_command(["export", study, "-o", str(tmp_path / "all")], debug=False) == 0
    assert "chosen among" not in capsys.readouterr().err
    assert run_command(["run", study, "--trials", "100"], debug=False) == 0
    spec = load_spec(study)
    opened = open_study(spec, tmp_path / "runs" / spec.name)
    confirmed = {each.trial for each in confirmed_points(opened)}
    new = [str(point.trial) for point in pareto_front(trial_points(opened)) if point.trial not in confirmed]
    capsys.readouterr()
    assert run_command(["export", study, "-o", str(tmp_path / "some")], debug=False) == 0
    assert new and f"of the front, trial {', '.join(new)} is not confirmed: 'splitsearch" in capsys.readouterr().err


def test_what_breaks_a_limit_when_it_is_confirmed_is_not_exported(study, trained, tmp_path, capsys):
    trained.falls = True
    assert run_command(["confirm", study, "--seeds", "1"], debug=False) == 0
    assert run_command(["export", study, "-o", str(tmp_path / "bundle")], debug=False) == 1
    assert "confirmed points keeps the study's limits" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_all_points_of_a_bundle_are_listed_by_what_they_were_chosen_by(study, trained, tmp_path, capsys):
    trained.worst_seed = 0  # the one that is exported
    assert run_command(["confirm", study], debug=False) == 0
    bundle = tmp_path / "bundle"
    command = ["export", study, "--pick", "most-accurate", "--max-drop-pp", "8", "--points", "3", "-o", str(bundle)]
    assert run_command(command, debug=False) == 0
    said = json.loads((bundle / "bundle.json").read_text())
    assert said["evidence"]["accuracy_drop_pp"] > 8  # of the very halves
    first = said["points"][0]
    assert first["drop_pp"] == pytest.approx(sum(said["confirmed"]["validation_drop_pp"]) / 3)
    assert len(said["points"]) > 1 and first["trial"] == said["trial"]
    assert [point.trial for point in points.read(bundle / "device")] == [each["trial"] for each in said["points"]]


def test_a_confirmed_payload_of_another_size_takes_the_link_as_much_longer():
    config = SplitConfig(partition="stem", ae_ratio=0.25, bits=1, lossless="lzma")
    found = FakeEvaluator().evaluate(config)
    parts = dataclasses.replace(found.latency, link_ms=found.latency.link_ms + 5.0)  # of which 5 are the round trip
    found = dataclasses.replace(found, latency=parts, link_p90_ms=parts.link_ms + 1.0)
    confirmed = Confirmed(
        trial=3,
        config=config,
        budget=Budget(images=1, reconstruction_steps=0, epochs=1),
        seeds=(0,),
        validation=(0.8,),
        validation_drop_pp=(10.0,),
        payload_bytes=2 * found.payload_bytes,
    )
    (again,) = as_searched([confirmed], [Point(trial=3, evaluation=found)])
    more_ms = found.link_busy_ms
    assert again.evaluation.latency.link_ms == pytest.approx(found.latency.link_ms + more_ms)
    assert again.latency_ms == pytest.approx(found.latency_ms + more_ms)
    assert again.evaluation.link_busy_ms == pytest.approx(2 * found.link_busy_ms)
    assert again.evaluation.latency_p90_ms == pytest.approx(found.latency_p90_ms + more_ms)


def test_the_report_has_the_curve(study, tmp_path):
    opened = open_study(load_spec(study), tmp_path / "runs" / "demo")
    volumes = hypervolumes(opened, load_spec(study).constraints)
    assert len(volumes) == 20 and volumes == sorted(volumes) and volumes[-1] > 0
    (line,) = growth_figure(volumes).data
    assert list(line.x) == list(range(1, 21)) and line.y[-1] == 1.0
    assert "markers" in line.mode  # one trial alone would be a line of no length
    assert "id='growth'" in (tmp_path / "runs" / "demo" / "report.html").read_text()


def test_the_report_shows_both(study, tmp_path):
    assert "<h2>Confirmed</h2>" not in (tmp_path / "runs" / "demo" / "report.html").read_text()
    assert run_command(["confirm", study], debug=False) == 0
    assert "<h2>Confirmed</h2>" in (tmp_path / "runs" / "demo" / "report.html").read_text()


def test_what_cannot_be_trained_says_why_and_the_others_go_on(study, trained, capsys):
    trained.fails = True
    assert run_command(["confirm", study, "--seeds", "1"], debug=False) == 0
    assert "out of memory" in capsys.readouterr().out
    trained.fails = False
    assert run_command(["confirm", study, "--seeds", "1"], debug=False) == 0
    assert "out of memory" not in capsys.readouterr().out


def test_an_empty_front_says_what_to_do(trained, write_study, study_dict, capsys):
    study_dict["constraints"] = {"max_latency_ms": 0.001}
    path = write_study(study_dict)
    assert run_command(["run", path], debug=False) == 0
    assert run_command(["confirm", path], debug=False) == 1
    assert "the front is empty" in capsys.readouterr().err


def test_near_misses_are_within_the_error(study):
    opened = open_study(load_spec(study), load_spec(study).file.parent / "runs" / "demo")
    points = trial_points(opened)
    front = pareto_front(points)
    assert to_confirm(points) == front  # nothing is known of errors

    def with_error(point):
        details = {**point.evaluation.details, "scored_images": 30}
        return dataclasses.replace(point, evaluation=dataclasses.replace(point.evaluation, details=details))

    chosen = to_confirm([with_error(point) for point in points])
    assert len(front) < len(chosen) <= len(front) + 3
    assert [point.latency_ms for point in chosen] == sorted(point.latency_ms for point in chosen)


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.05])
def test_the_interval_covers_what_it_says(spread):
    """Seeds and images drawn anew, 2,000 times: the true mean lies within 93 to 97.5 % of the intervals."""
    random, covered, images, mean = np.random.default_rng(0), 0, 500, 0.7
    for _ in range(2000):
        of_images = random.normal(0, np.sqrt(mean * (1 - mean) / images))
        low, high = mean_interval(list(mean + of_images + random.normal(0, spread, 3)), images)
        covered += low <= mean <= high
    assert 0.93 <= covered / 2000 <= 0.975


def test_one_seed_has_the_interval_of_its_images():
    low, high = mean_interval([0.5], 100)
    assert (low, high) == pytest.approx((0.402, 0.598), abs=1e-3)


@pytest.mark.parametrize("seeds", [1, 3])
def test_all_images_right_is_no_certainty(seeds):
    """Wilson's interval of a share of 1, or 0, in 30 images: 30 / (30 + 1.96 ** 2)."""
    assert mean_interval([1.0] * seeds, 30) == pytest.approx((0.8865, 1.0), abs=1e-4)
    assert mean_interval([0.0] * seeds, 30) == pytest.approx((0.0, 0.1135), abs=1e-4)
    assert mean_interval([1.0] * seeds, 0) == (1.0, 1.0)  # of how many images is not known


def test_round_trip():
    config = SplitConfig(partition="stem", ae_ratio=0.5, bits=1, head="distilled")
    one = Confirmed(trial=3, config=config, budget=Budget(images=1, reconstruction_steps=0, epochs=1), reason="no")
    assert Confirmed.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert not promised([one])
