"""What to deploy, and at which link rates that changes: exact crossovers against a numeric scan."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from evaluators.result import Evaluation, LatencyParts, Source, Sources
from search.front import Point, judged
from search.spec import Constraints
from search.verdict import fastest_by_rate, fixed_ms, next_steps, recommended, verdicts
from spaces.config import SplitConfig

HOW = Sources(device=Source.MEASURED, server=Source.MEASURED, link=Source.MODELLED)
RTT_MS = 2.0


def latency_at(point, rate):
    """On a link of another rate, in MB/s; the round trip stays."""
    return fixed_ms(point) + point.evaluation.payload_bytes / (1000 * rate)


def way(name, accuracy, head_ms, payload, rate=1.0, mb=0.0, feasible=True):
    """A trial where the name is a number, else a baseline."""
    trial = name if isinstance(name, int) else None
    busy = payload / (1000 * rate)
    link_ms = RTT_MS + busy if payload else 0.0
    evaluation = Evaluation(
        name="a split" if trial is not None else name,
        config=SplitConfig(partition="stem", ae_ratio=0.5, bits=1) if trial is not None else None,
        accuracy=accuracy,
        payload_bytes=payload,
        latency=LatencyParts(head_ms=head_ms, link_ms=link_ms),
        sources=HOW,
        link_busy_ms=busy,
        accuracy_drop_pp=100 * (0.9 - accuracy),
        details={"device_model_mb": mb},
    )
    return Point(trial=trial, evaluation=evaluation, feasible=feasible)


def test_the_fastest_at_every_rate_is_that_of_a_numeric_scan():
    rng = random.Random(0)
    rates = np.geomspace(1e-3, 1e3, 301)
    for _ in range(20):
        points = [way(i, 0.9, rng.uniform(0, 20), rng.choice([0, 10, 100, 500, 2000, 9000])) for i in range(12)]
        spans = fastest_by_rate(points)
        assert spans[0].low == 0 and spans[-1].high == np.inf
        assert all(one.high == other.low for one, other in itertools.pairwise(spans))
        for rate in rates:
            (chosen,) = (span.point for span in spans if span.low < rate <= span.high)
            best = min(latency_at(point, rate) for point in points)
            assert latency_at(chosen, rate) == pytest.approx(best)


def test_a_latency_at_the_studys_own_rate_is_the_studys():
    for rate in (0.1, 2.0):
        found = way(0, 0.9, 3.0, 700, rate)
        assert latency_at(found, rate) == pytest.approx(found.latency_ms)
        assert latency_at(found, 2 * rate) == pytest.approx(way(0, 0.9, 3.0, 700, 2 * rate).latency_ms)


def test_recommended_is_the_fastest_within_a_point_of_the_best():
    points = [way(0, 0.5, 1, 10), way(1, 0.895, 5, 10), way(2, 0.889, 4, 10), way(3, 0.9, 9, 10)]
    assert recommended(points).trial == 1
    assert recommended([*points, way("raw", 0.9, 2, 10)]).name == "raw"
    assert [recommended(points, given_away).trial for given_away in (0.0, 0.005, 0.02, 0.5)] == [3, 1, 2, 0]
    images = 2500
    assert 1254 / images - 0.01 > 1229 / images  # so near that their last digits decide
    assert recommended([way(0, 1254 / images, 9, 10), way(1, 1229 / images, 5, 10)]).trial == 1
    with pytest.raises(ValueError, match="empty"):
        recommended([])


def test_the_verdict_names_what_to_deploy_and_where_that_changes():
    trials = [way(7, 0.90, 8.0, 100), way(8, 0.60, 3.0, 50)]
    rivals = [
        way("all-on-device", 0.90, 40.0, 0),
        way("server-only, raw", 0.90, 0.0, 12_000),
        way("server-only, WebP 50", 0.898, 1.0, 1_000),
        way("server-only, WebP 10", 0.50, 1.0, 300),
    ]
    first, other_kind, speed, rates, last = verdicts(trials, rivals)
    assert first.startswith("At this link deploy server-only, WebP 50: 89.8%, 4.00 ms, 1,000 bytes; the fastest within")
    assert "trial 7 (a split) (90.0%, 10.10 ms, 100 bytes)" in first
    assert other_kind == "The fastest split within that point is trial 7 (a split): 90.0%, 10.10 ms, 100 bytes."
    assert speed == "For speed alone, server-only, WebP 10 keeps the limits too: 50.0%, 3.30 ms, 300 bytes."
    # 8 + 2 + 0.1 / r = 1 + 2 + 1 / r at r = 0.9 / 7, 8 + 2 + 0.1 / r = 40 at 0.1 / 30, and 2 + 12 / r = 3 + 1 / r at 11
    assert rates == (
        "At other rates than 1 MB/s others within that point are faster: below about 0.13 MB/s trial 7 (a split), "
        "90.0%; below about 3.3 kB/s all-on-device, 90.0%; above about 11 MB/s server-only, raw, 90.0%."
    )
    assert last == "A baseline beats 1 of the 2 points of the front, but not trial 7."


def test_a_split_that_wins_at_any_rate_is_recommended_over_every_baseline():
    trials, rivals = [way(7, 0.9, 1.0, 100)], [way("server-only, raw", 0.9, 2.0, 12_000)]
    first, other_kind, rates, last = verdicts(trials, rivals)
    assert (
        "deploy trial 7 (a split): 90.0%, 3.10 ms, 100 bytes; nothing that keeps the limits is more accurate" in first
    )
    assert other_kind.startswith("The fastest baseline within that point is server-only, raw")
    assert rates == "Within that point, trial 7 (a split) is the fastest at any link rate, not only at 1 MB/s."
    assert last == "No baseline beats a point of the front."
    far = [way("server-only, raw", 0.8, 2.0, 12_000)]
    assert "No baseline comes within a point of the most accurate." in verdicts(trials, far)


def test_ten_thousand_trials_are_not_compared_in_pairs(monkeypatch):
    trials, compared = [way(number, 0.9, 5.0 + number, 700) for number in range(300)], []
    equal = Point.__eq__
    monkeypatch.setattr(Point, "__eq__", lambda one, other: compared.append(1) or equal(one, other))
    said = verdicts(trials, [way("server-only, WebP 50", 0.9, 1.0, 600)])
    assert any(line.startswith("The fastest split within that point is trial 0 ") for line in said)
    assert len(compared) < 2 * len(trials)


def test_what_breaks_a_limit_is_not_recommended_and_it_is_said():
    trials = [way(7, 0.9, 8.0, 100, mb=0.6)]
    rivals = [way("all-on-device", 0.9, 4.0, 0, mb=44.7), way("server-only, raw", 0.9, 2.0, 12_000)]
    assert verdicts(trials, rivals)[0].startswith("At this link deploy all-on-device")
    found = verdicts(trials, judged(rivals, Constraints(max_device_model_mb=5)))
    assert found[0].startswith("At this link deploy trial 7")
    assert "all-on-device is no choice: max_device_model_mb: 44.7 > 5." in found
    assert not any("kB/s all-on-device" in line for line in found)


def test_other_rates_leave_out_a_limit_on_latency_and_say_so():
    """On a faster link trial 2 keeps 10 ms too, and is more accurate."""
    found = [way(1, 0.8, 4.0, 1000), way(2, 0.9, 5.0, 9000)]
    trials = [replace(point, feasible=point.latency_ms <= 10.0) for point in found]
    unlimited = verdicts(trials, [])
    assert [point.feasible for point in trials] == [True, False] and "at any link rate" in " ".join(unlimited)
    (more,) = set(verdicts(trials, [], 10.0)) - set(unlimited)
    assert more.startswith("That leaves out which points keep 10 ms at another rate: the report's sliders")


def test_some_points_are_beaten_and_the_others_are_numbered():
    trials = [way(1, 0.5, 1.0, 100), way(2, 0.7, 4.0, 100), way(3, 0.9, 9.0, 100)]
    found = verdicts(trials, [way("server-only, JPEG 50", 0.75, 3.0, 100)])
    assert found[-1] == "A baseline beats 1 of the 3 points of the front, but not trials 1 and 3."


def test_without_anything_to_recommend():
    assert verdicts([], []) == ["No trial has a result, so there is no front."]
    lines = verdicts([way(1, 0.5, 1.0, 100, feasible=False)], [way("all-on-device", 0.9, 4.0, 0)])
    assert lines[0] == "No trial kept the constraints, so there is no front."
    assert lines[1].startswith("At this link deploy all-on-device: 90.0%, 4.00 ms; nothing")
    assert len(lines) == 2  # nothing is sent, so there is no rate to speak of


def test_without_a_front_the_next_step_is_another_limit():
    broken = way(0, 0.9, 10.0, 100, feasible=False)
    assert next_steps("mine", [broken] * 3, 3) == [
        "next: loosen the study's constraints, under another name; or 'splitsearch run mine --trials 6' looks at more "
        "of the space"
    ]


def test_what_is_next_counts_the_trials_that_could_not_run():
    """``--trials`` counts them too: of 60 with 20 scored, ``--trials 40`` would end at once."""
    broken = way(0, 0.9, 10.0, 100, feasible=False)
    assert "'splitsearch run mine --trials 120' looks at more" in next_steps("mine", [broken] * 20, 60)[0]
    (told,) = next_steps("mine", [], 4)
    assert told.startswith(
        "next: give the study another space, under another name; or 'splitsearch run mine --trials 8'"
    )
    assert next_steps("mine", [], 0) == ["next: 'splitsearch run mine' goes on to the first trial"]


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.0025, "2.5 kB/s"), (0.0997, "99.7 kB/s"), (1.25, "1.25 MB/s"), (12.5, "12.5 MB/s"), (99.97, "99.97 MB/s")],
)
def test_the_studys_own_rate_is_said_as_it_is(rate, words):
    (line,) = (line for line in verdicts([way(7, 0.9, 1.0, 100, rate=rate)], []) if "at any link rate" in line)
    assert line == f"Within that point, trial 7 (a split) is the fastest at any link rate, not only at {words}."


@pytest.mark.parametrize(("extra_ms", "words"), [(1.0, "about 99 kB/s"), (0.994, "about 100 kB/s")])
def test_a_rate_of_almost_a_hundred_is_no_power_of_ten(extra_ms, words):
    trials = [way(1, 0.9, 10.0, 199, rate=5.0), way(2, 0.9, 10.0 + extra_ms, 100, rate=5.0)]
    assert f"below {words} trial 2" in " ".join(verdicts(trials, []))
