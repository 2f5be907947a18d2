"""A finished study composed anew: every part against what it must be, nothing measured on the way."""

import json
from dataclasses import replace

import pytest
import yaml

from evaluators.latency.links import LinkProfile
from evaluators.latency.machine_for import machine_for
from evaluators.latency.profiles import MachineProfile, load_machine
from evaluators.latency.runners import LocalRunner
from evaluators.latency.table import StageTable
from evaluators.result import Evaluation, LatencyParts, Source, Sources, StageKey, Timing
from evaluators.store import Store
from search.front import Point
from search.replay import read_changes, replay
from search.spec import Constraints, load_spec
from spaces.config import SplitConfig
from spaces.errors import NotFinished, SpecError
from spaces.work import Work

STAGES = {"head": 3.0, "encode": 0.5, "pack": 0.1, "unpack": 0.1, "decode": 0.2, "tail": 2.0}


@pytest.fixture(autouse=True)
def shared(tmp_path, monkeypatch):
    """The store that all studies share is ``tmp_path / "store"``."""
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path))


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


class Tenfold:
    """A machine that takes ten times as long as the study's."""

    def measure(self, folder, stages):
        return {stage: Timing.single(10 * STAGES[stage], Source.MEASURED) for stage in stages}


def table_with(tmp_path, profile):
    """The timings of a study that ran on ``profile``."""
    machine = machine_for(profile, StageTable(Store(tmp_path / "store")), Tenfold())
    machine.timings(evaluation().stage_keys, lambda: tmp_path)
    return StageTable(Store(tmp_path / "store"))


def test_an_evaluation_survives_being_stored():
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation().to_dict()))) == evaluation()


def test_another_link_changes_the_link_alone():
    found = again(link=LinkProfile(rate_mb_per_s=0.5, rtt_ms=10.0, jitter_ms=1.0)).evaluation
    assert found.latency == replace(evaluation().latency, link_ms=14.0)
    assert (found.link_busy_ms, found.link_p90_ms) == (4.0, pytest.approx(14.0 + 1.2816))
    assert found.timings == evaluation().timings and found.sources == evaluation().sources


CAMERA = LinkProfile(
    rate_mb_per_s=2.0, rtt_ms=3.0, jitter_ms=0.5, name="garage", source="a transfer", origin=Source.MEASURED
)


def links(tmp_path, study_dict, was, **asked):
    """What the command line asks for, of a study whose link was ``was``."""
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(study_dict))
    spec = load_spec(str(tmp_path / "demo.yaml"))
    asked = {"device": None, "server": None, "link": None, "rates": None} | asked
    return read_changes(spec, {"link": was}, **asked).links


def test_other_rates_keep_the_rest_of_the_link(tmp_path, study_dict):
    slow, fast = links(tmp_path, study_dict, CAMERA.describe(), rates="0.5,4")
    assert (slow.rate_mb_per_s, fast.rate_mb_per_s) == (0.5, 4.0)
    for link in (slow, fast):
        assert (link.rtt_ms, link.jitter_ms, link.origin) == (3.0, 0.5, Source.MODELLED)
        assert "(measured): a transfer" in link.source
    assert slow.name == "garage at 0.5 MB/s"
    found = again(link=slow).evaluation
    assert (found.latency.link_ms, found.link_p90_ms) == (7.0, pytest.approx(7.0 + 0.5 * 1.2816))


def test_rates_of_a_link_that_is_named_along(tmp_path, study_dict):
    (link,) = links(tmp_path, study_dict, CAMERA.describe(), link="wifi_802_11ac", rates="1")
    assert (link.rate_mb_per_s, link.rtt_ms, link.jitter_ms) == (1.0, 1.468, 0.355)
    assert link.name == "wifi_802_11ac at 1 MB/s" and "morrownr" in link.source


def test_rates_of_a_link_of_an_earlier_version(tmp_path, study_dict):
    (link,) = links(tmp_path, study_dict, {"rate_mb_per_s": 1.0, "rtt_ms": 2.0}, rates="4")
    assert (link.rate_mb_per_s, link.rtt_ms, link.jitter_ms, link.name) == (4.0, 2.0, 0.0, "")


@pytest.mark.parametrize(("rates", "message"), [("x", "--rates: 'x' given"), ("1,0", "--rates: '0' given.*above 0")])
def test_rates_that_cannot_be(tmp_path, study_dict, rates, message):
    with pytest.raises(SpecError, match=message):
        links(tmp_path, study_dict, CAMERA.describe(), rates=rates)


@pytest.mark.parametrize(("link", "number"), [("0:1", "rate_mb_per_s, a number above 0"), ("2:-1", "rtt_ms, a number")])
def test_a_link_that_cannot_be_is_named_as_it_was_given(tmp_path, study_dict, link, number):
    with pytest.raises(SpecError, match=f"--link: '{link}' given; RATE:RTT as in 2:10 is needed; of {number}"):
        links(tmp_path, study_dict, CAMERA.describe(), link=link)


def test_a_replay_finds_the_rows_of_its_study(tmp_path, study_dict):
    """They lie in the shared store, under the scope that the study's environment names."""
    profile = MachineProfile(name="local", threads=3)
    scope = {"network": "abc"}
    machine_for(profile, StageTable(Store(tmp_path / "store"), scope), Tenfold()).timings(
        evaluation().stage_keys, lambda: tmp_path
    )
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(study_dict))
    spec, was = load_spec(str(tmp_path / "demo.yaml")), {"link": CAMERA.describe(), "timing_scope": scope}
    changes = read_changes(spec, was, device="local", server=None, link=None, rates=None)
    device = replace(changes.device, profile=profile, place=machine_for(profile, changes.device.table).place)
    assert again(device=device).evaluation.latency.head_ms == 30.0


def modelled_board(tmp_path, study_dict):
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(study_dict))
    spec, was = load_spec(str(tmp_path / "demo.yaml")), {"link": CAMERA.describe()}
    return read_changes(spec, was, device="raspberry_pi_4b", server=None, link=None, rates=None).device


def test_a_modelled_board_for_a_study_that_was_run_elsewhere(tmp_path, study_dict):
    keys = {stage: replace(key, work=Work(layers=1)) for stage, key in evaluation().stage_keys.items()}
    point = Point(trial=0, evaluation=replace(evaluation(), stage_keys=keys | {"pack": StageKey(key="pack key")}))
    with pytest.raises(
        NotFinished, match=r"raspberry_pi_4b so many times .* the study was run elsewhere, or the store"
    ):
        again(point, device=modelled_board(tmp_path, study_dict))


def test_a_modelled_board_needs_nothing_of_a_study_on_this_machine_but_two_programs(tmp_path, study_dict, monkeypatch):
    """Networks by the fit; packing as it was timed here, times what the board's interpreter says."""
    table_with(tmp_path, load_machine("local", "device"))
    monkeypatch.setattr(
        LocalRunner, "measure", lambda _, folder, stages: {each: Timing.single(2.0, Source.MEASURED) for each in stages}
    )
    board = modelled_board(tmp_path, study_dict)
    keys = dict(evaluation().stage_keys) | {"encode": StageKey(key="encode key", work=Work(layers=1))}
    found = again(Point(trial=0, evaluation=replace(evaluation(), stage_keys=keys)), device=board).evaluation
    factor = (7.9216 / 2 * 341.868 / 2) ** 0.5
    assert found.latency.pack_ms == pytest.approx(10 * STAGES["pack"] * factor)
    assert found.latency.head_ms == pytest.approx(board.fitting.fit.predict_ms(keys["head"].work))
    assert found.warnings == ["pack: modelled by one factor for interpreted code, error unknown"]


def test_nothing_sent_needs_no_link():
    alone = Point(trial=None, evaluation=replace(evaluation(), payload_bytes=0.0))
    assert again(alone, link=LinkProfile(rate_mb_per_s=0.1)).evaluation.latency.link_ms == 4.0


def test_a_machine_that_the_table_knows(tmp_path):
    profile = MachineProfile(name="local", threads=7)
    device = machine_for(profile, table_with(tmp_path, profile))
    found = again(device=device).evaluation
    assert found.latency == replace(evaluation().latency, head_ms=30.0, encode_ms=5.0, pack_ms=1.0)


def test_a_machine_that_nobody_timed_is_refused_with_the_way_out(tmp_path):
    device = machine_for(load_machine("ssh://pi@camera", "device"), StageTable(Store(tmp_path / "latency")))
    with pytest.raises(NotFinished, match=r"no timings on ssh://pi@camera.*splitsearch profile TARGET"):
        again(device=device)


def test_a_recording_of_the_network(tmp_path):
    (tmp_path / "board.yaml").write_text(
        "{format: 1, name: board, kind: recorded, model: m, image_size: 8, runtime: r, threads: 1, precision: fp32, "
        "date: d, source: s, timings: {head: {stem: 7.5}, encode: {encode key: 1.5}, pack: {pack key: 0.25}}}"
    )
    device = machine_for(load_machine(str(tmp_path / "board.yaml"), "device"), StageTable(Store(tmp_path / "none")))
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
    device = machine_for(MachineProfile(name="local", threads=7), StageTable(Store(tmp_path / "latency")))
    with pytest.raises(NotFinished, match="earlier version"):
        again(old, device=device)
