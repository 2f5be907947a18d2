"""The front against brute force and against Optuna; knee, picks and verdicts."""

import csv
import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from evaluators.fake import FakeEvaluator
from evaluators.latency.compose import sources_of
from evaluators.result import Evaluation, LatencyParts, Source, Sources, Timing
from search.cli import run_command
from search.front import (
    Point,
    baseline_front,
    find_trial,
    judged,
    knee,
    pareto_front,
    pick_point,
    warnings_for,
)
from search.plots import hover, pareto_data, pareto_figure, parts_figure
from search.spec import Constraints, load_spec
from search.storage import open_study
from search.tables import front_table, to_csv
from spaces.config import SplitConfig
from spaces.errors import SpecError, SplitsearchError

MEASURED = Sources(device=Source.MEASURED, server=Source.MEASURED, link=Source.MODELLED)


def point(number, accuracy, ms, feasible=True, drop=0.0):
    config = SplitConfig(partition="stem", ae_ratio=0.5, bits=1) if number is not None else None
    evaluation = Evaluation(
        name=f"p{number}",
        config=config,
        accuracy=accuracy,
        payload_bytes=10.0,
        latency=LatencyParts(head_ms=ms / 2, link_ms=ms / 2),
        sources=MEASURED,
        accuracy_drop_pp=drop,
    )
    return Point(trial=number, evaluation=evaluation, feasible=feasible)


def test_front_equals_brute_force():
    rng = random.Random(0)
    for _ in range(50):
        points = [point(i, rng.randint(0, 8) / 8, rng.randint(1, 8), rng.random() < 0.8) for i in range(25)]
        feasible = [p for p in points if p.feasible]
        best = {(p.accuracy, p.latency_ms) for p in feasible if not any(other.beats(p) for other in feasible)}
        front = pareto_front(points)
        assert [(p.accuracy, p.latency_ms) for p in front] == sorted(best, key=lambda pair: pair[1])


def test_knee_is_the_bulge():
    front = [point(0, 0.5, 1), point(1, 0.88, 2), point(2, 0.9, 10)]
    assert knee(front).trial == 1
    assert knee(front[:2]).trial == 1 and knee(front[:1]).trial == 0
    assert knee([point(0, 0.5, 1), point(1, 0.6, 9), point(2, 0.9, 10)]).trial == 2
    with pytest.raises(ValueError, match="empty"):
        knee([])


def test_picks_within_limits():
    front = [point(0, 0.5, 1, drop=40), point(1, 0.88, 2, drop=2), point(2, 0.9, 10, drop=0)]
    assert pick_point(front, "fastest").trial == 0
    assert pick_point(front, "most-accurate").trial == 2
    assert pick_point(front, "fastest", max_drop_pp=5).trial == 1
    assert pick_point(front, "most-accurate", max_latency_ms=5).trial == 1
    with pytest.raises(SplitsearchError, match=r"smallest drop is 0\.00 pp, its lowest latency 1\.00 ms"):
        pick_point(front, "knee", max_drop_pp=-1)
    with pytest.raises(SplitsearchError, match="front is empty"):
        pick_point([], "knee")
    with pytest.raises(SplitsearchError, match="trial 9 has no result"):
        find_trial(front, 9)


def rival(name, accuracy, ms, feasible=True):
    found = point(None, accuracy, ms, feasible)
    return replace(found, evaluation=replace(found.evaluation, name=name))


def test_the_baselines_that_matter_equal_brute_force_and_two_are_always_shown():
    rng = random.Random(1)
    for _ in range(50):
        rivals = [
            rival(f"server-only, JPEG {i}", rng.randint(0, 8) / 8, rng.randint(1, 8), rng.random() < 0.8)
            for i in range(20)
        ]
        always = [rival("all-on-device", 0.5, rng.randint(1, 9), rng.random() < 0.5), rival("server-only, raw", 0, 9)]
        able = [each for each in [*rivals, *always] if each.feasible]
        best = {(p.accuracy, p.latency_ms) for p in able if not any(other.beats(p) for other in able)}
        shown = baseline_front([*rivals, *always])
        assert {"all-on-device", "server-only, raw"} <= {each.name for each in shown}
        rest = {(p.accuracy, p.latency_ms) for p in shown if p.name.startswith("server-only, JPEG")}
        ends = {(p.accuracy, p.latency_ms) for p in always}
        assert rest <= best and best <= rest | ends
        assert [p.latency_ms for p in shown] == sorted(p.latency_ms for p in shown)


def test_a_baseline_that_beats_a_point_is_named_before_anybody_deploys_it():
    found = point(3, 0.8, 5)
    fast, good, slow = rival("WebP 10", 0.8, 2), rival("WebP 50", 0.85, 4), rival("raw", 0.9, 9)
    (line,) = warnings_for(found, [fast, good, slow])
    assert "A baseline beats trial 3 (p3) (80.0%, 5.00 ms, 10 bytes): WebP 50 (85.0%, 4.00 ms, 10 bytes)" in line
    assert line.endswith("(and 1 more).")
    assert warnings_for(found, [slow, rival("too large", 0.9, 1, feasible=False)]) == []
    assert warnings_for(found, []) == []


def test_limits_rule_baselines_out_and_say_which():
    alone = rival("all-on-device", 0.9, 1)
    alone = replace(alone, evaluation=replace(alone.evaluation, details={"device_model_mb": 44.7}))
    limits = Constraints(max_device_model_mb=5.0, max_latency_ms=2.0)
    (found,) = judged([alone], limits)
    assert not found.feasible and found.broken == ("max_device_model_mb: 44.7 > 5",)
    assert judged([alone], Constraints(max_device_model_mb=50.0))[0].feasible
    raw = replace(alone, evaluation=replace(alone.evaluation, payload_bytes=12288.0))
    assert judged([raw], Constraints(max_payload_bytes=1500))[0].broken == ("max_payload_bytes: 12288 > 1500",)
    slow = rival("raw", 0.9, 10.004)
    assert judged([slow], Constraints(max_latency_ms=10.0))[0].broken == ("max_latency_ms: 10.004 > 10",)
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(front_table([], [found, rival("JPEG 50", 0.8, 3), rival("JPEG 90", 0.8, 4)], None, "front"))
    text = console.export_text()
    assert "all-on-device  (max_device_model_mb: 44.7 > 5)" in text and "JPEG 50" in text and "JPEG 90" not in text
    assert "left out: 1 baselines" in text
    console.print(front_table([], [found, rival("JPEG 90", 0.8, 4)], None, "front", everything=True))
    assert "JPEG 90" in console.export_text()


def test_a_limit_on_the_devices_weights_leaves_points_out_and_counts(write_study, study_dict):
    points = FakeEvaluator().partition_points()  # heads of 0.4, 1.6 and 3.2 MB
    study_dict["constraints"]["max_device_model_mb"] = 2
    spec = load_spec(write_study(study_dict))
    choices = {choice.point.name: choice for choice in spec.choices(points)}
    assert choices["stem"].kept and choices["middle"].kept and not choices["deep"].kept
    assert choices["deep"].why == "its head has 3.2 MB of weights; max_device_model_mb is 2"
    assert list(spec.space(points).partitions) == ["stem", "middle"]
    config = SplitConfig(partition="middle", ae_ratio=1.0, bits=1)
    found = FakeEvaluator().evaluate(config)
    assert found.details["device_model_mb"] == pytest.approx(4e-6 * (400_000 + 128 * 128))
    assert spec.constraints.excess(found)["max_device_model_mb"] == pytest.approx(-0.334464)
    assert spec.constraints.broken(found) == ["max_accuracy_drop_pp: 10 > 9"]
    study_dict["space"]["head"] = ["own", "distilled"]
    stands_in = {each.point.name: each for each in load_spec(write_study(study_dict)).choices(points)}
    assert stands_in["deep"].kept
    study_dict["space"]["head"] = "own"
    study_dict["constraints"]["max_device_model_mb"] = 0.3
    with pytest.raises(SpecError, match=r"max_device_model_mb: 0\.3 given; no head .* that of stem has 0\.4 MB"):
        load_spec(write_study(study_dict)).choices(points)


def test_the_command_line_shows_the_baselines_that_matter_or_all_of_them(write_study, study_dict, fake, capsys):
    file = write_study(study_dict)
    assert run_command(["run", file]) == 0
    run_printed = capsys.readouterr().out
    assert "JPEG 50" in run_printed and "JPEG 90" not in run_printed and "At this link deploy" in run_printed
    assert run_command(["front", file, "--all"]) == 0
    assert "JPEG 90, fine-tuned" in capsys.readouterr().out
    assert run_command(["front", file, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["baselines"]) == len(fake.baselines(trained=True))
    page = (Path("runs") / "demo" / "report.html").read_text()
    assert page.index("more baselines, beaten by these") < page.index(">server-only, JPEG 90<")


def test_export_says_first_that_a_baseline_beats_the_point(write_study, study_dict, fake, capsys):
    file = write_study(study_dict)
    assert run_command(["run", file]) == 0
    better = replace(fake.baselines(trained=False)[1], accuracy=1.0, latency=LatencyParts(tail_ms=0.1))
    capsys.readouterr()
    assert run_command(["export", file, "-o", "plain"]) == 0
    assert "A baseline beats" not in capsys.readouterr().err
    study = open_study(load_spec(file), Path("runs") / "demo")
    study.set_user_attr("baselines", [better.to_dict()])
    assert run_command(["export", file, "-o", "warned"]) == 0
    assert "A baseline beats trial" in capsys.readouterr().err


def test_plot_holds_every_trial_once_and_the_hover_everything():
    trials = [point(0, 0.5, 1), point(1, 0.4, 2), point(2, 0.9, 3), point(3, 0.95, 4, feasible=False)]
    baselines = FakeEvaluator().baselines(trained=True)
    data = pareto_data(trials, [Point(trial=None, evaluation=found) for found in baselines])
    assert [p.trial for p in data.front] == [0, 2] and [p.trial for p in data.dominated] == [1]
    assert [p.trial for p in data.infeasible] == [3]
    text = hover(trials[0])
    for part in ("trial 0", "partition: stem", "ae_ratio: 0.5", "bits: 1", "lzma: False", "(measured)", "(modelled)"):
        assert part in text
    traces = pareto_figure(data).data
    assert sum(len(trace.x) for trace in traces if trace.name != "knee") == len(trials) + len(baselines)
    bars = parts_figure(data.front, data.baselines).data
    assert {bar.name for bar in bars} >= {"head", "link", "tail"}


def test_the_plot_opens_where_the_front_and_the_baselines_are():
    far = [point(0, 0.02, 3, feasible=False), point(1, 0.1, 40)]
    near = [point(2, 0.9, 8), point(3, 0.95, 12)]
    data = pareto_data([*far, *near], [rival("server-only, raw", 0.93, 20)])
    axes = pareto_figure(data).layout
    seen = [p.trial for p in [*far, *near] if _within(p.latency_ms, axes.xaxis) and _within(p.accuracy, axes.yaxis)]
    assert seen == [2, 3] and _within(20, axes.xaxis) and _within(0.93, axes.yaxis)
    axes = pareto_figure(pareto_data(far[:1], [])).layout  # nothing keeps the limits
    assert _within(3, axes.xaxis) and _within(0.02, axes.yaxis)


def _within(value, axis):
    return axis.range[0] <= value <= axis.range[1]


def test_plots_show_the_baselines_that_matter_and_hold_the_rest():
    given = [rival("server-only, WebP 50", 0.8, 3), rival("server-only, WebP 60", 0.7, 4), rival("own rival", 0.9, 9)]
    given += [rival("server-only, WebP 50, fine-tuned", 0.85, 3), rival("all-on-device", 0.5, 9)]
    data = pareto_data([point(0, 0.5, 1)], given)
    assert {p.name for p in data.baselines} == {"server-only, WebP 50, fine-tuned", "own rival", "all-on-device"}
    assert {p.name for p in data.left_out} == {"server-only, WebP 50", "server-only, WebP 60"}
    traces = {trace.name: trace for trace in pareto_figure(data).data}
    assert list(traces["server-only, WebP, fine-tuned"].text) == ["50"] and len(traces["own rival"].x) == 1
    assert traces["other baselines"].visible == "legendonly" and len(traces["other baselines"].x) == 2
    labels = parts_figure(data.front, given).data[0].y
    assert [label.strip() for label in labels] == ["own rival", "all-on-device", "server-only, WebP 50", "0: p0"]


def test_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(to_csv([point(4, 0.5, 1)], [point(None, 0.9, 4)]))))
    assert [row["kind"] for row in rows] == ["front", "baseline"]
    assert rows[0]["trial"] == "4" and rows[0]["bits"] == "1" and float(rows[0]["head_ms"]) == 0.5
    assert rows[1]["trial"] == "" and rows[1]["partition"] == ""


def test_throughput_is_the_slowest_of_device_link_and_server():
    parts = LatencyParts(head_ms=3.0, encode_ms=1.0, link_ms=12.0, unpack_ms=0.5, tail_ms=4.5)
    found = Evaluation(
        name="x", config=None, accuracy=0.5, payload_bytes=1.0, latency=parts, sources=MEASURED, link_busy_ms=2.0
    )
    assert (parts.device_ms, parts.server_ms) == (4.0, 5.0)
    assert found.frames_per_s == pytest.approx(200)  # the round trip of 10 ms holds nothing up
    assert replace(found, link_busy_ms=8.0).frames_per_s == pytest.approx(125)
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_doubtful_timings_are_marked_wherever_they_appear():
    steady = Timing(p50_ms=1.0, p90_ms=1.1, spread=0.05, repeats=50)
    shaky = replace(steady, spread=0.4)
    good, bad = point(0, 0.5, 1), point(1, 0.88, 2)
    good = replace(good, evaluation=replace(good.evaluation, timings={"head": steady}))
    bad = replace(bad, evaluation=replace(bad.evaluation, timings={"head": steady, "tail": shaky}))
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(front_table([good, bad], [], None, "front"))
    text = console.export_text()
    assert "2.00*" in text and "1.00*" not in text and "spread over 10%" in text
    rows = list(csv.DictReader(io.StringIO(to_csv([good, bad], []))))
    assert [row["warnings"] for row in rows] == ["", "tail: spread 40%, not to be relied on"]
    assert "tail: spread 40%" in hover(bad) and "doubtful" not in hover(good)


def test_a_place_is_as_good_as_its_weakest_part():
    measured, recorded = Timing.single(1.0, Source.MEASURED), Timing.single(2.0, Source.RECORDED)
    timings = {"head": recorded, "pack": measured, "tail": measured}
    found = sources_of(timings, Source.MODELLED, Source.MODELLED, Source.MEASURED)
    assert found == Sources(device=Source.RECORDED, server=Source.MEASURED, link=Source.MEASURED)
    assert sources_of({}, Source.RECORDED, Source.MODELLED, Source.MODELLED).device == Source.RECORDED
    evaluation = replace(point(0, 0.5, 1).evaluation, timings=timings)
    assert evaluation.source_of("pack_ms") == Source.MEASURED and evaluation.source_of("head_ms") == Source.RECORDED
    assert evaluation.source_of("link_ms") == Source.MODELLED and evaluation.source_of("encode_ms") == Source.MEASURED


def test_the_slowest_tenth_adds_up():
    timing = Timing(p50_ms=4.0, p90_ms=5.0, spread=0.1, repeats=9)
    parts = LatencyParts(head_ms=4.0, link_ms=10.0, tail_ms=1.0)
    found = replace(point(0, 0.5, 1).evaluation, latency=parts, timings={"head": timing}, link_p90_ms=12.0)
    assert found.latency_p90_ms == pytest.approx(5.0 + 12.0 + 1.0)
    assert replace(found, link_p90_ms=0.0).latency_p90_ms == pytest.approx(16.0)
