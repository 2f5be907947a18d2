"""Link arithmetic, profiles, the table of timings, and reading what a machine answered."""

import concurrent.futures
import json
import sys
from pathlib import Path

import pytest

from evaluators.latency.links import LinkProfile, load_link
from evaluators.latency.machine_for import machine_for
from evaluators.latency.machines import Measuring, NotRecorded, Scaled
from evaluators.latency.profiles import Here, MachineProfile, load_machine
from evaluators.latency.runners import LocalRunner, read_timings
from evaluators.latency.table import StageTable
from evaluators.result import Source, StageKey, Timing
from spaces.errors import MeasurementError, SpecError
from spaces.work import Work


def test_a_link_is_a_round_trip_and_a_rate():
    link = LinkProfile(rate_mb_per_s=2.0, rtt_ms=3.0)
    assert link.latency_ms(1_000_000) == pytest.approx(503.0) and link.busy_ms(1_000_000) == pytest.approx(500.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rate_mb_per_s": 0}, "link.rate_mb_per_s: 0 given; a number above 0"),
        ({"rate_mb_per_s": -1}, "above 0"),
        ({"rate_mb_per_s": "fast"}, "'fast' given"),
        ({"rate_mb_per_s": 1, "rtt_ms": -1}, "link.rtt_ms: -1 given"),
        ({"rtt_ms": 1}, "link.rate_mb_per_s: nothing given"),
        ({"rate_mb_per_s": 1, "rtt": 1}, "did you mean 'rtt_ms'"),
        ("wifi9", "no such profile"),
        (3, "link: 3 given"),
    ],
)
def test_links_that_cannot_be(value, message):
    with pytest.raises(SpecError, match=message):
        load_link(value)


def test_machines_by_name():
    local = load_machine("local", "device")
    assert local.how == Here() and local.source == Source.MEASURED
    assert load_machine({"name": "local", "threads": 1}, "device").threads == 1
    torch_gpu = load_machine({"name": "local", "runtime": "torch", "provider": "cuda"}, "server")
    assert torch_gpu.how == Here(runtime="torch", provider="cuda")
    pi = load_machine("raspberry_pi_4b", "device")
    assert pi.how.fit.runtime == "ncnn" and pi.how.reference.latency_ms == 262.83 and pi.source == Source.MODELLED
    slower = load_machine({"name": "raspberry_pi_4b", "runtime": "tensorflow"}, "device")
    assert slower.how.fit.runtime.startswith("TensorFlow")
    recorded = load_machine("raspberry_pi_4b_resnet50", "device")
    assert recorded.source == Source.RECORDED and recorded.how.whole_ms == 961.4
    there = load_machine({"name": "ssh://pi@camera:2222", "key": "~/id", "threads": 3}, "device")
    assert (there.how.host, there.how.user, there.how.port, there.threads) == ("camera", "pi", 2222, 3)
    assert there.how.key == Path("~/id").expanduser() and there.name == "ssh://pi@camera:2222"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("raspberry_pi_4", "device: 'raspberry_pi_4' given.*did you mean 'raspberry_pi_4b'"),
        ({"name": "local", "threads": 0}, "device.threads: 0 given"),
        ({"name": "local", "cores": 1}, "device.cores"),
        (7, "device: 7 given"),
        ({"name": "local", "runtime": "tensorrt"}, "device.runtime: 'tensorrt' given; onnxruntime and torch"),
        ({"name": "local", "provider": "npu"}, "device.provider: 'npu' given"),
        ({"name": "raspberry_pi_4b", "runtime": "tflite"}, "device.runtime: 'tflite' given.*ncnn"),
        ({"name": "raspberry_pi_4b_resnet50", "runtime": "ncnn"}, "one runtime only"),
        ({"name": "ssh://pi@camera", "password": "x"}, "device.password"),
        ("ssh://pi:secret@camera", "a password cannot be given"),
        ("ssh://", "ssh://host"),
    ],
)
def test_machines_that_cannot_be(value, message):
    with pytest.raises(SpecError, match=message):
        load_machine(value, "device")


def test_own_profiles_are_checked(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("format: 2\n")
    with pytest.raises(SpecError, match="format: 1 is needed"):
        load_machine(str(file), "device")
    file.write_text("format: 1\nname: x\nkind: modelled\nreference: {model: torchvision/resnet50}\n")
    with pytest.raises(SpecError, match=r"device\.reference"):
        load_machine(str(file), "device")


class CountingRunner:
    def __init__(self):
        self.asked = []

    def measure(self, folder, stages):
        self.asked.append(list(stages))
        return {stage: timing(2.0) for stage in stages}

    def machine(self):
        return {"processor": "abacus"}


def timing(ms, **more):
    return Timing(**{"p50_ms": ms, "p90_ms": 1.5 * ms, "spread": 0.1, "repeats": 20, **more})


def stage_keys(**keys):
    return {stage: StageKey(key=key) for stage, key in keys.items()}


def never():
    pytest.fail("made a folder for nothing")


def test_nothing_is_timed_twice(tmp_path):
    runner = CountingRunner()
    profile = MachineProfile(name="local", threads=2)

    def machine():
        return machine_for(profile, StageTable(tmp_path / "t.json"), runner)

    first = machine().timings(stage_keys(head="stem", encode="stem/r1"), lambda: tmp_path)
    assert first == {"head": timing(2.0), "encode": timing(2.0)}
    again = machine().timings(stage_keys(head="stem", encode="stem/r2"), lambda: tmp_path)
    assert again == first and runner.asked == [["head", "encode"], ["encode"]]
    machine().timings(stage_keys(head="stem"), never)


def test_machines_do_not_share_timings(tmp_path):
    """The same table, the same stage: two numbers of threads and two libraries are four machines."""
    runner, table = CountingRunner(), StageTable(tmp_path / "t.json")
    for threads in (1, 2):
        for how in (Here(), Here(runtime="torch")):
            machine = machine_for(MachineProfile(name="local", how=how, threads=threads), table, runner)
            machine.timings(stage_keys(head="stem"), lambda: tmp_path)
    assert runner.asked == [["head"]] * 4


def test_a_scaled_machine_times_its_reference_once_and_marks_what_it_says(tmp_path):
    here = Measuring(
        profile=MachineProfile(name="local", threads=2),
        runner=CountingRunner(),
        table=StageTable(tmp_path / "t.json"),
        place="2 threads",
    )
    asked = []
    machine = Scaled(MachineProfile(name="slow", threads=2), here, 30.0, lambda: asked.append(1) or 10.0)
    assert machine.timings({}, never) == {} and not asked  # no reference for nothing
    found = machine.timings(stage_keys(head="stem", pack="x"), lambda: tmp_path)
    assert found["head"] == timing(6.0, p90_ms=9.0, source=Source.MODELLED)
    machine.timings(stage_keys(head="layer1.0"), lambda: tmp_path)
    assert asked == [1] and "x 3.00" in machine.describe()["how"]


RECORDED = """
format: 1
name: my-board
kind: recorded
model: torchvision/resnet18
image_size: 32
runtime: onnxruntime
threads: 4
precision: fp32
date: 2026-01-02
source: a kitchen table
timings:
  head: {stem: 3.5, output: {p50_ms: 20.0, p90_ms: 22.0, spread: 0.05, repeats: 40}}
  encode: {stem/r0.5: 0.25}
"""


def recorded(tmp_path, text=RECORDED):
    (tmp_path / "mine.yaml").write_text(text)
    return load_machine(str(tmp_path / "mine.yaml"), "device")


def test_a_recording_answers_and_says_what_it_lacks(tmp_path):
    profile = recorded(tmp_path)
    machine = machine_for(profile, StageTable(tmp_path / "t.json"), CountingRunner())
    found = machine.timings(stage_keys(head="output", encode="stem/r0.5"), never)
    assert {each.source for each in found.values()} == {Source.RECORDED}
    assert (found["head"].p90_ms, found["head"].repeats, found["encode"].p50_ms) == (22.0, 40, 0.25)
    with pytest.raises(NotRecorded, match=r"has no head of 'layer1.0'; it knows these: stem, output"):
        machine.timings(stage_keys(head="layer1.0"), never)
    assert "recorded 2026-01-02" in machine.describe()["how"]


def test_what_a_recording_lacks_is_modelled_by_its_whole_network(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluators.latency.machine_for._folder", lambda folder, *rest: folder)
    machine = machine_for(recorded(tmp_path), StageTable(tmp_path / "t.json"), CountingRunner())
    found = machine.timings(stage_keys(head="stem", pack="stem/r0.5/b1"), lambda: tmp_path)
    assert found["pack"] == timing(20.0, p90_ms=30.0, source=Source.MODELLED)  # whole: 20 there, 2 here
    assert found["head"].source == Source.RECORDED


def test_a_recording_may_name_another_network_for_what_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluators.latency.machine_for._folder", lambda folder, *rest: folder)
    reference = "{model: m, image_size: 8, latency_ms: 6, runtime: r, threads: 1, precision: p, source: s}"
    profile = recorded(tmp_path, f"{RECORDED}reference: {reference}\n")
    machine = machine_for(profile, StageTable(tmp_path / "t.json"), CountingRunner())
    encoder = StageKey(key="stem/r0.25", work=Work(layers=1))
    found = machine.timings({"encode": encoder, **stage_keys(pack="x")}, lambda: tmp_path)
    assert found["encode"].p50_ms == pytest.approx(20.0)  # by the recorded network: 20 there, 2 here
    assert found["pack"].p50_ms == pytest.approx(6.0)  # by the reference: 6 there, 2 here


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("date: 2026-01-02\n", "", "device.date: nothing given"),
        ("kind: recorded", "kind: guessed", "device.kind: 'guessed' given; recorded and modelled"),
        ("stem: 3.5", "stem: fast", r"device.timings.head.stem: 'fast' given; milliseconds"),
        ("stem: 3.5", "stem: -1", r"device.timings.head.stem: -1 given"),
        ("stem: 3.5", "stem: {p50: 1}", r"device.timings.head.stem"),
        ("threads: 4", "threads: 4\ncores: 4", "device.cores"),
        ("name: my-board\n", "", "device.name: nothing given"),
    ],
)
def test_recordings_that_cannot_be(tmp_path, old, new, message):
    assert old in RECORDED
    with pytest.raises(SpecError, match=message):
        recorded(tmp_path, RECORDED.replace(old, new))


def test_a_recording_of_another_network_or_size_is_refused(tmp_path):
    profile = recorded(tmp_path)
    profile.check_fits("torchvision/resnet18", 32, "device")
    for model, size in (("torchvision/resnet50", 32), ("torchvision/resnet18", 64)):
        with pytest.raises(
            SpecError, match=r"my-board.*recording of torchvision/resnet18 at 32 pixels.*splitsearch prof"
        ):
            profile.check_fits(model, size, "device")


def test_a_fitted_machine_computes_networks_and_scales_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluators.latency.machine_for._folder", lambda folder, *rest: folder)
    machine = machine_for(load_machine("raspberry_pi_4b", "device"), StageTable(tmp_path / "t.json"), CountingRunner())
    work = Work(pointwise_macs=1_000_000, layers=1, layer_elements=1000)
    found = machine.timings({"head": StageKey(key="stem", work=work), **stage_keys(pack="x")}, lambda: tmp_path)
    assert found["head"].p50_ms == machine.fitting.fit.predict_ms(work) > 0
    assert found["pack"].p50_ms == pytest.approx(262.83)  # the reference takes 2 ms here, and so does packing
    assert {each.source for each in found.values()} == {Source.MODELLED}
    assert "median error" in machine.describe()["how"] and "left out in turn" in machine.describe()["how"]


def test_a_table_of_an_earlier_version_is_measured_anew(tmp_path):
    (tmp_path / "t.json").write_text('{"2 threads: head of stem": 2.0}')
    assert StageTable(tmp_path / "t.json").get({"head": "x"}, lambda _: {"head": timing(1.0)}) == {"head": timing(1.0)}


def test_timings_are_read_and_nonsense_is_refused():
    row = {"p50_ms": 1.5, "p90_ms": 2.0, "spread": 0.3, "interval_ms": [1.4, 1.6], "repeats": 40}
    answer = {"stages": {"head": row, "pack": row}, "throttling": ["under-voltage"]}
    (found,) = read_timings(json.dumps(answer), ["head", "encode"]).values()
    assert (found.p50_ms, found.p90_ms, found.repeats) == (1.5, 2.0, 40)
    assert "slowed down (under-voltage)" in found.warning
    for text in ("", "[]", "{}", '{"throttling": [], "stages": {"head": {}}}', "Traceback"):
        with pytest.raises(MeasurementError, match="not readable"):
            read_timings(text, ["head"])


def test_what_is_doubtful():
    assert timing(1.0, spread=0.25).warning == "" and timing(1.0, spread=0.4).warning == "spread 40%"
    slowed = timing(1.0, throttling=("throttled",))
    assert Timing.from_dict(json.loads(json.dumps(slowed.to_dict()))) == slowed
    assert slowed.scaled(2.0).warning == slowed.warning and slowed.scaled(2.0).p90_ms == 3.0


def test_measurements_wait_for_each_other(tmp_path):
    busy = tmp_path / "busy"
    (tmp_path / "__main__.py").write_text(
        "import json, pathlib, time\n"
        f"busy = pathlib.Path({str(busy)!r})\n"
        "busy.mkdir()\n"  # fails if it is there
        "time.sleep(0.3)\n"
        "busy.rmdir()\n"
        "row = {'p50_ms': 1.0, 'p90_ms': 1.0, 'spread': 0.0, 'repeats': 1}\n"
        "print(json.dumps({'throttling': [], 'stages': {'head': row}}))\n"
    )
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        stage_keys = [pool.submit(LocalRunner().measure, tmp_path, ["head"]) for _ in range(3)]
        assert [stage_key.result()["head"].p50_ms for stage_key in stage_keys] == [1.0] * 3


def test_a_folder_that_cannot_run_says_why(tmp_path):
    (tmp_path / "__main__.py").write_text("import sys; sys.exit('error: no such model')")
    assert sys.executable
    with pytest.raises(MeasurementError, match="no such model"):
        LocalRunner().measure(tmp_path, ["head"])
