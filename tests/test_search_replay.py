"""A finished study composed anew: every part against what it must be, nothing measured on the way."""

import json
from dataclasses import replace

import pytest

from evaluators.latency.links import LinkProfile
from evaluators.latency.machine_for import machine_for
from evaluators.latency.profiles import MachineProfile, load_machine
from evaluators.latency.table import StageTable
from evaluators.result import Evaluation, LatencyParts, Source, Sources, StageKey, Timing
from search.front import Point
from search.replay import replay
from search.spec import Constraints
from spaces.config import SplitConfig
from spaces.errors import NotFinished
from spaces.work import Work

STAGES = {"head": 3.0, "encode": 0.5, "pack": 0.1, "unpack": 0.1, "decode": 0.2, "tail": 2.0}


def evaluation():
    stage_keys = {stage: StageKey(key=f"{stage} key") for stage in STAGES}
    stage_keys["head"] = StageKey(key="stem", work=Work(pointwise_macs=1_000_000_000, layers=3))
    return Evaluation(
        name="stem, 1 bit",
        config=SplitConfig(partition="stem", ae_ratio=0.5, bits=1),
        accuracy=0.5,
        payload_bytes=2000.0,
        latency=LatencyParts(link_ms=4.0, **{f"{stage}_ms": ms for stage, ms in STAGES.items()}),
        sources=Sources(device=Source.MEASURED, server=Source.MEASURED, link=Source.MODELLED),
        link_busy_ms=2.0,
        timings={stage: Timing.single(ms, Source.MEASURED) for stage, ms in STAGES.items()},
        stage_keys=stage_keys,
    )


def again(point=None, limits=None, **changes):
    points = replay([point or Point(trial=0, evaluation=evaluation())], limits or Constraints(), **changes)
    return points[0]


def table_with(tmp_path, place):
    rows = {
        f"{place}: {stage} of {stage_key.key}": 10 * STAGES[stage]
        for stage, stage_key in evaluation().stage_keys.items()
    }
    table = StageTable(tmp_path / "latency.json")
    table.get(
        {key: key for key in rows}, lambda missing: {key: Timing.single(rows[key], Source.MEASURED) for key in missing}
    )
    return StageTable(tmp_path / "latency.json")


def test_an_evaluation_survives_being_stored():
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation().to_dict()))) == evaluation()


def test_another_link_changes_the_link_alone():
    found = again(link=LinkProfile(rate_mb_per_s=0.5, rtt_ms=10.0, jitter_ms=1.0)).evaluation
    assert found.latency == replace(evaluation().latency, link_ms=14.0)
    assert (found.link_busy_ms, found.link_p90_ms) == (4.0, pytest.approx(14.0 + 1.2816))
    assert found.timings == evaluation().timings and found.sources == evaluation().sources


def test_nothing_sent_needs_no_link():
    alone = Point(trial=None, evaluation=replace(evaluation(), payload_bytes=0.0))
    assert again(alone, link=LinkProfile(rate_mb_per_s=0.1)).evaluation.latency.link_ms == 4.0


def test_a_machine_that_the_table_knows(tmp_path):
    device = machine_for(MachineProfile(name="local", threads=7), table_with(tmp_path, "7 threads"))
    found = again(device=device).evaluation
    assert found.latency == replace(evaluation().latency, head_ms=30.0, encode_ms=5.0, pack_ms=1.0)


def test_a_machine_that_nobody_timed_is_refused_with_the_way_out(tmp_path):
    device = machine_for(load_machine("ssh://pi@camera", "device"), StageTable(tmp_path / "latency.json"))
    with pytest.raises(NotFinished, match=r"no timings on ssh://pi@camera.*splitsearch profile TARGET"):
        again(device=device)


def test_a_recording_of_the_network(tmp_path):
    (tmp_path / "board.yaml").write_text(
        "{format: 1, name: board, kind: recorded, model: m, image_size: 8, runtime: r, threads: 1, precision: fp32, "
        "date: d, source: s, timings: {head: {stem: 7.5}, encode: {encode key: 1.5}, pack: {pack key: 0.25}}}"
    )
    device = machine_for(load_machine(str(tmp_path / "board.yaml"), "device"), StageTable(tmp_path / "none.json"))
    found = again(device=device).evaluation
    assert found.latency == replace(evaluation().latency, head_ms=7.5, encode_ms=1.5, pack_ms=0.25)
    assert found.sources.device == Source.RECORDED and found.sources.server == Source.MEASURED
    assert found.source_of("head_ms") == Source.RECORDED


def test_limits_decide_anew():
    assert again(limits=Constraints(max_latency_ms=10.0)).feasible
    slow = LinkProfile(rate_mb_per_s=0.1)
    assert not again(limits=Constraints(max_latency_ms=10.0), link=slow).feasible
    assert again(Point(trial=None, evaluation=evaluation()), Constraints(max_latency_ms=1.0), link=slow).feasible


def test_an_evaluation_without_jobs_is_not_guessed(tmp_path):
    old = Point(trial=0, evaluation=replace(evaluation(), stage_keys={}))
    device = machine_for(MachineProfile(name="local", threads=7), StageTable(tmp_path / "latency.json"))
    with pytest.raises(NotFinished, match="earlier version"):
        again(old, device=device)
