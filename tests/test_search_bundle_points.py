"""Which points a bundle is made of: those that are fastest at some rate, found quickly and listed by one measure."""

import random
from dataclasses import replace

import pytest

from evaluators.edge import points as edge_points
from evaluators.edge.client import LinkNumbers
from evaluators.fake import FakeEvaluator
from evaluators.result import LatencyParts
from search import bundle_points
from search.front import Point
from spaces.config import SplitConfig


def scored(trial, drop_pp, head_ms, payload):
    """A trial over 1 MB/s with a round trip of 2 ms."""
    found = FakeEvaluator().evaluate(SplitConfig(partition="stem", ae_ratio=0.25, bits=1))
    busy = payload / 1000
    latency = LatencyParts(head_ms=head_ms, link_ms=2.0 + busy)
    evaluation = replace(
        found, latency=latency, link_busy_ms=busy, payload_bytes=payload, accuracy_drop_pp=drop_pp, timings={}
    )
    return Point(trial=trial, evaluation=evaluation)


def random_trials(count, seed=0):
    numbers = random.Random(seed)
    return [
        scored(number, numbers.uniform(0, 2), numbers.uniform(1, 50), numbers.uniform(10, 5000))
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_further_points_are_the_fastest_at_some_rate_those_for_slow_links_first(seed):
    trials = random_trials(40, seed)
    within = [point for point in trials if point.evaluation.accuracy_drop_pp <= 1.0]
    best = {}
    for step in range(600):
        link = LinkNumbers(rate_mb_per_s=10 ** (-5 + step / 60), rtt_ms=2.0)
        fastest = min(within, key=lambda point: bundle_points._in_bundle(point, "1").latency_ms(link))
        best[fastest.trial] = fastest
    found = bundle_points.further_points(trials[0], trials, 99, 1.0)
    assert [point.trial for point in found] == [trial for trial in best if trial != 0]
    assert bundle_points.further_points(trials[0], trials, 1, 1.0) == found[:1]


def test_a_large_study_is_looked_through_a_few_times_not_for_every_pair(monkeypatch):
    trials, looks = random_trials(150), []
    total, at_link = LatencyParts.total_ms.fget, edge_points.PointInBundle.latency_ms
    monkeypatch.setattr(LatencyParts, "total_ms", property(lambda parts: looks.append(1) or total(parts)))
    monkeypatch.setattr(
        edge_points.PointInBundle, "latency_ms", lambda point, link: looks.append(1) or at_link(point, link)
    )
    assert bundle_points.further_points(trials[0], trials, 3, 2.0)
    assert len(looks) < 60 * len(trials)
